"""What the lab's DNS server knows: services and pods by the names of the Kubernetes DNS specification 1.1.0.

Names are kept in lower case without the final dot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from nodeagent.lab.services import Address, Backend, Service

RecordType = Literal["A", "AAAA", "CNAME", "SRV", "PTR", "TXT", "SOA", "NS"]
TTL_SECONDS: Final = 5
_MAX_CNAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record; `data` is an address, a name, a text, or `port target` of an SRV record."""

    name: str
    type: RecordType
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question: records, or none of that type, or that the name does not exist."""

    records: tuple[Record, ...]
    exists: bool
    authoritative: bool


@dataclass(frozen=True, slots=True)
class Zone:
    """An immutable table of records; a change of services makes a new one."""

    domain: str
    records: dict[str, dict[RecordType, tuple[Record, ...]]] = field(default_factory=dict)

    def resolve(self, name: str, type_: str) -> Answer:
        """Answer one question; a CNAME within the zone is followed (RFC 1034 section 4.3.2)."""
        name = name.lower().rstrip(".")
        chain: list[Record] = []
        for _ in range(_MAX_CNAMES):
            types = self.records.get(name)
            if types is None:
                return Answer(tuple(chain), bool(chain), self._ours(name) or bool(chain))
            found = types.get(type_) if type_ != "ANY" else tuple(r for rs in types.values() for r in rs)  # type: ignore[call-overload]
            if found or "CNAME" not in types:
                return Answer((*chain, *(found or ())), True, True)
            chain += types["CNAME"]
            name = types["CNAME"][0].data
        return Answer(tuple(chain), True, True)

    def _ours(self, name: str) -> bool:
        return name == self.domain or name.endswith((f".{self.domain}", ".in-addr.arpa", ".ip6.arpa"))


def build_zone(
    domain: str, services: Iterable[Service], pods: Iterable[Backend], namespaces: Iterable[str]
) -> Zone:
    """Make the zone of these services and pods; namespaces without any still have their (empty) names."""
    builder = _Builder(domain)
    builder.add(domain, "SOA", f"ns.dns.{domain}")
    builder.add(domain, "NS", f"ns.dns.{domain}")
    builder.add(f"dns-version.{domain}", "TXT", "1.1.0")
    for namespace in namespaces:
        builder.exists(f"{namespace}.svc.{domain}")
    for service in services:
        builder.service(service)
    for pod in pods:
        builder.pod(pod)
    return builder.zone()


class _Builder:
    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._records: defaultdict[str, defaultdict[RecordType, list[Record]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def add(self, name: str, type_: RecordType, data: str) -> None:
        name = name.lower()
        self.exists(name)
        record = Record(name, type_, data)
        if record not in self._records[name][type_]:
            self._records[name][type_].append(record)

    def exists(self, name: str) -> None:
        """Make a name and those above it exist, with no record of their own (RFC 8020)."""
        while name and name not in self._records:
            self._records[name]  # looked up to be made
            name = name.partition(".")[2]

    def service(self, service: Service) -> None:
        spec = service.spec
        name = f"{spec.name}.{spec.namespace}.svc.{self._domain}"
        self.exists(name)
        if spec.external_name:
            self.add(name, "CNAME", spec.external_name)
            return
        for address in service.virtual_ips:
            self._address(name, address, reverse=True)
        targets = [name]
        if spec.headless:
            targets = [self._member(name, member) for member in service.members]
        for leads_to in service.ports:
            port = leads_to.port
            if port.name:
                for target in targets:
                    self.add(f"_{port.name}._{port.protocol.lower()}.{name}", "SRV", f"{port.port} {target}")

    def _member(self, service: str, member: Backend) -> str:
        """Add an endpoint of a headless service: to the service's name and under a name of its own."""
        label = member.name or (dashed(member.addresses[0]) if member.addresses else "none")
        own = f"{label}.{service}"
        for address in member.addresses:
            self._address(service, address, reverse=False)
            self._address(own, address, reverse=True)
        return own

    def pod(self, pod: Backend) -> None:
        for address in pod.addresses:
            self._address(f"{dashed(address)}.{pod.namespace}.pod.{self._domain}", address, reverse=False)

    def _address(self, name: str, address: Address, *, reverse: bool) -> None:
        self.add(name, "A" if address.version == 4 else "AAAA", str(address))
        if reverse:
            self.add(address.reverse_pointer, "PTR", name)

    def zone(self) -> Zone:
        frozen = {
            name: {type_: tuple(records) for type_, records in types.items()}
            for name, types in self._records.items()
        }
        return Zone(self._domain, frozen)


def dashed(address: Address) -> str:
    """Return an address as a DNS label: 10-244-1-2."""
    return str(address).replace(".", "-").replace(":", "-")
