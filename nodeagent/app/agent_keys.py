"""Key sets that inbound listeners name by URI (jwt_authn's remote_jwks): fetched, kept fresh, the last good one kept.

The agent fetches them itself, over the node's network and by the machine's roots, from the URI; the cluster that the
filter names beside it is for proxies that have no resolver of their own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nodeagent.compiler.signing_keys import MAX_BYTES, read_key_set
from nodeagent.compiler.tokens import RemoteKeys
from nodeagent.snapshot.policies import SigningKey
from nodeagent.xds.backoff import Backoff

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 8
MAX_REDIRECTS: Final = 3
SHORTEST_REFRESH: Final = 10.0
LONGEST_TIMEOUT: Final = 60.0
RETRY: Final = (1.0, 60.0)
"""The first wait after a failure, and the longest."""


@dataclass(slots=True)
class _Held:
    """What is known of one set."""

    task: asyncio.Task[None]
    keys: tuple[SigningKey, ...] = ()
    error: str = ""


class KeySets:
    """The key sets that are wanted. `changed` is called when one has other keys than before."""

    def __init__(self, changed: Callable[[], None], limit: int) -> None:
        """`limit`: sets that are fetched; what is above is left out, and its tokens refused."""
        self._changed = changed
        self._limit = limit
        self._held: dict[RemoteKeys, _Held] = {}
        self.left_out = 0
        """Sets above the limit."""
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    def want(self, wanted: Iterable[RemoteKeys]) -> None:
        """Fetch these from now on, and no others."""
        names = sorted(set(wanted), key=lambda keys: (keys.uri, keys.refresh, keys.timeout, keys.cluster))
        taken = set(names[: self._limit])
        self.left_out = len(names) - len(taken)
        for keys in self._held.keys() - taken:
            self._held.pop(keys).task.cancel()
        for keys in taken - self._held.keys():
            self._held[keys] = _Held(asyncio.create_task(self._keep(keys), name=f"keys {keys.uri}"))

    def counts(self) -> tuple[int, int]:
        """How many sets there are, and of how many of these there are no keys."""
        return len(self._held), sum(not held.keys for held in self._held.values())

    def keys_of(self, wanted: RemoteKeys) -> tuple[SigningKey, ...]:
        """The keys of a set; none until it was fetched, so that its tokens are refused."""
        held = self._held.get(wanted)
        return held.keys if held is not None else ()

    async def stop(self) -> None:
        """Fetch no more."""
        tasks = [held.task for held in self._held.values()]
        self._held.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def warnings(self) -> Iterator[str]:
        """Sets that cannot be had, for people."""
        for keys, held in self._held.items():
            if held.error:
                standing = "the last ones stay" if held.keys else "its tokens are refused"
                yield f"key set {keys.uri}: {held.error}; {standing}"
        if self.left_out:
            yield f"{self.left_out} key sets over --key-sets {self._limit} are not fetched; their tokens are refused"

    async def _keep(self, wanted: RemoteKeys) -> None:
        backoff = Backoff(*RETRY)
        while True:
            if await self._refresh(wanted):
                backoff.reset()
                # Spread, so that many sets of one server are not fetched together for ever.
                wait = max(wanted.refresh, SHORTEST_REFRESH) * random.uniform(0.9, 1.0)  # noqa: S311
            else:
                wait = backoff.next()
            await asyncio.sleep(wait)

    async def _refresh(self, wanted: RemoteKeys) -> bool:
        """Fetch a set; True if it is good."""
        try:
            async with self._places:
                text = await self._fetch(wanted)
            keys, problems = read_key_set(text)
            if not keys:
                raise ValueError("; ".join(problems) or "there are no keys in it")
        except Exception as error:
            # Of many kinds: names, sockets, TLS, HTTP, JSON.
            self._note(wanted, str(error) or type(error).__name__)
            return False
        held = self._held[wanted]
        held.error = ""
        if held.keys != keys:
            held.keys = keys
            self._changed()
        return True

    def _note(self, wanted: RemoteKeys, error: str) -> None:
        held = self._held[wanted]
        if held.error != error:
            logger.warning("key set %s: %s", wanted.uri, error)
        held.error = error

    async def _fetch(self, wanted: RemoteKeys) -> str:
        import aiohttp

        if urlsplit(wanted.uri).scheme not in ("http", "https"):
            raise ValueError("the URI is neither http:// nor https://")
        if self._session is None:
            # Only agents that have such sets pay for the library.
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=min(wanted.timeout, LONGEST_TIMEOUT))
        async with self._session.get(
            wanted.uri, timeout=timeout, max_redirects=MAX_REDIRECTS, raise_for_status=True
        ) as answer:
            body = await answer.content.read(MAX_BYTES + 1)
            while len(body) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES + 1 - len(body))):
                body += more
        if len(body) > MAX_BYTES:
            raise ValueError(f"it is longer than {MAX_BYTES} bytes")
        return body.decode("utf-8", "replace")
