"""Virtual addresses for hosts of ServiceEntries that have none, as istiod gives them: out of 240.240.0.0/16 and
2001:2::/48, which lead nowhere. With one, TCP to different hosts on one port can be told apart.

A host's address comes of its name, so that it is mostly the same after a restart and in every replica: only where two
names meet does it depend on which came first.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Final

_V4: Final = int(ipaddress.ip_address("240.240.0.0"))
_V6: Final = int(ipaddress.ip_address("2001:2::"))
_LAST_BYTES: Final = 254
"""Never 0 or 255, which some take for the address of a network or of everybody."""
SIZE: Final = 256 * _LAST_BYTES


class AutoAddresses:
    """Who has which; a key is the host with the entry that it is of."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._taken: dict[int, str] = {}

    def give(self, key: str) -> tuple[str, ...]:
        """The addresses of a key, IPv4 and IPv6, the same until release(); none if there are no more."""
        number = self._given.get(key)
        if number is None:
            number = self._free(key)
            if number is None:
                return ()
            self._given[key], self._taken[number] = number, key
        low = number // _LAST_BYTES << 8 | number % _LAST_BYTES + 1
        return str(ipaddress.ip_address(_V4 + low)), str(ipaddress.ip_address(_V6 + low))

    def release(self, key: str) -> None:
        """Others may have them now."""
        number = self._given.pop(key, None)
        if number is not None:
            del self._taken[number]

    def _free(self, key: str) -> int | None:
        start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        return next((n for probe in range(SIZE) if (n := (start + probe) % SIZE) not in self._taken), None)
