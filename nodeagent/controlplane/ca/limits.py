"""Bounds on how much callers get: token buckets, and a bounded queue in front of the signing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from nodeagent.controlplane.ca.refusal import exhausted


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at most. Rates are calls a second; bursts are calls."""

    rate: float = 1000.0
    burst: float = 2000.0
    caller_rate: float = 50.0
    caller_burst: float = 500.0
    """A node may hold 250 workloads, and start with all of them at once."""
    concurrent: int = 8
    waiting: int = 1000
    callers: int = 10_000


@dataclass(slots=True)
class TokenBucket:
    """Lets through `burst` at once and `rate` a second in the long run."""

    rate: float
    burst: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.burst
        self.at = time.monotonic()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = time.monotonic()
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


class Gate:
    """Applies the limits; Refusal names the one that bites."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._all = TokenBucket(self._limits.rate, self._limits.burst)
        self._callers: OrderedDict[str, TokenBucket] = OrderedDict()
        self._signing = asyncio.Semaphore(self._limits.concurrent)
        self._waiting = 0

    def admit_call(self) -> None:
        """One call of anybody's: before its token is looked at, which costs a signature check."""
        if not self._all.take():
            raise exhausted(f"more than {self._limits.rate:g} calls a second; try again later", "rate")

    def admit_caller(self, name: str) -> None:
        """One call of a caller that is known."""
        bucket = self._callers.pop(name, None) or TokenBucket(
            self._limits.caller_rate, self._limits.caller_burst
        )
        self._callers[name] = bucket
        if len(self._callers) > self._limits.callers:
            self._callers.popitem(last=False)
        if not bucket.take():
            rate = self._limits.caller_rate
            raise exhausted(f"{name}: more than {rate:g} calls a second; try again later", "caller-rate")

    @asynccontextmanager
    async def signing(self) -> AsyncIterator[None]:
        """A place at the signing, waited for in a queue of bounded length."""
        if self._waiting >= self._limits.waiting:
            raise exhausted(f"{self._waiting} calls wait to be signed; try again later", "queue")
        self._waiting += 1
        try:
            await self._signing.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._signing.release()


LOG_RATE: Final = 10.0
"""Refusals logged a second: callers that nobody knows can cause them."""
