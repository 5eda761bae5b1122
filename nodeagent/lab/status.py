"""The state of a lab as the JSON that `nodeagent lab status -o json` prints."""

from __future__ import annotations

import os
from typing import Any

from nodeagent.lab.mesh import Agent, MeshProcess
from nodeagent.lab.pods import Pod
from nodeagent.lab.process import Keeper
from nodeagent.lab.running import RunningLab
from nodeagent.lab.services import Service


def describe(lab: RunningLab) -> dict[str, Any]:
    """Return everything of a lab; `pending` says in words what keeps it from being ready."""
    plane = lab.controlplane
    return {
        "lab": lab.names.lab,
        "phase": lab.phase,
        "error": lab.error,
        "plain": lab.plain,
        "pending": pending(lab),
        "supervisor": {"pid": os.getpid()},
        "controlplane": _process(plane) if plane is not None else None,
        "nodes": [
            {
                "name": node.name,
                "netns": node.netns,
                "ips": [str(node.ipv4), str(node.ipv6)],
                "agent": _agent(lab.agents[node.name]) if node.name in lab.agents else None,
            }
            for node in lab.plan.nodes
        ],
        "pods": [_pod(lab, pod) for pod in lab.pods.values()],
        "services": [_service(service) for service in lab.services],
        "dns": {"queries": lab.dns.queries, "malformed": lab.dns.malformed},
    }


def pending(lab: RunningLab) -> list[dict[str, Any]]:
    """Return what is not ready yet: its name (as `lab logs` takes it), why, and whether it never will be."""
    found: list[dict[str, Any]] = []
    if lab.controlplane is not None and not lab.controlplane.ready:
        found.append({"name": "controlplane", "reason": lab.controlplane.not_ready})
    for name, agent in lab.agents.items():
        if not agent.ready:
            found.append({"name": name, "reason": agent.not_ready})
    for pod in lab.pods.values():
        if not pod.ready and not pod.completed:
            final = pod.keeper.state == "exited"
            found.append({"name": pod.spec.key, "reason": f"waits for {pod.waiting_for}", "final": final})
        elif (mesh := _mesh(lab, pod))[0] not in ("no", "enrolled"):
            found.append({"name": pod.spec.key, "reason": f"not in the mesh yet: {mesh[1] or mesh[0]}"})
    return found


def _mesh(lab: RunningLab, pod: Pod) -> tuple[str, str]:
    """Return how far a pod is in the mesh (no, pending, enrolled, failed), and the agent's error."""
    enrolment = lab.enrolment(pod)
    if enrolment is None:
        return "no", ""
    if enrolment.enrolled:
        return "enrolled", ""
    error = enrolment.error or lab.agents[pod.node.name].zds.last_error
    return ("failed" if enrolment.error else "pending"), error


def _keeper(keeper: Keeper) -> dict[str, Any]:
    return {
        "state": keeper.state,
        "pid": keeper.pid,
        "restarts": keeper.restarts,
        "lastExit": keeper.last_exit,
    }


def _process(process: MeshProcess) -> dict[str, Any]:
    return {
        **_keeper(process.keeper),
        "ready": process.ready,
        "reason": "" if process.ready else process.not_ready,
        "admin": str(process.admin),
        "log": str(process.log),
    }


def _agent(agent: Agent) -> dict[str, Any]:
    zds = {"connected": agent.zds.connected, "lastError": agent.zds.last_error}
    return {**_process(agent), "accessLog": str(agent.access_log), "zds": zds}


def _pod(lab: RunningLab, pod: Pod) -> dict[str, Any]:
    mesh, error = _mesh(lab, pod)
    return {
        "namespace": pod.spec.namespace,
        "name": pod.spec.name,
        "node": pod.node.name,
        "netns": pod.plan.netns,
        "ips": [str(pod.plan.ipv4), str(pod.plan.ipv6)],
        "serviceAccount": pod.spec.service_account,
        "labels": dict(pod.labels),
        "mesh": mesh,
        "meshError": error,
        "ready": pod.ready,
        "waitingFor": pod.waiting_for,
        "warning": pod.warning,
        "completed": pod.completed,
        "log": str(pod.log),
        **_keeper(pod.keeper),
    }


def _service(service: Service) -> dict[str, Any]:
    return {
        "namespace": service.spec.namespace,
        "name": service.spec.name,
        "headless": service.spec.headless,
        "virtualIPs": [str(address) for address in service.virtual_ips],
        "ports": [
            {
                "name": leads_to.port.name,
                "port": leads_to.port.port,
                "protocol": leads_to.port.protocol,
                "endpoints": [f"[{a}]:{p}" if a.version == 6 else f"{a}:{p}" for a, p in leads_to.endpoints],
            }
            for leads_to in service.ports
        ],
    }
