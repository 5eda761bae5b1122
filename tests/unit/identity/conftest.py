from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from harness import pki

from nodeagent.controlplane.ca.authority import Authority
from nodeagent.errors import IdentityError
from nodeagent.identity.manager import IdentityManager
from nodeagent.model.identity import Identity
from nodeagent.xds.backoff import Backoff


@dataclass
class MemoryCa:
    """A CaClient that signs by itself: real certificates, and whatever goes wrong on request."""

    authority: Authority
    calls: list[Identity] = field(default_factory=list)
    failure: IdentityError | Exception | None = None
    lifetime: float | None = None
    gate: asyncio.Event | None = None
    running: int = 0
    most_running: int = 0
    alter: Callable[[Sequence[str]], Sequence[str]] = lambda chain: chain
    names: list[str] | None = None

    async def sign(self, csr: str, identity: Identity, lifetime: float) -> Sequence[str]:
        self.calls.append(identity)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            request = x509.load_pem_x509_csr(csr.encode())
            names = [pki.uri(name) for name in self.names or [str(identity)]]
            used = self.lifetime if self.lifetime is not None else lifetime
            return self.alter(pki.leaf(self.authority, _Holder(request.public_key()), *names, lifetime=used))
        finally:
            self.running -= 1


class _Holder:
    """A key of which only the public half is known."""

    def __init__(self, public_key: Any) -> None:
        self._public_key = public_key

    def public_key(self) -> Any:
        return self._public_key


@pytest.fixture
def ca(tmp_path: Path) -> MemoryCa:
    return MemoryCa(pki.authority(tmp_path / "ca"))


@pytest.fixture
async def manager(ca: MemoryCa) -> AsyncIterator[IdentityManager]:
    found = IdentityManager(ca, 3600.0, backoff=lambda: Backoff(0.05, 0.2))
    found.start()
    yield found
    await found.stop()
