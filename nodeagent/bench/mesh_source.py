"""A mesh of any size as a source of the control plane: made up, and the same each time.

Service 0 is the one that is used: its only ready endpoint is one of two addresses, and `move()` changes which.
Every service has ten endpoints, each a pod, as in a cluster; the pods of other services are on other nodes.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from nodeagent.controlplane.sources.base import Batch, ObjectKey, RawObject

ENDPOINTS: Final = 10
NAMESPACES: Final = 100
PODS_A_NODE: Final = 110
PORT: Final = 80
CLIENT_ADDRESS: Final = "10.0.0.5"
USED_ADDRESSES: Final = ("10.0.1.1", "10.0.1.2")
USED_SERVICE: Final = "svc-0.default.svc.cluster.local"
_SERVICES_FROM: Final = ipaddress.IPv4Address("10.96.0.1")
_PODS_FROM: Final = ipaddress.IPv4Address("10.128.0.1")
_CREATED: Final = 1_700_000_000.0


def service_address(index: int) -> str:
    """The virtual address of a service."""
    return str(_SERVICES_FROM + index)


class GeneratedSource:
    """Implements controlplane.sources.base.Source."""

    def __init__(self, services: int, target_port: int) -> None:
        self._services = services
        self._target_port = target_port
        self._changes: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._used = 0

    async def load(self) -> Batch:
        """The whole mesh."""
        return Batch(changed=tuple(self._objects()))

    async def watch(self) -> AsyncIterator[Batch]:
        """What move() does."""
        while (batch := await self._changes.get()) is not None:
            yield batch

    def close(self) -> None:
        """End watch()."""
        self._changes.put_nowait(None)

    def describe(self) -> dict[str, Any]:
        """How large it is."""
        return {"services": self._services, "endpoints": ENDPOINTS * self._services}

    def move(self) -> str:
        """Change one endpoint of service 0: where it is from now on."""
        self._used = 1 - self._used
        self._changes.put_nowait(Batch(changed=(self._slice(0),)))
        return USED_ADDRESSES[self._used]

    # -- objects --

    def _objects(self) -> Iterator[RawObject]:
        yield _pod("default", "client", CLIENT_ADDRESS, "client", "node")
        for index in range(self._services):
            yield self._service(index)
            yield self._slice(index)
            for number, address in enumerate(self._addresses(index)):
                node = f"node-{(index * ENDPOINTS + number) // PODS_A_NODE}"
                yield _pod(_namespace(index), f"svc-{index}-{number}", address, f"svc-{index}", node)

    def _addresses(self, index: int) -> list[str]:
        return [str(_PODS_FROM + index * ENDPOINTS + number) for number in range(ENDPOINTS)]

    def _service(self, index: int) -> RawObject:
        spec = {
            "clusterIP": service_address(index),
            "selector": {"app": f"svc-{index}"},
            "ports": [{"name": "http", "port": PORT, "targetPort": self._target_port}],
        }
        return _object("", "v1", "Service", _namespace(index), f"svc-{index}", {"spec": spec})

    def _slice(self, index: int) -> RawObject:
        namespace = _namespace(index)
        endpoints = [
            {
                "addresses": [address],
                "conditions": {"ready": index != 0},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"svc-{index}-{number}"},
            }
            for number, address in enumerate(self._addresses(index))
        ]
        if index == 0:
            endpoints[0] = {"addresses": [USED_ADDRESSES[self._used]], "conditions": {"ready": True}}
        body = {
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": self._target_port}],
            "endpoints": endpoints,
        }
        labels = {"kubernetes.io/service-name": f"svc-{index}"}
        group = "discovery.k8s.io"
        return _object(group, "v1", "EndpointSlice", namespace, f"svc-{index}", body, labels)


def _namespace(index: int) -> str:
    return f"ns-{index % NAMESPACES}" if index else "default"


def _pod(namespace: str, name: str, address: str, app: str, node: str) -> RawObject:
    body = {
        "spec": {"nodeName": node, "serviceAccountName": app},
        "status": {"podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]},
    }
    return _object("", "v1", "Pod", namespace, name, body, {"app": app, "version": "v1"})


def _object(
    group: str,
    version: str,
    kind: str,
    namespace: str,
    name: str,
    body: dict[str, Any],
    labels: dict[str, str] | None = None,
) -> RawObject:
    document = {
        "apiVersion": f"{group}/{version}" if group else version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        **body,
    }
    return RawObject(ObjectKey(group, kind, namespace, name), version, document, "generated", _CREATED)
