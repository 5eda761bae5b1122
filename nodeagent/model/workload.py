"""Workloads: the running instances of the mesh, and the names under which they are observed."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_CANONICAL_NAME: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION: Final = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
_REPLICA_SET_HASH: Final = re.compile(r"-[0-9a-z]{5,10}$")


class WorkloadType(enum.Enum):
    """What owns a pod."""

    DEPLOYMENT = "deployment"
    CRONJOB = "cronjob"
    JOB = "job"
    POD = "pod"


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a pod declares; services may target it by name."""

    name: str
    port: int
    transport: str = "TCP"


@dataclass(frozen=True, slots=True)
class Locality:
    """Where a workload runs; empty parts are unknown."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod, or what else runs somewhere. `uid` is its key; `addresses` are canonical, the primary one first."""

    uid: str
    name: str
    namespace: str
    addresses: tuple[str, ...]
    service_account: str
    node: str
    labels: Mapping[str, str]
    workload_name: str
    workload_type: WorkloadType
    canonical_name: str
    canonical_revision: str
    ready: bool = True
    terminating: bool = False
    host_network: bool = False
    captured: bool = False
    """Whether a node agent or ztunnel takes its connections: it can be reached by HBONE."""
    ports: tuple[ContainerPort, ...] = ()
    locality: Locality = field(default_factory=Locality)
    service_ports: Mapping[str, int] = field(default_factory=dict)
    """Of a WorkloadEntry: its port by the name of a service's port."""
    capacity: int = 1
    """Its share of what its services get (WorkloadEntry.weight)."""
    is_pod: bool = True
    is_listed: bool = False
    """An endpoint that a ServiceEntry lists: told of only while nobody else is known at its address."""
    """Whether Kubernetes knows it; EndpointSlices list no other."""


def canonical_name(labels: Mapping[str, str], workload_name: str) -> str:
    """Istio's canonical service name: the first label that is set, else the workload's name."""
    return next((labels[key] for key in _CANONICAL_NAME if labels.get(key)), workload_name)


def canonical_revision(labels: Mapping[str, str]) -> str:
    """Istio's canonical revision: the first label that is set, else `latest`."""
    return next((labels[key] for key in _CANONICAL_REVISION if labels.get(key)), "latest")


def owner_of(
    pod: str, owner_kind: str, owner_name: str, labels: Mapping[str, str]
) -> tuple[str, WorkloadType]:
    """Name and type of what a pod belongs to, from its controlling owner; empty kind: no owner.

    A ReplicaSet is its Deployment (the name less the pod-template-hash), a Job of a CronJob is the CronJob (the
    name less the scheduled minute), as Istio derives them.
    """
    if owner_kind == "ReplicaSet":
        suffix = "-" + labels.get("pod-template-hash", "")
        name = owner_name.removesuffix(suffix) if len(suffix) > 1 else _REPLICA_SET_HASH.sub("", owner_name)
        return name, WorkloadType.DEPLOYMENT
    if owner_kind == "Job":
        stem, _, minute = owner_name.rpartition("-")
        if stem and minute.isdecimal() and len(minute) >= 8:
            return stem, WorkloadType.CRONJOB
        return owner_name, WorkloadType.JOB
    if owner_kind:
        return owner_name, WorkloadType.DEPLOYMENT
    return pod, WorkloadType.POD


def matches_labels(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether the labels hold every pair of the selector."""
    return all(labels.get(key) == value for key, value in selector.items())
