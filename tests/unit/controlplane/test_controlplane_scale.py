"""What must stay cheap with many services: a change of one endpoint."""

from __future__ import annotations

import time
from typing import Any

from nodeagent.controlplane.metrics import Metrics
from nodeagent.controlplane.sources.base import Batch, ObjectKey, RawObject
from nodeagent.controlplane.view import Perspective, View
from nodeagent.controlplane.xds.hub import Hub
from nodeagent.controlplane.xds.subscription import Subscription

SERVICES = 2000
PODS_EACH = 5


def raw(kind: str, namespace: str, name: str, body: dict[str, Any]) -> RawObject:
    return RawObject(ObjectKey("", kind, namespace, name), "v1", body, "test:1", 1.0)


def service(number: int) -> RawObject:
    spec = {
        "clusterIP": f"10.100.{number // 256}.{number % 256}",
        "selector": {"app": f"s{number}"},
        "ports": [{"name": "http", "port": 80}],
    }
    return raw(
        "Service",
        "default",
        f"s{number}",
        {"metadata": {}, "apiVersion": "v1", "kind": "Service", "spec": spec},
    )


def pod(number: int, index: int, ready: bool = True) -> RawObject:
    status = {
        "podIP": f"10.{number // 250}.{number % 250}.{index}",
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    return raw(
        "Pod",
        "default",
        f"s{number}-{index}",
        {"metadata": {"labels": {"app": f"s{number}"}}, "status": status},
    )


async def test_one_endpoint_among_many_touches_one_resource(configured: Any) -> None:
    objects = [service(number) for number in range(SERVICES)]
    objects += [pod(number, index) for number in range(SERVICES) for index in range(PODS_EACH)]
    configured.world.apply(Batch(changed=tuple(objects)))
    hub = Hub(configured.world, Metrics())
    view = View(configured.world, Perspective("default"))
    cache = hub.cache.acquire(view.perspective)
    subscriptions = {url: Subscription(kind) for url, kind in hub.kinds.items()}
    for subscription in subscriptions.values():
        subscription.subscribe(view, ["*"])
        await subscription.difference(view, cache)
    began = time.perf_counter()
    change = configured.world.apply(Batch(changed=(pod(7, 3, ready=False),)))
    hub.cache.invalidate(change)
    sent = {}
    for url, subscription in subscriptions.items():
        subscription.mark(view, change)
        if subscription.pending:
            found = await subscription.difference(view, cache)
            if found:
                sent[url.rpartition(".")[2]] = sorted(found.updates)
    elapsed = time.perf_counter() - began
    host = "s7.default.svc.cluster.local"
    assert sent == {
        "ClusterLoadAssignment": [f"outbound|80||{host}"],
        "Address": ["Kubernetes//Pod/default/s7-3"],
    }
    assert elapsed < 0.05, f"{elapsed * 1000:.1f} ms"
