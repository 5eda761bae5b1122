"""What the kernel does with TCP, from its tracepoints: connects, retransmissions, resets, drops.

Read as text from a tracefs instance of our own, which nothing else that traces disturbs and which goes with the
reader. That needs neither a compiler nor kernel headers on the node, as bcc does (kernel_summary.py); and the kernel
drops the oldest events, not packets, when nobody reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from nodeagent.errors import CapabilityError

_USUAL: Final = Path("/sys/kernel/tracing")
_BUFFER_KB: Final = 1024
"""Per CPU."""
_READ_BYTES: Final = 1 << 16

_EVENTS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    # include/net/tcp_states.h: 1 ESTABLISHED, 2 SYN_SENT, 3 SYN_RECV.
    "connect": (
        (
            "sock/inet_sock_set_state",
            "protocol == 6 && (newstate == 2 || oldstate == 2 || (oldstate == 3 && newstate == 1))",
        ),
    ),
    "retransmit": (("tcp/tcp_retransmit_skb", ""),),
    "reset": (("tcp/tcp_send_reset", ""), ("tcp/tcp_receive_reset", "")),
    # include/net/dropreason-core.h: up to 2 there is no reason.
    "drop": (("skb/kfree_skb", "reason > 2"),),
}
KINDS: Final = tuple(_EVENTS)

_LINE: Final = re.compile(
    r"\s*(?P<process>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<time>[\d.]+): (?P<event>\w+): (?P<rest>.*)"
)
_FIELD: Final = re.compile(r"(\w+)[=:] ?(\S+)")
_ADDRESS: Final = re.compile(r"\[?(?P<address>.*?)\]?:(?P<port>\d+)")
_CONNECTS: Final = {
    ("TCP_CLOSE", "TCP_SYN_SENT"): "connecting",
    ("TCP_SYN_SENT", "TCP_ESTABLISHED"): "connected",
    ("TCP_SYN_SENT", "TCP_CLOSE"): "failed",
    ("TCP_SYN_RECV", "TCP_ESTABLISHED"): "accepted",
}
_PLAIN: Final = {
    "tcp_retransmit_skb": "retransmitted",
    "tcp_send_reset": "reset sent",
    "tcp_receive_reset": "reset received",
    "kfree_skb": "dropped",
}


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event. Addresses are as the kernel has them at that point: with capture by eBPF a connect goes to the
    agent's port on loopback. Empty, and ports 0, where it does not tell."""

    seconds: float
    """Since the machine started."""
    what: str
    process: str = ""
    """Name and pid; only where the event happens in the process that it is about."""
    source: str = ""
    source_port: int = 0
    target: str = ""
    target_port: int = 0
    details: dict[str, str] = field(default_factory=dict)


def parse_event(line: str) -> TraceEvent | None:
    """An event from a line of trace_pipe; None for other lines, and for changes of state that are no connect."""
    match = _LINE.match(line)
    if match is None:
        return None
    fields = dict(_FIELD.findall(match["rest"]))
    states = (fields.get("oldstate", ""), fields.get("newstate", ""))
    what = (
        _CONNECTS.get(states, "")
        if match["event"] == "inet_sock_set_state"
        else _PLAIN.get(match["event"], "")
    )
    if not what:
        return None
    source, source_port = _end(fields, "src", "saddr", "sport")
    target, target_port = _end(fields, "dest", "daddr", "dport")
    process = f"{match['process'].strip()}-{match['pid']}" if what == "connecting" else ""
    details = {name: fields[name] for name in ("state", "reason", "location", "err") if name in fields}
    return TraceEvent(float(match["time"]), what, process, source, source_port, target, target_port, details)


def _end(fields: dict[str, str], joined: str, address: str, port: str) -> tuple[str, int]:
    """One end of a connection: `joined` holds address and port, in events of newer kernels."""
    if joined in fields:
        match = _ADDRESS.fullmatch(fields[joined])
        return (match["address"], int(match["port"])) if match is not None else (fields[joined], 0)
    v6 = fields.get("family") == "AF_INET6"
    found = fields.get(f"{address}v6" if v6 else address, "")
    return found.removeprefix("::ffff:"), int(fields.get(port, 0))


def find_tracefs(mounts: str) -> Path:
    """Where tracefs is mounted, given the text of /proc/mounts; CapabilityError if nowhere."""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == "tracefs":
            return Path(words[1].replace("\\040", " "))
    raise CapabilityError(
        f"tracefs is not mounted; mount it: mount -t tracefs none {_USUAL} (the kernel needs CONFIG_FTRACE; a "
        f"container needs the host's one: hostPath {_USUAL})"
    )


class KernelTrace:
    """Events of a kind (KINDS) while the `with` block lasts."""

    def __init__(self, kind: str) -> None:
        """CapabilityError where the kernel cannot, or may not be asked."""
        tracefs = find_tracefs(Path("/proc/mounts").read_text())
        self._instance = tracefs / "instances" / f"nodeagent-{os.getpid()}"
        self._pipe = -1
        try:
            self._instance.mkdir()
        except OSError as error:
            raise CapabilityError(
                f"cannot trace by {self._instance}: {error.strerror}; needs root"
            ) from error
        try:
            self._begin(kind)
        except BaseException:
            self.close()
            raise

    def _begin(self, kind: str) -> None:
        (self._instance / "buffer_size_kb").write_text(str(_BUFFER_KB))
        for name, condition in _EVENTS[kind]:
            event = self._instance / "events" / name
            if not event.is_dir():
                raise CapabilityError(f"this kernel ({os.uname().release}) has no tracepoint {name}")
            if condition:
                self._filter(event, name, condition)
            (event / "enable").write_text("1")
        self._pipe = os.open(self._instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    @staticmethod
    def _filter(event: Path, name: str, condition: str) -> None:
        try:
            (event / "filter").write_text(condition)
        except OSError as error:
            raise CapabilityError(
                f"this kernel ({os.uname().release}) does not tell enough in {name}: {condition}"
            ) from error

    def events(self, timeout: float) -> Iterator[TraceEvent]:
        """What has happened since the last call, waiting at most `timeout` seconds for something to."""
        readable, _, _ = select.select([self._pipe], [], [], timeout)
        if not readable:
            return
        text = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._pipe, _READ_BYTES):
                text += piece
                if len(text) > _BUFFER_KB << 10:
                    break
        for line in text.decode(errors="replace").splitlines():
            event = parse_event(line)
            if event is not None:
                yield event

    def close(self) -> None:
        """End tracing; may be called again."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        for names in _EVENTS.values():
            for name, _ in names:
                with contextlib.suppress(OSError):
                    (self._instance / "events" / name / "enable").write_text("0")
        with contextlib.suppress(FileNotFoundError):
            self._instance.rmdir()

    def __enter__(self) -> KernelTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
