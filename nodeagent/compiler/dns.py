"""Which host names are answered to workloads, with which addresses: from the workload index.

A service's host name means its virtual addresses; without any (headless), the addresses of its workloads. Names without
addresses are left out: name servers are asked about them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Mapping
from typing import Final

from nodeagent.compiler.workloads import IndexChange, ServiceEntry, WorkloadEntry, WorkloadIndex

logger = logging.getLogger(__name__)

ADDRESSES_LIMIT: Final = 1024
"""NA_DNS_MAX_ADDRESSES."""
NAMES_LIMIT: Final = 200_000
_LABEL: Final = "[a-z0-9_-]{1,63}"
_HOST: Final = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_HOST_LIMIT: Final = 253  # RFC 1035, 2.3.4, as text


def search_list(namespace: str, domain: str) -> str:
    """The domains in which a pod of a namespace looks names up, as kubelet writes them."""
    return f"{namespace}.svc.{domain} svc.{domain} {domain}"


class Names:
    """The names, kept up to date with the index."""

    def __init__(self, index: WorkloadIndex) -> None:
        self._index = index
        self._names: dict[str, tuple[bytes, ...]] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        """By host: the names that it has made."""
        self._owners: dict[str, set[str]] = {}
        """By host: the resource names of its services."""
        self._members: dict[str, dict[str, WorkloadEntry]] = {}
        """Of services without virtual addresses: their workloads, by uid."""
        self._memberships: dict[str, tuple[str, ...]] = {}
        """The same by uid."""
        self.left_out = 0
        """Hosts that were beyond NAMES_LIMIT."""

    def update(self, change: IndexChange) -> Mapping[str, tuple[bytes, ...]]:
        """Take a change of the index along. Returns the names as snapshot.values.Snapshot has them, the same object if
        nothing has changed."""
        self._note_members(change.workloads, self._note_services(change.services))
        changed: dict[str, tuple[bytes, ...]] = {}
        for host in {_split(name)[1] for name in change.services}:
            answers = self._answers(host)
            changed.update(dict.fromkeys(self._keys.pop(host, ()), ()) | answers)
            if answers:
                self._keys[host] = tuple(answers)
        differing = {key: value for key, value in changed.items() if self._names.get(key, ()) != value}
        if differing:
            self._names = {**self._names, **differing}
            for key, value in differing.items():
                if not value:
                    del self._names[key]
        return self._names

    # -- services and workloads --

    def _note_services(self, names: Iterable[str]) -> set[str]:
        """Services came, changed or went; returns those whose workloads are to be looked for."""
        unknown: set[str] = set()
        for name in names:
            service, host = self._index.service(name), _split(name)[1]
            if service is None or not self._takes(host):
                self._forget(name, host)
                continue
            self._owners.setdefault(host, set()).add(name)
            if service.addresses:
                self._members.pop(name, None)
            elif name not in self._members:
                self._members[name] = {}
                unknown.add(name)
        return unknown

    def _takes(self, host: str) -> bool:
        if not _HOST.fullmatch(host) or len(host) > _HOST_LIMIT:
            return False
        if host in self._owners or len(self._owners) < NAMES_LIMIT:
            return True
        if not self.left_out:
            logger.warning("more than %d hosts: DNS of those that come now is not answered here", NAMES_LIMIT)
        self.left_out += 1
        return False

    def _forget(self, name: str, host: str) -> None:
        self._members.pop(name, None)
        owners = self._owners.get(host, set())
        owners.discard(name)
        if not owners:
            self._owners.pop(host, None)

    def _note_members(self, uids: Iterable[str], unknown: set[str]) -> None:
        """Workloads came, changed or went; those of `unknown` services are among all that there are."""
        for uid in uids:
            for service in self._memberships.pop(uid, ()):
                self._members.get(service, {}).pop(uid, None)
            entry = self._index.workload(uid)
            if entry is not None:
                self._join(entry, self._members)
        if unknown:
            for entry in self._index.workloads():
                self._join(entry, unknown)

    def _join(self, entry: WorkloadEntry, services: Container[str]) -> None:
        joined = [name for name, _ in entry.services if name in services]
        if not joined:
            return
        uid = entry.ref.uid
        for service in joined:
            self._members[service][uid] = entry
        self._memberships[uid] = tuple({*self._memberships.get(uid, ()), *joined})

    # -- answers --

    def _answers(self, host: str) -> dict[str, tuple[bytes, ...]]:
        """The names of a host: for everybody that of its canonical service, else the first; for clients in the
        namespace of one of several services, or of one that is for them alone, that one's."""
        found: dict[str, tuple[bytes, ...]] = {}
        services = {name: self._index.service(name) for name in sorted(self._owners.get(host, ()))}
        owners = [(name, service) for name, service in services.items() if service is not None]
        for name, service in sorted(owners, key=lambda owner: not owner[1].canonical):
            addresses = self._addresses(name, service)
            if not addresses:
                continue
            if not service.private:
                found.setdefault(host, addresses)
            if service.private or len(owners) > 1:
                found[f"{host}/{_split(name)[0]}"] = addresses
        return found

    def _addresses(self, name: str, service: ServiceEntry) -> tuple[bytes, ...]:
        if service.addresses:
            return service.addresses[:ADDRESSES_LIMIT]
        members = self._members.get(name, {}).values()
        found = {
            address
            for entry in members
            if (entry.healthy or service.lists_unhealthy) and not self._index.is_elsewhere(entry)
            for address in entry.addresses
        }
        return tuple(sorted(found)[:ADDRESSES_LIMIT])


def _split(name: str) -> tuple[str, str]:
    """Namespace and host of a service's resource name."""
    namespace, _, host = name.partition("/")
    return namespace, host.lower()
