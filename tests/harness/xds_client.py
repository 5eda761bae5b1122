"""Clients of the tests' own for an ADS server: they say exactly what a test tells them to, nothing by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from nodeagent.proto import workload_pb2

_PREFIX = "type.googleapis.com/"
CDS = _PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = _PREFIX + "envoy.config.listener.v3.Listener"
RDS = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
VHDS = _PREFIX + "envoy.config.route.v3.VirtualHost"
ADDRESS = _PREFIX + workload_pb2.Address.DESCRIPTOR.full_name
AUTHORIZATION = _PREFIX + "istio.security.Authorization"


def node(
    pod: str = "web",
    namespace: str = "default",
    address: str = "10.0.0.1",
    kind: str = "sidecar",
    on_demand: bool = False,
    labels: Mapping[str, str] | None = None,
    features: Iterable[str] = (),
    on: str = "",
) -> Any:
    """A node message as Istio's proxies send it."""
    found = base_pb2.Node(id=f"{kind}~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local")
    if on_demand:
        found.client_features.append("nodeagent.on-demand")
    found.client_features.extend(features)
    if on:
        found.metadata.update({"NODE_NAME": on})
    if labels is not None:
        found.metadata.update({"LABELS": dict(labels)})
    return found


class _Client:
    """A stream; `receive` and `silence` look at what the server says."""

    def __init__(self, target: str, who: Any) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self.stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(self._channel)
        self.node = who
        self.call: Any = None

    async def send(self, request: Any) -> None:
        await asyncio.wait_for(self.call.write(request), 5)

    async def receive(self, type_url: str = "", timeout: float = 5) -> Any:
        """The next response; AssertionError if it is of another type."""
        response = await asyncio.wait_for(self.call.read(), timeout)
        assert response is not grpc.aio.EOF, (await self.call.code(), await self.call.details())
        assert type_url in ("", response.type_url), f"expected {type_url}, got {response.type_url}"
        return response

    async def silence(self, seconds: float = 0.3) -> None:
        """Assert that the server says nothing for a while."""
        with contextlib.suppress(asyncio.TimeoutError):
            response = await asyncio.wait_for(asyncio.shield(self._pending_read()), seconds)
            raise AssertionError(f"unexpected response: {response}")

    def _pending_read(self) -> asyncio.Task[Any]:
        """A read that outlives a silence: cancelling one would end the call."""
        task = asyncio.ensure_future(self.call.read())
        original = self.call.read

        async def resumed() -> Any:
            self.call.read = original
            return await task

        self.call.read = resumed
        return task

    async def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
        await self._channel.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class DeltaClient(_Client):
    """The delta variant."""

    async def __aenter__(self) -> DeltaClient:
        self.call = self.stub.DeltaAggregatedResources()
        return self

    async def ask(
        self,
        type_url: str,
        subscribe: Iterable[str] = (),
        unsubscribe: Iterable[str] = (),
        *,
        nonce: str = "",
        error: str = "",
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request."""
        request = discovery_pb2.DeltaDiscoveryRequest(
            node=self.node,
            type_url=type_url,
            resource_names_subscribe=list(subscribe),
            resource_names_unsubscribe=list(unsubscribe),
            response_nonce=nonce,
            initial_resource_versions=dict(versions or {}),
        )
        if error:
            request.error_detail.message = error
        await self.send(request)

    async def ack(self, response: Any) -> None:
        await self.ask(response.type_url, nonce=response.nonce)

    async def fetch(self, type_url: str, *names: str) -> Any:
        """Subscribe, receive, acknowledge."""
        await self.ask(type_url, names)
        response = await self.receive(type_url)
        await self.ack(response)
        return response


class SotwClient(_Client):
    """The state-of-the-world variant."""

    async def __aenter__(self) -> SotwClient:
        self.call = self.stub.StreamAggregatedResources()
        return self

    async def ask(
        self, type_url: str, names: Iterable[str] = (), *, version: str = "", nonce: str = "", error: str = ""
    ) -> None:
        """Send a request."""
        request = discovery_pb2.DiscoveryRequest(
            node=self.node,
            type_url=type_url,
            resource_names=list(names),
            version_info=version,
            response_nonce=nonce,
        )
        if error:
            request.error_detail.message = error
        await self.send(request)

    async def ack(self, response: Any, names: Iterable[str] = ()) -> None:
        await self.ask(response.type_url, names, version=response.version_info, nonce=response.nonce)

    async def fetch(self, type_url: str, *names: str) -> Any:
        """Subscribe, receive, acknowledge."""
        await self.ask(type_url, names)
        response = await self.receive(type_url)
        await self.ack(response, names)
        return response


def names(response: Any) -> set[str]:
    """Names of the resources of a delta response."""
    return {resource.name for resource in response.resources}


def unpack(resource: Any, message: Any) -> Any:
    """The message in a delta Resource or a bare Any."""
    packed = getattr(resource, "resource", resource)
    found = message()
    assert packed.Unpack(found), packed.type_url
    return found
