"""Trust domains that a mesh takes for one: its own and its aliases, in principals as policies name them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LOCAL: Final = "cluster.local"
"""In a policy: whatever the mesh's own trust domain is (Istio)."""
_PARTS: Final = 5


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The mesh's trust domain, then its aliases."""

    domains: tuple[str, ...] = (LOCAL,)

    def principals(self, values: Iterable[str]) -> tuple[str, ...]:
        """Principals (`td/ns/NAMESPACE/sa/NAME`) of one of the domains, in every domain; others as they are."""
        found: dict[str, None] = {}
        for value in values:
            found.update(dict.fromkeys(self._in_all_domains(value)))
        return tuple(found)

    def _in_all_domains(self, value: str) -> Iterable[str]:
        domain, _, rest = value.partition("/")
        if value.count("/") != _PARTS - 1 or domain == "*":
            return (value,)
        if domain != LOCAL and not any(_covers(domain, known) for known in self.domains):
            return (value,)
        # A wildcard stays for the domains that it covers.
        return [value if _covers(domain, known) else f"{known}/{rest}" for known in self.domains]

    def trust_domains(self, values: Iterable[str]) -> tuple[str, ...]:
        """Trust domains, with one of the mesh's standing for all of them."""
        found: dict[str, None] = {}
        for value in values:
            found.update(dict.fromkeys(self.domains if value in self.domains else (value,)))
        return tuple(found)


def _covers(pattern: str, domain: str) -> bool:
    """Whether a trust domain, perhaps with a wildcard in front, means that domain."""
    return domain.endswith(pattern[1:]) if pattern.startswith("*") else pattern == domain
