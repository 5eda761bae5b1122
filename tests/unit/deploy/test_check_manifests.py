"""The checker of deploy/: the tree as it is has no findings, and each way to break it has one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nodeagent.config.ca import DEFAULT_AUDIENCE, DEFAULT_NODE_ACCOUNTS

pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed; `make lint` installs it"
)
DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_manifests", DEPLOY / "check_manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy to break."""
    for folder in ("kubernetes", "systemd"):
        shutil.copytree(DEPLOY / folder, tmp_path / folder)
    return tmp_path


def test_the_tree_is_in_order(checker: ModuleType) -> None:
    assert checker.check(DEPLOY).messages == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("agent.yaml", "hostNetwork:", "hostNetwrok:", "'hostNetwrok' was unexpected"),
        ("agent.yaml", "containerPort: 15020", "containerPort: many", "Kubernetes 1.37.0: spec.template"),
        (
            "agent.yaml",
            "serviceAccountName: nodeagent",
            "serviceAccountName: nobody",
            "ServiceAccount nobody is not there",
        ),
        ("agent.yaml", "system-node-critical", "important", "no priority class important"),
        ("agent.yaml", "port: ready", "port: redy", "port redy is none of the container's"),
        (
            "agent.yaml",
            "- name: netns\n        hostPath",
            "- name: net\n        hostPath",
            "mounts volume netns",
        ),
        (
            "agent.yaml",
            "- name: netns\n        hostPath",
            "- name: net\n        hostPath",
            "not mount volume net",
        ),
        ("agent.yaml", "NODEAGENT_XDS", "NODEAGENT_XSD", "`nodeagent run` reads no variable NODEAGENT_XSD"),
        ("agent.yaml", "nodeagent, run]", "nodeagent, walk]", "nodeagent has no command 'walk'"),
        ("agent.yaml", "            memory: 1Gi", "            cpu: 1", "has no memory limit"),
        ("agent.yaml", "namespace: nodeagent-system", "namespace: default", "is in namespace default"),
        ("agent.yaml", "livenessProbe", "lifecycleProbe", "has no livenessProbe"),
        ("agent.yaml", "privileged: true", "privileged: false", "but is not privileged"),
        ("agent.yaml", "hostPID: true", "hostPID: false", "does not join the host's cgroup namespace"),
        ("agent.yaml", "path: /sys/fs/bpf", "path: /var/bpf", "does not mount the host's /sys/fs/bpf"),
        ("agent.yaml", "mountPath: /sys/fs/cgroup", "mountPath: /cg", "mount the host's /sys/fs/cgroup"),
        (
            "agent.yaml",
            "Propagation: Bidirectional",
            "Propagation: None",
            "must be writable and Bidirectional",
        ),
        ("controlplane.yaml", "--config=", "--cofnig=", "`nodeagent controlplane` has no option --cofnig"),
        ("controlplane.yaml", "targetPort: grpc-xds", "targetPort: xds", "targets port xds"),
        ("controlplane.yaml", "name: nodeagent-config", "name: nothing", "ConfigMap nothing is not there"),
        (
            "controlplane.yaml",
            "matchLabels:\n      app.kubernetes.io/name: nodeagent-controlplane\n",
            "matchLabels:\n      app.kubernetes.io/name: other\n",
            "its selector does not select its own pods",
        ),
        ("rbac.yaml", "kind: Role\n", "kind: Rule\n", "Rule nodeagent-operator: Kubernetes 1.28.0"),
        ("kustomization.yaml", "- config.yaml\n", "", "does not name config.yaml"),
        ("kustomization.yaml", "- config.yaml", "- konfig.yaml", "names konfig.yaml, which is not there"),
    ],
)
def test_broken_manifests(
    checker: ModuleType, tree: Path, file: str, old: str, new: str, message: str
) -> None:
    path = tree / "kubernetes" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert message in "\n".join(checker.check(tree).messages)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "nodeagent.service",
            "nodeagent run",
            "nodeagent run --fast",
            "`nodeagent run` has no option --fast",
        ),
        ("nodeagent.service", "/opt/nodeagent/bin", "/usr/bin", "starts /usr/bin/nodeagent"),
        ("nodeagent.service", "NODEAGENT_NODE", "NODEAGENT_NOED", "reads no variable NODEAGENT_NOED"),
        ("nodeagent.service", "agent.env\n", "other.env\n", "reads other.env, of which there is no example"),
        ("nodeagent.service", "NoNewPrivileges", "NoNewPriviliges", "Unknown key"),
        ("nodeagent.service", "CAP_SYS_ADMIN ", "", "CapabilityBoundingSet lacks CAP_SYS_ADMIN"),
        ("nodeagent.service", "UMask=0077", "ProtectKernelTunables=yes", "/sys/fs/bpf read-only"),
        ("agent.env", "NODEAGENT_LOG_LEVEL", "NODEAGENT_LOUD", "reads no variable NODEAGENT_LOUD"),
    ],
)
def test_broken_units(checker: ModuleType, tree: Path, file: str, old: str, new: str, message: str) -> None:
    if message == "Unknown key" and shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze on this machine")
    path = tree / "systemd" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert message in "\n".join(checker.check(tree).messages)


