"""Virtual addresses of services: kept when the user fixed them, else chosen by a hash of the name.

The choice depends on the name alone unless two names meet, so a service keeps its address across `delete` and
`apply`, and mostly across labs. What was given is remembered on disk.
"""

from __future__ import annotations

import hashlib
import json
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from nodeagent.errors import LabError
from nodeagent.lab.plan import DNS4, SERVICE_NETWORK4, SERVICE_NETWORK6
from nodeagent.lab.services import Address, ServiceSpec

# Below this host number nothing is chosen: room for the DNS service and for addresses that people fix.
_RESERVED: Final = 256
_SIZE: Final = 65536 - 1


class VirtualIps:
    """The allocations of a lab, by `namespace/name`; `file` keeps them across supervisors."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._given: dict[str, tuple[Address, ...]] = {}
        if file is not None and file.exists():
            stored = json.loads(file.read_text())
            self._given = {key: tuple(map(ip_address, values)) for key, values in stored.items()}

    def allocate(self, spec: ServiceSpec) -> tuple[Address, ...]:
        """Return a service's addresses, the IPv4 one first unless the user fixed another order.

        Raises LabError when a fixed address is not free or not of the service network.
        """
        if spec.headless or spec.external_name:
            self._given.pop(spec.key, None)
            return ()
        if spec.cluster_ips:
            addresses = self._complete(spec)
        else:
            addresses = self._kept(spec) or _of_families(self._choose(spec.key), spec)
        if self._given.get(spec.key) != addresses:
            self._given[spec.key] = addresses
            self._save()
        return addresses

    def release(self, key: str) -> None:
        """Forget a service's addresses."""
        if self._given.pop(key, None):
            self._save()

    def given(self) -> dict[str, tuple[Address, ...]]:
        """Return all allocations."""
        return dict(self._given)

    def _kept(self, spec: ServiceSpec) -> tuple[Address, ...]:
        known = self._given.get(spec.key, ())
        return known if tuple(address.version for address in known) == spec.families else ()

    def _taken(self, but: str) -> set[Address]:
        return {address for key, addresses in self._given.items() if key != but for address in addresses}

    def _complete(self, spec: ServiceSpec) -> tuple[Address, ...]:
        taken = self._taken(spec.key)
        for address in spec.cluster_ips:
            network: IPv4Network | IPv6Network = (
                SERVICE_NETWORK4 if address.version == 4 else SERVICE_NETWORK6
            )
            number = int(address) - int(network.network_address)
            if address not in network or number in (0, int(DNS4) & 0xFFFF):
                raise LabError(
                    f"Service {spec.key}: spec.clusterIP: {address} is not a free address of {network}"
                )
            if address in taken:
                raise LabError(f"Service {spec.key}: spec.clusterIP: {address} belongs to another Service")
        return _of_families((*spec.cluster_ips, *self._choose(spec.key)), spec)

    def _choose(self, key: str) -> tuple[Address, ...]:
        taken = self._taken(key)
        start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        for probe in range(_SIZE - _RESERVED):
            number = _RESERVED + (start + probe) % (_SIZE - _RESERVED)
            pair = (SERVICE_NETWORK4[number], SERVICE_NETWORK6[number])
            if not taken.intersection(pair):
                return pair
        raise LabError(f"Service {key}: no free address left in {SERVICE_NETWORK4}")

    def _save(self) -> None:
        if self._file is None:
            return
        stored = {key: [str(address) for address in addresses] for key, addresses in self._given.items()}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(stored, indent=1))
        fresh.replace(self._file)


def _of_families(addresses: tuple[Address, ...], spec: ServiceSpec) -> tuple[Address, ...]:
    """Pick the first address of each family that the service is to have."""
    return tuple(next(a for a in addresses if a.version == family) for family in spec.families)
