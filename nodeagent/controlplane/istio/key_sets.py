"""JSON Web Key Sets (RFC 7517) as they are passed on to proxies: checked, bounded, public keys only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from nodeagent.controlplane.istio.security_values import JwtRule

MAX_BYTES: Final = 1 << 20
MAX_KEYS: Final = 100
# A point of the curve P-256 made from a text (its x is the SHA-256 of "nodeagent: no key 0"): nobody has its private
# key. Envoy refuses a configuration whose key set is empty.
_NOBODYS: Final = {
    "alg": "ES256",
    "crv": "P-256",
    "kid": "no-key-yet",
    "kty": "EC",
    "use": "sig",
    "x": "vw9IVWh6M5oQwPHhj8IV37nbuRRb1md8j9rLG-OKKp0",
    "y": "EQrovdJE2dcpfZIoGYuHIxIwLYYql2KDYEizlej9EFw",
}
NO_KEYS: Final = json.dumps({"keys": [_NOBODYS]})
"""A key set that verifies nothing."""
_PUBLIC_TYPES: Final = frozenset({"RSA", "EC", "OKP"})
# RFC 7518, sections 6.2.2, 6.3.2 and 6.4; RFC 8037, section 2.
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeySetError(Exception):
    """A text is no key set; says why."""


def public_key_set(text: str) -> str:
    """The key set with what can verify signatures only; as it was written if it holds nothing else.

    Symmetric keys would let every proxy sign tokens, and private keys are nobody else's business.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise KeySetError(f"a key set of over {MAX_BYTES} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeySetError(f"not a JSON Web Key Set: {error}") from error
    keys = body.get("keys") if isinstance(body, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeySetError("not a JSON Web Key Set: it has no list `keys` of objects")
    if len(keys) > MAX_KEYS:
        raise KeySetError(f"{len(keys)} keys; at most {MAX_KEYS} are taken")
    public = [_public(key) for key in keys if key.get("kty") in _PUBLIC_TYPES]
    if not public:
        raise KeySetError("no RSA, elliptic curve or Edwards curve key in it")
    return text if public == keys else json.dumps({"keys": public}, sort_keys=True)


def _public(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in _PRIVATE_MEMBERS}


def is_url(text: str) -> bool:
    """Whether it is an http or https URL."""
    try:
        found = urlsplit(text)
        return found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, order=True)
class KeySource:
    """Where a key set is fetched: at a URL, or where the issuer at that URL says it is (`discovered`)."""

    url: str
    discovered: bool = False


def source_of(rule: JwtRule) -> KeySource | None:
    """Where the key set of a rule is fetched; None if it is given by value, or nobody says where it is."""
    if rule.keys:
        return None
    if rule.keys_uri:
        return KeySource(rule.keys_uri)
    return KeySource(rule.issuer, discovered=True) if is_url(rule.issuer) else None


class KeySets:
    """Key sets by where they came from. One that is not there (yet) verifies nothing."""

    def __init__(self) -> None:
        self._found: dict[KeySource, str] = {}

    def put(self, source: KeySource, text: str) -> bool:
        """Take a key set; whether it is another than before."""
        changed = self._found.get(source) != text
        self._found[source] = text
        return changed

    def forget(self, source: KeySource) -> None:
        """Nobody wants it any more."""
        self._found.pop(source, None)

    def of(self, rule: JwtRule) -> str:
        """The key set of a rule."""
        source = source_of(rule)
        fetched = self._found.get(source, NO_KEYS) if source is not None else NO_KEYS
        return rule.keys or fetched
