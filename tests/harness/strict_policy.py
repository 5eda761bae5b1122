"""Mesh-wide STRICT, as node proxies are told of it."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import json_format

from nodeagent.proto import authorization_pb2

STRICT: Final = "istio-system/istio_converted_static_strict"


def strict_authorization() -> Any:
    """Mesh-wide STRICT, as istiod tells node proxies of it."""
    return json_format.ParseDict(
        {
            "name": "istio_converted_static_strict",
            "namespace": "istio-system",
            "scope": "WORKLOAD_SELECTOR",
            "action": "DENY",
            "rules": [{"clauses": [{"matches": [{"notPrincipals": [{"presence": {}}]}]}]}],
        },
        authorization_pb2.Authorization(),
    )
