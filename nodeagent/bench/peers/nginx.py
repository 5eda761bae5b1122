"""nginx, tuned: keep-alive on both sides, no log. HTTP only: `stream` is a package of its own in Debian."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import ClassVar, Final

from nodeagent.bench.peers.base import Peer, Running, ask_version
from nodeagent.bench.services import HTTP, Service
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import CapabilityError

_CONFIG: Final = """\
daemon off;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log error;
events {{ worker_connections 12000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 0.0.0.0:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffer_size 32k;
            proxy_buffers 8 32k;
        }}
    }}
}}
"""


class Nginx(Peer):
    """nginx.org."""

    name: ClassVar[str] = "nginx"
    index: ClassVar[int] = 4

    def find(self) -> str:
        """From `nginx -v`."""
        if shutil.which("nginx") is None:
            raise CapabilityError("apt-get install nginx-light")
        return ask_version(["nginx", "-v"]).rpartition("/")[2]

    def serves(self, service: Service) -> bool:
        """HTTP only."""
        return service.http

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start it in the foreground."""
        path = stage.folder / "nginx.conf"
        path.write_text(
            _CONFIG.format(
                workers=config.workers,
                folder=stage.folder,
                port=self.port(HTTP),
                backend=HTTP.backend_port,
            )
        )
        process = stage.spawn(self.name, ["nginx", "-c", str(path), "-e", "stderr"], stage.cores.proxy)
        return self.running(process, services)
