"""Guards xDS streams by the same tokens as the CA: configuration goes to whom it concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc

from nodeagent.controlplane.ca.callers import Authenticators, Caller
from nodeagent.controlplane.ca.refusal import Refusal
from nodeagent.controlplane.view import Client
from nodeagent.controlplane.xds.guard import Permit, StreamDenied
from nodeagent.model.workload import Workload

ZTUNNEL: Final = "ztunnel"


class TokenGuard:
    """A node agent may open streams for its node and its node's pods; any other caller for its own namespace."""

    def __init__(
        self, authenticators: Authenticators, workload_named: Callable[[str, str], Workload | None]
    ) -> None:
        self._authenticators = authenticators
        self._workload_named = workload_named

    async def admit(self, metadata: Iterable[tuple[str, Any]]) -> Permit:
        """Know the caller by its token."""
        try:
            caller = await self._authenticators.caller(metadata)
        except Refusal as refusal:
            raise StreamDenied(refusal.code, refusal.message) from refusal
        return lambda client: self._check(caller, client)

    def _check(self, caller: Caller, client: Client) -> None:
        if caller.is_node and client.kind == ZTUNNEL:
            return
        pod = self._workload_named(client.namespace, client.pod)
        name = repr(f"{client.namespace}/{client.pod}")
        if caller.is_node:
            if pod is None or not caller.node or pod.node != caller.node:
                where = f"node {caller.node}" if caller.node else "its node, which is not known"
                raise _denied(f"{caller.name}: no pod {name} is known on {where}")
            return
        assert caller.identity is not None
        if client.namespace != caller.identity.namespace:
            raise _denied(f"{caller.name} cannot be a proxy of namespace {client.namespace!r}")
        if pod is not None and pod.service_account != caller.identity.service_account:
            raise _denied(f"{caller.name}: pod {name} has another service account")


def _denied(message: str) -> StreamDenied:
    return StreamDenied(grpc.StatusCode.PERMISSION_DENIED, message)
