"""Keys that sign service account tokens: a JWKS (RFC 7517) from a file or an https URL, kept fresh."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt

from nodeagent.errors import ConfigError, IdentityError

log = logging.getLogger(__name__)

MAX_BYTES: Final = 1 << 20
MAX_KEYS: Final = 100
REFRESH_SECONDS: Final = 20 * 60.0
"""Istio's default for jwksUri."""
RETRY_SECONDS: Final = 10.0
"""Between two fetches because of a key that is not known: anybody can send such a token."""
FETCH_TIMEOUT: Final = 5.0


class KeySet:
    """The keys by id. The last good set stays while the source cannot be read.

    `token` is a file with a bearer token that a server at a URL wants, read anew each time: the API server of
    Kubernetes tells its keys to service accounts.
    """

    def __init__(self, source: str, root: Path | None = None, token: Path | None = None) -> None:
        self._root = root
        self._token = token
        self._path = None if source.startswith("https://") else Path(source.removeprefix("file://"))
        self._url = source if self._path is None else ""
        if source.startswith("http://"):
            raise ConfigError(f"--jwks {source}: keys that decide who somebody is are fetched by https only")
        self._keys: dict[str, jwt.PyJWK] = {}
        self._tried = 0.0
        self._stamp: tuple[int, int, int] | None = None
        self._busy = asyncio.Lock()
        self.last_error = ""

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """The key of an id; with an empty id, the only key there is. None: not known, even after a fresh look."""
        async with self._busy:
            if self._is_due(kid):
                await self._refresh()
        if not kid and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _is_due(self, kid: str) -> bool:
        """Whether to look at the source: a file always, a URL when the keys are old or one is missing."""
        if self._path is not None or not self._tried:
            return True
        age = time.monotonic() - self._tried
        return age > (REFRESH_SECONDS if kid in self._keys else RETRY_SECONDS)

    async def _refresh(self) -> None:
        self._tried = time.monotonic()
        try:
            text = self._read_file() if self._path is not None else await self._fetch()
            if text is not None:
                self._keys = parse_keys(text)
                log.info("%d keys from %s", len(self._keys), self._path or self._url)
            error = ""
        except (OSError, aiohttp.ClientError, TimeoutError, IdentityError) as failure:
            error = f"--jwks {self._path or self._url}: {failure or type(failure).__name__}"
        if error and error != self.last_error:
            log.error("%s; %d keys of before stay in use", error, len(self._keys))
        self.last_error = error

    def _read_file(self) -> bytes | None:
        """Its content if it has changed."""
        assert self._path is not None
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp == self._stamp:
            return None
        with self._path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        self._stamp = stamp
        return content

    async def _fetch(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT)
        context = ssl.create_default_context(cafile=self._root)
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}"} if self._token else {}
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False, headers=headers) as session,
            session.get(self._url, allow_redirects=False, ssl=context) as response,
        ):
            if response.status != 200:
                raise IdentityError(f"the server answers {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    break  # parsing refuses it
            return bytes(body)


def parse_keys(text: bytes) -> dict[str, jwt.PyJWK]:
    """The usable keys of a JWKS by id; IdentityError if it is none. Keys of other kinds are left out."""
    if len(text) > MAX_BYTES:
        raise IdentityError(f"over {MAX_BYTES} bytes")
    try:
        entries = json.loads(text)["keys"]
        if not isinstance(entries, list):
            raise TypeError("keys is not a list")
    except (ValueError, KeyError, TypeError) as error:
        raise IdentityError(f"not a JSON Web Key Set: {error}") from error
    keys = {}
    for entry in entries[:MAX_KEYS]:
        found = _key(entry)
        if found is not None:
            keys[found.key_id or ""] = found
    if not keys:
        raise IdentityError("no RSA or elliptic curve key in it")
    return keys


def _key(entry: Any) -> jwt.PyJWK | None:
    """A key for verifying signatures; symmetric ones are not taken, they would sign as well."""
    if (
        not isinstance(entry, dict)
        or entry.get("kty") not in ("RSA", "EC", "OKP")
        or entry.get("use", "sig") != "sig"
    ):
        return None
    try:
        return jwt.PyJWK(entry)
    except jwt.PyJWTError as error:
        log.warning("a key of the JWKS cannot be used: %s", error)
        return None
