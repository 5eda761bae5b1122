"""Fetches the key sets that RequestAuthentications want: at once, every 20 minutes, and soon again after a failure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from nodeagent.controlplane.istio.key_sets import (
    MAX_BYTES,
    KeySetError,
    KeySource,
    is_url,
    public_key_set,
    source_of,
)
from nodeagent.controlplane.istio.security_values import RequestAuthentication
from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.report import Issue, Report, Severity

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 20 * 60.0
"""As istiod (PILOT_JWT_PUB_KEY_REFRESH_INTERVAL)."""
RETRY_SECONDS: Final = (1.0, 60.0)
"""The first wait after a failure, and the longest: each is twice the one before."""
MAX_AT_ONCE: Final = 8
MAX_REDIRECTS: Final = 3
_DISCOVERY: Final = "/.well-known/openid-configuration"
_TIMEOUT: Final = timedelta(seconds=5)
_LONGEST_TIMEOUT: Final = timedelta(seconds=60)


@dataclass(slots=True)
class _Fetching:
    """What is known of one source."""

    policies: Sequence[RequestAuthentication]
    task: asyncio.Task[None] | None = None
    tried: bool = False
    good: bool = False

    def timeout(self, source: KeySource) -> timedelta:
        """The longest that a rule allows."""
        rules = (rule for policy in self.policies for rule in policy.rules if source_of(rule) == source)
        longest = max((rule.timeout or _TIMEOUT for rule in rules), default=_TIMEOUT)
        return min(longest, _LONGEST_TIMEOUT)


class KeyFetcher:
    """Keeps key sets fresh. `put` takes each one fetched; the last good one stays while there is none."""

    def __init__(
        self,
        put: Callable[[KeySource, str], None],
        forget: Callable[[KeySource], None],
        report: Report,
        metrics: Metrics,
        root: Path | None = None,
        limit: int = 500,
    ) -> None:
        """`limit`: sources that are fetched; `root`: PEM file of roots to know servers by, besides the machine's."""
        self._put = put
        self._forget = forget
        self._report = report
        self._metrics = metrics
        self._root = root
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None
        self._ssl: ssl.SSLContext | None = None
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._fetching: dict[KeySource, _Fetching] = {}
        self._tried = asyncio.Event()

    def want(self, sources: Mapping[KeySource, Sequence[RequestAuthentication]]) -> None:
        """Fetch these from now on, and no others."""
        taken = dict(sorted(sources.items())[: self._limit])
        for source in self._fetching.keys() - taken.keys():
            self._drop(source)
        for source, policies in taken.items():
            known = self._fetching.setdefault(source, _Fetching(policies))
            known.policies = policies
            if known.task is None:
                known.task = asyncio.create_task(self._keep(source, known))
        left_out = [item for source, item in sources.items() if source not in taken]
        self._metrics.key_sets_left_out.set(len(left_out))
        issues = [
            _issue(item, f"more key sets than --key-sets {self._limit}")
            for items in left_out
            for item in items
        ]
        self._report.replace(("keys",), issues)

    async def first_attempts(self, seconds: float) -> None:
        """Return when each source was tried once, or when that time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(item.tried for item in self._fetching.values()):
                    self._tried.clear()
                    await self._tried.wait()

    async def close(self) -> None:
        """Stop fetching."""
        tasks = [item.task for item in self._fetching.values() if item.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _drop(self, source: KeySource) -> None:
        dropped = self._fetching.pop(source)
        if dropped.task is not None:
            dropped.task.cancel()
        self._report.replace(("keys", source), ())
        self._forget(source)

    async def _keep(self, source: KeySource, state: _Fetching) -> None:
        """Fetch one source again and again."""
        waits = _backoff()
        while True:
            good = await self._try(source, state)
            if good:
                waits = _backoff()
            wait = REFRESH_SECONDS if good else next(waits)
            # Spread, so that many sources of one server are not fetched together for ever.
            await asyncio.sleep(wait * random.uniform(0.9, 1.0))  # noqa: S311

    async def _try(self, source: KeySource, state: _Fetching) -> bool:
        seconds = state.timeout(source).total_seconds()
        try:
            async with self._places, asyncio.timeout(seconds):
                text = await self._fetch(source)
        except TimeoutError:
            self._failed(source, state, f"no answer within {seconds:g} s")
            return False
        except aiohttp.TooManyRedirects:
            self._failed(source, state, f"the server redirects more than {MAX_REDIRECTS} times")
            return False
        except (OSError, aiohttp.ClientError, KeySetError) as error:
            self._failed(source, state, _reason(error))
            return False
        finally:
            state.tried = True
            self._tried.set()
        self._metrics.key_fetches.labels("fetched").inc()
        self._report.replace(("keys", source), ())
        state.good = True
        self._put(source, text)
        return True

    def _failed(self, source: KeySource, state: _Fetching, reason: str) -> None:
        self._metrics.key_fetches.labels("failed").inc()
        then = "the last good ones stay in force" if state.good else "until then its tokens are refused"
        what = f"keys of {source.url} cannot be fetched: {reason}; {then}"
        self._report.replace(("keys", source), [_issue(policy, what) for policy in state.policies])

    async def _fetch(self, source: KeySource) -> str:
        url = source.url
        if source.discovered:
            url = _keys_url(await self._get(url.rstrip("/") + _DISCOVERY))
        return public_key_set(await self._get(url))

    async def _get(self, url: str) -> str:
        """The body of a URL; redirects are followed, but never from https to http."""
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.get(url, ssl=self._context(), max_redirects=MAX_REDIRECTS) as response:
            schemes = [urlsplit(str(step.url)).scheme for step in (*response.history, response)]
            if "http" in schemes and schemes[0] == "https":
                raise KeySetError("the server redirects from https to http")
            if response.status != 200:
                raise KeySetError(f"the server answers {response.status}")
            body = await response.content.read(MAX_BYTES + 1)
            while len(body) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1 - len(body))):
                body += more
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise KeySetError("the answer is not UTF-8 text") from error

    def _context(self) -> ssl.SSLContext:
        """Made once: reading the machine's roots takes a while."""
        if self._ssl is None:
            context = ssl.create_default_context()
            if self._root is not None:
                context.load_verify_locations(cafile=self._root)
            self._ssl = context
        return self._ssl


def _backoff() -> Iterator[float]:
    wait, longest = RETRY_SECONDS
    while True:
        yield wait
        wait = min(2 * wait, longest)


def _keys_url(document: str) -> str:
    """jwks_uri of an OpenID provider's configuration (OpenID Connect Discovery, section 3)."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise KeySetError(f"its openid-configuration is not JSON: {error}") from error
    url = found.get("jwks_uri") if isinstance(found, dict) else None
    if not isinstance(url, str) or not is_url(url):
        raise KeySetError("its openid-configuration has no jwks_uri")
    return url


def _issue(policy: RequestAuthentication, message: str) -> Issue:
    resource = f"RequestAuthentication {policy.key}"
    return Issue(Severity.ERROR, "no-keys", message, policy.source, resource, "spec.jwtRules")


def _reason(error: Exception) -> str:
    """What people can use of it: aiohttp's own text names Python objects."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return str(error) or type(error).__name__
