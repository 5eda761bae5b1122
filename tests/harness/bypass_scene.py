"""Pods whose connections to each other may pass the engine, with maps that the test fills by hand.

The agent is capture_agent.py's, which knows nothing of bypass: the test has its maps by their pins.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP
from typing import Final

from harness.capture_agent import CaptureAgent
from harness.cgroups import scratch_cgroup
from harness.netns import Namespace, Network
from nodeagent.dataplane import bypass_layout as layout
from nodeagent.dataplane.bpf import BpfMap, pinned_map, possible_cpus
from nodeagent.dataplane.bypass_maps import name_namespace
from nodeagent.dataplane.ebpf_node import ABI, COUNTERS, netns_cookie
from nodeagent.snapshot.address import parse_address

CLIENT, SERVER, OTHER = 1, 2, 3
"""Numbers of workloads."""
VIEW: Final = 7
LIFE: Final = 0xA11CE
SERVICE: Final = 70
FAMILIES = ("v4", "v6", "mapped")
VIP: Final = {"v4": "10.96.0.10", "v6": "fd00:96::10", "mapped": "::ffff:10.96.0.10"}
_BUSY, _DISCARDED, _HEADER = 1 << 31, 1 << 30, 8  # linux/bpf.h, the header of a ring buffer's records


def address_of(namespace: Namespace, family: str) -> str:
    return {"v4": namespace.v4, "v6": namespace.v6, "mapped": f"::ffff:{namespace.v4}"}[family]


class RingReader:
    """What is in a BPF ring buffer (Documentation/bpf/ringbuf.rst), read by mapping it."""

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE)
        self._records = mmap.mmap(fd, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)

    def take(self) -> list[bytes]:
        """The records that are there, which are gone then."""
        (at,) = struct.unpack_from("=Q", self._consumer)
        found = []
        while at < struct.unpack_from("=Q", self._records)[0]:
            start = mmap.PAGESIZE + at % self._size
            (length,) = struct.unpack_from("=I", self._records, start)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._records[start + _HEADER : start + _HEADER + size])
            at += (_HEADER + size + 7) // 8 * 8
        struct.pack_into("=Q", self._consumer, 0, at)
        return found

    def close(self) -> None:
        """May be called again."""
        self._consumer.close()
        self._records.close()


class PinnedMaps:
    """The maps of a running agent, by their pins."""

    def __init__(self, pins: Path) -> None:
        self._folder = pins / f"v{ABI}"
        self._opened: list[BpfMap] = []
        self.life = self._open("life", 4, layout.LIFE_SIZE)
        self.sources = self._open("sources", 8, layout.SOURCE_SIZE)
        self.services = self._open("services", layout.SERVICE_KEY_SIZE, layout.SERVICE_SIZE)
        self.backends = self._open("backends", layout.BACKEND_KEY_SIZE, layout.BACKEND_SIZE)
        self.access = self._open("access", layout.ACCESS_KEY_SIZE, layout.ACCESS_SIZE)
        self.bypassed = self._open("bypassed", layout.ENDS_SIZE, layout.FLOW_SIZE)
        self._counters = self._open("counters", 4, 8 * possible_cpus())
        events = self._open("events", 0, 0)
        self._events = RingReader(events.fd, events.memory_and_limit()[1])

    def _open(self, name: str, key_size: int, value_size: int) -> BpfMap:
        found = pinned_map(self._folder / "maps" / name, key_size, value_size)
        assert found is not None, name
        self._opened.append(found)
        return found

    def begin(self, life: int = LIFE) -> None:
        self.life[bytes(4)] = layout.Life(life).pack()

    def name(self, namespace: Namespace, workload: int, life: int = LIFE) -> None:
        """Say which workload a captured namespace is."""
        folder = self._folder / "netns" / f"{netns_cookie(namespace.handle):x}"
        name_namespace(folder, layout.Here(life, workload))

    def source(self, namespace: Namespace, workload: int, view: int = VIEW) -> None:
        key = struct.pack("=Q", netns_cookie(namespace.handle))
        self.sources[key] = layout.Source(workload, view).pack()

    def service(
        self, address: str, port: int, slots: int = 1, service: int = SERVICE, view: int = VIEW
    ) -> None:
        key = layout.ServiceKey(parse_address(address), view, port, IPPROTO_TCP)
        self.services[key.pack()] = layout.Service(service, slots).pack()

    def backend(
        self, slot: int, address: str, port: int, workload: int = SERVER, service: int = SERVICE
    ) -> None:
        value = layout.Backend(parse_address(address), workload, port)
        self.backends[layout.BackendKey(service, slot).pack()] = value.pack()

    def verdict(
        self,
        access: layout.Access,
        source: int = CLIENT,
        port: int = 8080,
        policy: int = 0,
        server: int = SERVER,
    ) -> None:
        key = layout.AccessKey(source, server, port, IPPROTO_TCP)
        self.access[key.pack()] = layout.AccessEntry(access, policy).pack()

    def flows(self) -> dict[layout.Ends, layout.Flow]:
        found = {key: self.bypassed.get(key) for key in self.bypassed}
        return {layout.Ends.unpack(key): layout.Flow.unpack(raw) for key, raw in found.items() if raw}

    def events(self) -> list[layout.Event]:
        """Those since the last call."""
        return [layout.Event.unpack(raw) for raw in self._events.take()]

    def count(self, name: str) -> int:
        value = self._counters.get(struct.pack("=I", COUNTERS.index(name))) or b""
        return sum(struct.unpack(f"={len(value) // 8}Q", value))

    def numbers(self) -> set[int]:
        """The kernel's, of the maps."""
        texts = (Path(f"/proc/self/fdinfo/{each.fd}").read_text() for each in self._opened)
        return {int(dict(line.split(":", 1) for line in text.splitlines())["map_id"]) for text in texts}

    def clear(self) -> None:
        """As an agent starts: nothing is known, nothing told."""
        self.begin(layout.NO_BYPASS)
        for each in (self.sources, self.services, self.backends, self.access, self.bypassed):
            for key in list(each):
                each.discard(key)
        self.events()

    def close(self) -> None:
        self._events.close()
        for each in self._opened:
            each.close()
        self._opened.clear()


@dataclass
class BypassScene:
    """`client` and `server` are captured; `outside` is not."""

    network: Network
    client: Namespace
    server: Namespace
    outside: Namespace
    agent: CaptureAgent
    maps: PinnedMaps

    def permit(self, family: str = "v4", asked: str = "", port: int = 80) -> str:
        """Let the client pass to port 8080 of the server when it asks for the VIP of the family, or for what is given;
        returns that."""
        maps, target = self.maps, asked or VIP[family]
        maps.name(self.server, SERVER)
        maps.source(self.client, CLIENT)
        maps.service(target, port)
        maps.backend(0, address_of(self.server, family), 8080)
        maps.verdict(layout.Access.ALLOW)
        maps.begin()
        return target

    def captured(self) -> int:
        """How many connections the engine has got so far."""
        return int(self.agent.ask("counters")["downstream_cx_total"])


@contextlib.contextmanager
def bypass_scene(name: str, pins: Path) -> Iterator[BypassScene]:
    """Enrolled pods and an agent, with empty maps."""
    with Network(name) as network, scratch_cgroup("agent") as group, CaptureAgent(group.join, pins) as agent:
        client, server, outside = (
            network.add(each, default_route=True) for each in ("client", "server", "outside")
        )
        agent.enrol(client, "client")
        agent.enrol(server, "server")
        maps = PinnedMaps(pins)
        try:
            yield BypassScene(network, client, server, outside, agent, maps)
        finally:
            maps.close()
