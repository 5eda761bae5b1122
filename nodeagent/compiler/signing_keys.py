"""Key sets of token issuers (JWKS, RFC 7517) as public keys that the engine takes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from nodeagent.snapshot.policies import SigningKey

MAX_KEYS: Final = 100
"""Keys of one set; what is above is left out."""
MAX_BYTES: Final = 1 << 20
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_MIN_RSA_BITS: Final = 1024
_MAX_RSA_BITS: Final = 16384
_CACHED_SETS: Final = 256
"""Key sets whose keys are kept, since the same one stands in each listener of the node."""


@lru_cache(_CACHED_SETS)
def read_key_set(text: str) -> tuple[tuple[SigningKey, ...], tuple[str, ...]]:
    """(the usable keys of a set, what is wrong with the others). Bad text is a set without keys."""
    if len(text) > MAX_BYTES:
        return (), (f"the key set is longer than {MAX_BYTES} bytes",)
    try:
        listed = json.loads(text)["keys"]
        items = [item for item in listed if isinstance(item, dict)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return (), ("not a JSON Web Key Set (RFC 7517)",)
    problems = [f"only the first {MAX_KEYS} of {len(items)} keys are taken"] if len(items) > MAX_KEYS else []
    keys = []
    for index, item in enumerate(items[:MAX_KEYS]):
        try:
            key = _read_key(item)
        except ValueError as error:
            problems.append(f"keys[{index}]: {error}")
            continue
        if key is not None:
            keys.append(key)
    return tuple(keys), tuple(problems)


def _read_key(item: Mapping[str, Any]) -> SigningKey | None:
    """A key; None for one that is not for signatures. ValueError says what is wrong with it."""
    from cryptography.hazmat.primitives import serialization

    operations = item.get("key_ops")
    if item.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    kind = item.get("kty")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(f"kty {kind!r} is not RSA, EC or OKP")
    der = reader(item).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SigningKey(_text(item, "kid"), _text(item, "alg"), der)


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is no string")
    return value


def _bytes(item: Mapping[str, Any], name: str) -> bytes:
    # Some issuers pad, against RFC 7515.
    value = _text(item, name).rstrip("=")
    if not value:
        raise ValueError(f"{name} is missing")
    if not _BASE64URL.fullmatch(value) or len(value) % 4 == 1:
        raise ValueError(f"{name} is not base64url")
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def _rsa(item: Mapping[str, Any]) -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa

    n, e = (int.from_bytes(_bytes(item, name)) for name in ("n", "e"))
    if not _MIN_RSA_BITS <= n.bit_length() <= _MAX_RSA_BITS:
        raise ValueError(f"an RSA key of {n.bit_length()} bits")
    return rsa.RSAPublicNumbers(e, n).public_key()


def _elliptic(item: Mapping[str, Any]) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    curves: dict[str, ec.EllipticCurve] = {
        "P-256": ec.SECP256R1(),
        "P-384": ec.SECP384R1(),
        "P-521": ec.SECP521R1(),
    }
    curve = curves.get(_text(item, "crv"))
    if curve is None:
        raise ValueError(f"crv {item.get('crv')!r} is not P-256, P-384 or P-521")
    x, y = (int.from_bytes(_bytes(item, name)) for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()


def _edwards(item: Mapping[str, Any]) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if item.get("crv") != "Ed25519":
        raise ValueError(f"crv {item.get('crv')!r} is not Ed25519")
    return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(item, "x"))


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    "RSA": _rsa,
    "EC": _elliptic,
    "OKP": _edwards,
}
