"""Identities of workloads: SPIFFE IDs with the path that Istio gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nodeagent.model.names import spiffe_id

MAX_ID_BYTES: Final = 2048
"""SPIFFE-ID, section 2.3."""
_SCHEME: Final = "spiffe://"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)


def check_trust_domain(text: str) -> str:
    """Return a trust domain that is one by SPIFFE-ID, section 2.1; ValueError says why it is none."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ValueError(
            f"trust domain {text!r}: use at most 255 lower case letters, digits, '.', '-' and '_'"
        )
    return text


def _check_segment(what: str, text: str) -> None:
    if text in (".", "..") or not _SEGMENT.fullmatch(text):
        raise ValueError(f"{what} {text!r}: not letters, digits, '.', '-' and '_' (SPIFFE-ID, section 2.2)")


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. ValueError if a part could not
    stand in a SPIFFE ID."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        _check_segment("namespace", self.namespace)
        _check_segment("service account", self.service_account)

    def __str__(self) -> str:
        return spiffe_id(self.trust_domain, self.namespace, self.service_account)

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The identity that a URI names; ValueError says why it names none.

        Strict, since it decides who somebody is: no other spelling of the scheme, no port, no escapes, no query.
        """
        if len(text) > MAX_ID_BYTES:
            raise ValueError(f"longer than {MAX_ID_BYTES} bytes")
        if not text.startswith(_SCHEME):
            raise ValueError(f"{text!r} is not a SPIFFE ID: it does not begin with {_SCHEME}")
        parts = text.removeprefix(_SCHEME).split("/")
        if len(parts) != 5 or (parts[1], parts[3]) != ("ns", "sa"):
            raise ValueError(
                f"{text!r} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
            )
        return cls(parts[0], parts[2], parts[4])
