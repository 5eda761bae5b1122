"""Who calls: bearer tokens to callers. Each kind of token has its authenticator; the first that knows it decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from nodeagent.controlplane.ca.refusal import unauthenticated
from nodeagent.model.identity import Identity

MAX_TOKEN_BYTES: Final = 16 << 10
_SCHEME: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who has proved who they are."""

    name: str
    """For logs and messages: `node node-a`, `service account default/web`."""
    identity: Identity | None = None
    """The caller's own; None: it has none and can only ask for others'."""
    is_node: bool = False
    """A node agent: it may ask for the identities of its node's workloads."""
    node: str = ""
    """The node it runs on; empty: not known."""


class Authenticator(Protocol):
    """Knows one kind of token."""

    async def authenticate(self, token: str) -> Caller | None:
        """The caller; None if the token is of another kind; Refusal if it is of this kind and no good."""
        ...


class Authenticators:
    """All that are configured."""

    def __init__(self, kinds: Iterable[Authenticator]) -> None:
        self._kinds = tuple(kinds)

    async def caller(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        """Who a call is from, by its metadata; Refusal if that does not prove it."""
        token = _bearer(metadata)
        for kind in self._kinds:
            found = await kind.authenticate(token)
            if found is not None:
                return found
        raise unauthenticated("the token is of no kind that is accepted here (--jwks, --node-tokens)")


def _bearer(metadata: Iterable[tuple[str, Any]]) -> str:
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise unauthenticated("no token: send `authorization: Bearer <token>`", "no-token")
    if len(values) > 1:
        raise unauthenticated("more than one authorization header")
    value = values[0] if isinstance(values[0], str) else ""
    if not value.lower().startswith(_SCHEME) or not value[len(_SCHEME) :].strip():
        raise unauthenticated("the authorization header is not of the form `Bearer <token>`")
    token = value[len(_SCHEME) :].strip()
    if len(token) > MAX_TOKEN_BYTES:
        raise unauthenticated(f"the token has more than {MAX_TOKEN_BYTES} bytes")
    return token
