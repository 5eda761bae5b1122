"""Programs of sk_lookup asked without a connection (BPF_PROG_TEST_RUN), with maps that the test fills by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, IPPROTO_TCP, inet_pton
from typing import Final

from nodeagent.dataplane.bpf import BpfMap, BpfObject, possible_cpus

APPLICATION, AGENT, REFUSED = "application", "agent", "refused"
_LOOKUP: Final = struct.Struct("=QII4s16s2s2x4s16sII4x")  # struct bpf_sk_lookup, linux/bpf.h
_DROP, _PASS = 0, 1


@dataclass(frozen=True)
class Arrival:
    """What arrives, from `remote` to `local`. A test cannot say by which device: it is none."""

    remote: str = "10.0.0.1"
    local: str = "10.0.0.2"
    remote_port: int = 40_000
    local_port: int = 8080
    protocol: int = IPPROTO_TCP

    def pack(self) -> bytes:
        """struct bpf_sk_lookup."""
        family = AF_INET6 if ":" in self.local else AF_INET
        remote, local = inet_pton(family, self.remote), inet_pton(family, self.local)
        v4 = (remote, bytes(16)), (local, bytes(16))
        v6 = (bytes(4), remote), (bytes(4), local)
        (remote4, remote6), (local4, local6) = v4 if family == AF_INET else v6
        port = struct.pack(">H", self.remote_port)
        return _LOOKUP.pack(
            0, family, self.protocol, remote4, remote6, port, local4, local6, self.local_port, 0
        )


def ask(programs: BpfObject, name: str, arrival: Arrival) -> str:
    """Who gets it: the application, or the agent, as whose socket it was chosen by; or it is refused."""
    verdict, context = programs.attempt(name, arrival.pack())
    assert verdict in (_DROP, _PASS)
    if verdict == _DROP:
        return REFUSED
    return AGENT if any(context[:8]) else APPLICATION


def clear(table: BpfMap) -> None:
    """Take all entries out of a hash map."""
    for key in set(table):
        table.discard(key)


class Counters:
    """A per-CPU array of counters, and what they were."""

    def __init__(self, programs: BpfObject, name: str, labels: tuple[str, ...]) -> None:
        self._map = programs.map(name, 4, 8 * possible_cpus())
        self._labels = labels
        self._before = self._read()

    def _read(self) -> dict[str, int]:
        found = {}
        for index, label in enumerate(self._labels):
            value = self._map.get(struct.pack("=I", index))
            assert value is not None
            found[label] = sum(struct.unpack(f"={len(value) // 8}Q", value))
        return found

    def since(self) -> dict[str, int]:
        """What was counted since the last call, without what was not."""
        now = self._read()
        found = {
            label: now[label] - self._before[label] for label in now if now[label] != self._before[label]
        }
        self._before = now
        return found

    def close(self) -> None:
        """May be called again."""
        self._map.close()
