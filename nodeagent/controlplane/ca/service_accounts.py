"""Kubernetes service account tokens: who the account is, and on which node its pod runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt

from nodeagent.controlplane.ca.callers import Caller
from nodeagent.controlplane.ca.jwks import KeySet
from nodeagent.controlplane.ca.refusal import Refusal, unauthenticated
from nodeagent.model.identity import Identity

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_SECONDS: Final = 10
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SUBJECT: Final = re.compile(r"system:serviceaccount:([a-z0-9-]{1,63}):([a-z0-9.-]{1,253})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What a good token says. The pod and node are known of tokens that are bound to a pod."""

    namespace: str
    name: str
    pod: str = ""
    node: str = ""


class TokenReviewer(Protocol):
    """Decides whether a token is good: by keys, or by asking the Kubernetes API (TokenReview)."""

    async def review(self, token: str) -> ServiceAccount:
        """Whose token it is; Refusal if it is not good."""
        ...


class JwksReviewer:
    """Checks tokens by the keys of the cluster's issuer (RFC 7519; claims as Kubernetes writes them)."""

    def __init__(self, keys: KeySet, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def review(self, token: str) -> ServiceAccount:
        """Check signature, issuer, audience and times."""
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.PyJWTError as error:
            raise unauthenticated(f"the token is not a JWT: {error}") from error
        key = await self._keys.key(kid)
        if key is None:
            raise unauthenticated(f"the token is signed by key {kid[:64]!r}, which is not in the JWKS")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise self._refusal(error) from error
        return _account(claims)

    def _refusal(self, error: jwt.PyJWTError) -> Refusal:
        match error:
            case jwt.ExpiredSignatureError():
                return unauthenticated("the token has expired", "token-expired")
            case jwt.ImmatureSignatureError():
                return unauthenticated("the token is not valid yet; are the clocks in step?", "token-expired")
            case jwt.InvalidAudienceError():
                return unauthenticated(f"the token is not for audience {self._audience!r}", "token-audience")
            case jwt.InvalidIssuerError():
                return unauthenticated(f"the token's issuer is not {self._issuer!r}", "token-issuer")
            case _:
                return unauthenticated(f"the token is no good: {error}")


def _account(claims: Mapping[str, Any]) -> ServiceAccount:
    subject = _SUBJECT.fullmatch(str(claims["sub"]))
    if subject is None:
        raise unauthenticated("the token's sub is not system:serviceaccount:NAMESPACE:NAME")
    bound = claims.get("kubernetes.io")
    details: Mapping[str, Any] = bound if isinstance(bound, Mapping) else {}
    return ServiceAccount(subject[1], subject[2], _name(details, "pod"), _name(details, "node"))


def _name(details: Mapping[str, Any], kind: str) -> str:
    entry = details.get(kind)
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


class ServiceAccountTokens:
    """Authenticates by service account tokens. `node_of_pod(namespace, pod)` is the node of a pod, or empty."""

    def __init__(
        self,
        reviewer: TokenReviewer,
        trust_domain: str,
        node_accounts: Collection[str],
        node_of_pod: Callable[[str, str], str],
    ) -> None:
        self._reviewer = reviewer
        self._trust_domain = trust_domain
        self._node_accounts = frozenset(node_accounts)
        self._node_of_pod = node_of_pod

    async def authenticate(self, token: str) -> Caller | None:
        """The service account of a JWT."""
        if not _JWT.fullmatch(token):
            return None
        account = await self._reviewer.review(token)
        key = f"{account.namespace}/{account.name}"
        is_node = key in self._node_accounts
        node = account.node or (self._node_of_pod(account.namespace, account.pod) if account.pod else "")
        identity = Identity(self._trust_domain, account.namespace, account.name)
        return Caller(f"service account {key}", identity, is_node, node if is_node else "")
