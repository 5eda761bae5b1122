"""Envoy's command operators in header values, such as `%REQ(x-user)%`; `%%` is a percent sign."""

from __future__ import annotations

import re
from typing import Final

COMMANDS: Final = frozenset(
    (
        "BYTES_RECEIVED", "CONNECTION_ID", "HOSTNAME", "PROTOCOL", "REQ", "RESP", "RESPONSE_CODE",
        "RESPONSE_CODE_DETAILS", "ROUTE_NAME", "START_TIME", "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW",
        "UPSTREAM_HOST", "DOWNSTREAM_PEER_URI_SAN",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_DIRECT_REMOTE_PORT", "DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_REMOTE_PORT", "UPSTREAM_LOCAL_ADDRESS", "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        "UPSTREAM_LOCAL_PORT", "UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "UPSTREAM_REMOTE_PORT",
    )
)  # fmt: skip
"""Those that the engine knows (native/src/header_format.c)."""
_OPERATOR: Final = re.compile(r"%(?:%|([A-Z0-9_]+)(?:\([^)]*\))?(?::[0-9]+)?%)")


def unsupported(value: str) -> str:
    """Why the engine cannot make a value; empty if it can."""
    rest = _OPERATOR.sub(lambda match: "" if match[1] is None or match[1] in COMMANDS else match[0], value)
    if "%" not in rest:
        return ""
    unknown = _OPERATOR.search(rest)
    if unknown is None:
        return f"{value!r} has a percent sign that begins no command operator (%% is a percent sign)"
    return f"command operator %{unknown[1]}% is not supported"
