"""A real `nodeagent controlplane` process of a test, and its configuration folder."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.processes import Process, wait_until


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def service(
    name: str,
    address: str,
    port_name: str = "http",
    port: int = 9080,
    target: int | None = None,
    app: str = "",
) -> str:
    """YAML of a Service with one port that selects pods by the label app."""
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: {address}
  selector: {{app: {app or name}}}
  ports: [{{name: {port_name}, port: {port}, targetPort: {target or port}}}]
"""


def pod(name: str, address: str, app: str, version: str = "v1", ready: bool = True) -> str:
    """YAML of a Pod with labels app and version."""
    return f"""\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}, version: {version}}}}}
spec: {{nodeName: node, serviceAccountName: {app}}}
status: {{podIPs: [{{ip: "{address}"}}], conditions: [{{type: Ready, status: "{ready}"}}]}}
"""


class ControlPlaneProcess:
    """The process; `put` and `remove` change its configuration as an editor would, by rename."""

    def __init__(self, *options: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nodeagent-cp-")
        self.root = Path(self._folder.name)
        self.config = self.root / "config"
        self.config.mkdir()
        self.socket = self.root / "xds.sock"
        self.admin = self.root / "admin.sock"
        self._options = options
        self.process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        argv = [sys.executable, "-m", "nodeagent.cli.main", "controlplane", "--config", str(self.config)]
        argv += ["--listen", "127.0.0.1:0", "--unix", str(self.socket), "--admin", str(self.admin)]
        self.process = Process([*argv, *self._options], listens=lambda port: False)
        wait_until(self._ready, f"control plane ready: {self.process.output}", 20)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.popen.poll() is None, self.process.output
        try:
            return self.ask("/healthz/ready")[0] == 200
        except OSError:
            return False

    def ask(self, path: str) -> tuple[int, str]:
        """GET from the admin API: status and body."""
        connection = _UnixConnection(self.admin)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """GET JSON from the admin API."""
        status, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def put(self, name: str, *documents: str) -> None:
        """Write a file of several documents at once."""
        scratch = self.root / f"{name}.new"
        scratch.write_text("---\n".join(documents))
        scratch.replace(self.config / name)

    def remove(self, name: str) -> None:
        (self.config / name).unlink()

    def messages(self) -> list[str]:
        """Findings in force, as text."""
        return [issue["text"] for issue in self.json("/config_errors")["issues"]]

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()

    def __enter__(self) -> ControlPlaneProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.close()
        self._folder.cleanup()