def test_without_ebpf_less_is_needed(checker: ModuleType, tree: Path) -> None:
    agent = tree / "kubernetes" / "agent.yaml"
    text = (
        agent.read_text()
        .replace("value: auto", "value: nft")
        .replace("privileged: true", "privileged: false")
    )
    agent.write_text(text)
    unit, settings = tree / "systemd" / "nodeagent.service", tree / "systemd" / "agent.env"
    unit.write_text(unit.read_text().replace("UMask=0077", "ProtectKernelTunables=yes"))
    settings.write_text(settings.read_text().replace("CAPTURE=auto", "CAPTURE=nft"))
    assert checker.check(tree).messages == []


def test_a_service_without_pods(checker: ModuleType, tree: Path) -> None:
    path = tree / "kubernetes" / "controlplane.yaml"
    text = path.read_text()
    service = text.index("kind: Service\n")
    path.write_text(text[:service] + text[service:].replace("name: nodeagent-controlplane\n", "name: else\n"))
    messages = "\n".join(checker.check(tree).messages)
    assert "Service else: selects no pod template" in messages
    assert "PodDisruptionBudget else: selects no pod template" in messages


def _container(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return next(document for document in documents if document["kind"] in ("DaemonSet", "Deployment"))


def test_agents_know_the_control_plane_by_the_name_it_has_and_are_known_by_their_account() -> None:
    agent, plane = _container("agent"), _container("controlplane")
    spec = agent["spec"]["template"]["spec"]
    env = {variable["name"]: variable for variable in spec["containers"][0]["env"]}
    arguments = plane["spec"]["template"]["spec"]["containers"][0]["args"]
    (name,) = [text.partition("=")[2] for text in arguments if text.startswith("--tls-name=")]
    (port,) = [text.rpartition(":")[2] for text in arguments if text.startswith("--listen-tls=")]
    assert env["NODEAGENT_XDS"]["value"] == f"https://{name}:{port}"
    assert env["NODEAGENT_CA"]["value"] == f"{name}:{port}"
    assert f"nodeagent-system/{spec['serviceAccountName']}" in DEFAULT_NODE_ACCOUNTS
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (token,) = volumes["token"]["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == DEFAULT_AUDIENCE
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "token"]
    path = f"{mount['mountPath']}/{token['serviceAccountToken']['path']}"
    assert env["NODEAGENT_TOKEN"]["value"] == path
    assert volumes["root-cert"]["secret"]["items"] == [{"key": "root-cert.pem", "path": "root-cert.pem"}]


def test_the_agent_is_told_which_pod_it_is() -> None:
    container = _container("agent")["spec"]["template"]["spec"]["containers"][0]
    fields = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert fields == {
        "NODEAGENT_NODE": "spec.nodeName",
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "INSTANCE_IP": "status.podIP",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
