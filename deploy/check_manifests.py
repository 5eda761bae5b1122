"""Check what is under deploy/: Kubernetes manifests, systemd units, settings files (`make lint`).

Manifests are checked against Kubernetes' own schemas (strict: no unknown field), and for what schemas cannot
know: that whatever a manifest refers to exists, and that the options and NODEAGENT_* variables that it sets
are the program's.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import typer.main
import yaml

from nodeagent.cli.main import COMMANDS
from nodeagent.cli.options import Command

DEPLOY: Final = Path(__file__).resolve().parent
# The oldest and the newest Kubernetes that the manifests are for.
KUBERNETES: Final = ("1.28.0", "1.37.0")
PRIORITY_CLASSES: Final = frozenset({"system-node-critical", "system-cluster-critical"})
_INSTALLED: Final = "/opt/nodeagent/bin/nodeagent"
_VARIABLE: Final = re.compile(r"#?(NODEAGENT_[A-Z_]+)=")

Object = Mapping[str, Any]


@dataclass
class Findings:
    """What is wrong, each with its place."""

    messages: list[str] = field(default_factory=list)

    def add(self, place: str, message: str) -> None:
        """Note a finding."""
        self.messages.append(f"{place}: {message}")


@dataclass(frozen=True)
class Document:
    """A manifest: one object of one file."""

    path: Path
    value: Object

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.value["metadata"]["name"])

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.path.name}: {self.value['kind']} {self.name}"


# -- options -----------------------------------------------------------------------------------------------


@cache
def command_options(command: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the options and the environment variables of a `nodeagent` command."""
    module = importlib.import_module(COMMANDS[command][0])
    if isinstance(module.app, Command):
        declared = module.app.options
        return (
            frozenset(f"--{option.name}" for option in declared),
            frozenset(variable for option in declared for variable in option.variables),
        )
    options: set[str] = set()
    variables: set[str] = set()
    for parameter in typer.main.get_command(module.app).params:
        options.update(parameter.opts)
        named = getattr(parameter, "envvar", None) or ()
        variables.update([named] if isinstance(named, str) else named)
    return frozenset(options), frozenset(variables)


def check_command_line(place: str, words: list[str], variables: set[str], findings: Findings) -> None:
    """Check the words after `nodeagent`, and the NODEAGENT_* variables set for it."""
    command = words[0] if words else ""
    if command not in COMMANDS:
        findings.add(place, f"nodeagent has no command {command!r}")
        return
    try:
        options, known = command_options(command)
    except ImportError as error:
        findings.add(place, f"`nodeagent {command}` cannot be imported: {error}")
        return
    for word in words[1:]:
        if word.startswith("-") and word.partition("=")[0] not in options:
            findings.add(place, f"`nodeagent {command}` has no option {word.partition('=')[0]}")
    for variable in sorted(variables - known):
        findings.add(place, f"`nodeagent {command}` reads no variable {variable}")


# -- Kubernetes --------------------------------------------------------------------------------------------


def read_manifests(folder: Path, findings: Findings) -> list[Document]:
    """Read all objects that kustomization.yaml names; every file must be named."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = set(kustomization["resources"])
    present = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    for missing in sorted(named - present):
        findings.add("kustomization.yaml", f"names {missing}, which is not there")
    for forgotten in sorted(present - named):
        findings.add("kustomization.yaml", f"does not name {forgotten}")
    return [
        Document(folder / name, value)
        for name in sorted(named & present)
        for value in yaml.safe_load_all((folder / name).read_text())
        if value is not None
    ]


def check_schema(document: Document, findings: Findings) -> None:
    """Check one object against the schemas of the oldest and the newest Kubernetes."""
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document.value, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            findings.add(document.place, f"Kubernetes {version}: {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            findings.add(document.place, f"Kubernetes {version}: {error.message}")


def of_kind(documents: list[Document], *kinds: str) -> Iterator[Document]:
    """Yield the objects of some kinds."""
    return (document for document in documents if document.value["kind"] in kinds)


def workloads(documents: list[Document]) -> Iterator[Document]:
    """Yield what has a pod template."""
    return of_kind(documents, "Deployment", "DaemonSet", "StatefulSet")


def selected(documents: list[Document], labels: Mapping[str, str]) -> list[Object]:
    """Return the pod templates that have all the labels."""
    templates = [document.value["spec"]["template"] for document in workloads(documents)]
    return [template for template in templates if labels.items() <= template["metadata"]["labels"].items()]


def check_references(documents: list[Document], findings: Findings) -> None:
    """Check that what objects refer to exists, in the one namespace that there is."""
    [namespace] = [document.name for document in of_kind(documents, "Namespace")]
    for document in documents:
        if document.value["kind"] not in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
            own = document.value["metadata"].get("namespace")
            if own != namespace:
                findings.add(document.place, f"is in namespace {own}, not {namespace}")
    for document in of_kind(documents, "RoleBinding", "ClusterRoleBinding"):
        check_binding(document, documents, findings)
    for document in of_kind(documents, "Service"):
        check_service(document, documents, findings)
    for document in of_kind(documents, "PodDisruptionBudget"):
        if not selected(documents, document.value["spec"]["selector"]["matchLabels"]):
            findings.add(document.place, "selects no pod template")
    for document in workloads(documents):
        check_workload(document, documents, findings)


def check_binding(document: Document, documents: list[Document], findings: Findings) -> None:
    """Check that the role and the service accounts of a binding exist."""
    role = document.value["roleRef"]
    if role["name"] not in {other.name for other in of_kind(documents, role["kind"])}:
        findings.add(document.place, f"binds {role['kind']} {role['name']}, which is not there")
    accounts = {other.name for other in of_kind(documents, "ServiceAccount")}
    for subject in document.value.get("subjects", ()):
        if subject["kind"] == "ServiceAccount" and subject["name"] not in accounts:
            findings.add(document.place, f"binds ServiceAccount {subject['name']}, which is not there")


def check_service(document: Document, documents: list[Document], findings: Findings) -> None:
    """Check that a service selects pods, and that they have its target ports."""
    templates = selected(documents, document.value["spec"]["selector"])
    if not templates:
        findings.add(document.place, "selects no pod template")
    for template in templates:
        for port in document.value["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if target not in container_ports(template["spec"]):
                findings.add(document.place, f"targets port {target}, which no container has")


def container_ports(spec: Object) -> set[str | int]:
    """Return the names and numbers of all container ports of a pod."""
    ports = [port for container in spec["containers"] for port in container.get("ports", ())]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports if "name" in port}


def check_workload(document: Document, documents: list[Document], findings: Findings) -> None:
    """Check a pod template: selector, service account, priority, volumes, containers."""
    template = document.value["spec"]["template"]
    spec = template["spec"]
    if (
        not document.value["spec"]["selector"]["matchLabels"].items()
        <= template["metadata"]["labels"].items()
    ):
        findings.add(document.place, "its selector does not select its own pods")
    if spec["serviceAccountName"] not in {other.name for other in of_kind(documents, "ServiceAccount")}:
        findings.add(document.place, f"ServiceAccount {spec['serviceAccountName']} is not there")
    if spec.get("priorityClassName") not in PRIORITY_CLASSES:
        findings.add(document.place, f"no priority class {spec.get('priorityClassName')}")
    config_maps = {other.name for other in of_kind(documents, "ConfigMap")}
    for volume in spec.get("volumes", ()):
        config_map = volume.get("configMap", {}).get("name")
        if config_map is not None and config_map not in config_maps:
            findings.add(document.place, f"volume {volume['name']}: ConfigMap {config_map} is not there")
    for container in spec["containers"]:
        check_container(f"{document.place}: container {container['name']}", container, spec, findings)


def check_container(place: str, container: Object, spec: Object, findings: Findings) -> None:
    """Check mounts, probes, command line and variables of a container."""
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
    for name in sorted(mounted - volumes):
        findings.add(place, f"mounts volume {name}, which is not there")
    for name in sorted(volumes - mounted):
        findings.add(place, f"does not mount volume {name}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        action = container.get(probe, {}).get("httpGet") or container.get(probe, {}).get("tcpSocket")
        if action is None:
            findings.add(place, f"has no {probe}")
        elif action["port"] not in container_ports({"containers": [container]}):
            findings.add(place, f"{probe}: port {action['port']} is none of the container's")
    if "memory" not in container.get("resources", {}).get("limits", {}):
        findings.add(place, "has no memory limit")
    # The image's entry point is `nodeagent`.
    words = [*container.get("command", ["nodeagent"]), *container.get("args", ())]
    words = words[words.index("nodeagent") + 1 :] if "nodeagent" in words else []
    variables = {variable["name"] for variable in container.get("env", ())}
    check_command_line(place, words, {name for name in variables if name.startswith("NODEAGENT_")}, findings)
    if words[:1] == ["run"]:
        check_capture(place, container, spec, findings)


def check_capture(place: str, container: Object, spec: Object, findings: Findings) -> None:
    """Check that an agent that may capture by eBPF can: without, `auto` would quietly take nft everywhere."""
    values = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
    if values.get("NODEAGENT_CAPTURE", "auto") == "nft":
        return
    if not container.get("securityContext", {}).get("privileged"):
        findings.add(
            place, "captures by eBPF, but is not privileged: its bpf filesystem does not reach the host"
        )
    if not spec.get("hostPID") or not {"nsenter", "--cgroup=/proc/1/ns/cgroup"} <= set(
        container.get("command", ())
    ):
        findings.add(place, "captures by eBPF, but does not join the host's cgroup namespace")
    hosts = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec.get("volumes", ())}
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", ())}
    for path in ("/sys/fs/bpf", "/sys/fs/cgroup"):
        if path not in mounts or hosts.get(mounts[path]["name"]) != path:
            findings.add(place, f"captures by eBPF, but does not mount the host's {path}")
    pins = mounts.get("/sys/fs/bpf", {})
    if pins and (pins.get("readOnly") or pins.get("mountPropagation") != "Bidirectional"):
        findings.add(place, "/sys/fs/bpf must be writable and Bidirectional: pins outlive the container")


# -- systemd -----------------------------------------------------------------------------------------------


def check_unit(path: Path, findings: Findings) -> None:
    """Check a unit's command line, its variables and its settings file's, and what systemd says of it."""
    text = path.read_text()
    [command_line] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = command_line.split()
    if words[0] != _INSTALLED:
        findings.add(path.name, f"starts {words[0]}, not {_INSTALLED}")
    variables = set(re.findall(r"^Environment=(NODEAGENT_[A-Z_]+)=", text, re.MULTILINE))
    settings = text
    for name in re.findall(r"^EnvironmentFile=-?/etc/nodeagent/(.*)$", text, re.MULTILINE):
        example = path.with_name(name)
        if not example.exists():
            findings.add(path.name, f"reads {name}, of which there is no example here")
            continue
        settings += example.read_text()
        variables.update(_VARIABLE.findall(example.read_text()))
    check_command_line(path.name, words[1:], variables, findings)
    if words[1:2] == ["run"] and not re.search(
        r"^(Environment=)?NODEAGENT_CAPTURE=nft$", settings, re.MULTILINE
    ):
        check_unit_capture(path.name, text, findings)
    if shutil.which("systemd-analyze"):
        verify_unit(path, text, findings)
    else:
        print(f"{path.name}: not verified: there is no systemd-analyze on this machine")


def check_unit_capture(place: str, text: str, findings: Findings) -> None:
    """Check that a unit that may capture by eBPF can."""
    held = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)).split()
    for capability in ("CAP_NET_ADMIN", "CAP_SYS_ADMIN"):
        if held and capability not in held:
            findings.add(place, f"captures by eBPF, but CapabilityBoundingSet lacks {capability}")
    if re.search(r"^ProtectKernelTunables=(yes|true|1|on)$", text, re.MULTILINE):
        findings.add(
            place, "captures by eBPF, but ProtectKernelTunables makes /proc/sys and /sys/fs/bpf read-only"
        )


def verify_unit(path: Path, text: str, findings: Findings) -> None:
    """Let systemd read the unit. Unknown settings do not make it fail, so any word of it counts."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        # systemd wants the program to be there.
        copy.write_text(text.replace(_INSTALLED, "/bin/true"))
        command = ["systemd-analyze", "verify", "--man=no", str(copy)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    for line in said.splitlines():
        if path.name in line:
            findings.add(path.name, f"systemd-analyze: {line.removeprefix(f'{copy}:')}")


# -- all ---------------------------------------------------------------------------------------------------


def check(deploy: Path) -> Findings:
    """Check everything under a deploy folder."""
    findings = Findings()
    documents = read_manifests(deploy / "kubernetes", findings)
    for document in documents:
        check_schema(document, findings)
    check_references(documents, findings)
    for path in sorted((deploy / "systemd").glob("*.service")):
        check_unit(path, findings)
    return findings


def main() -> int:
    """Print the findings; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("deploy", nargs="?", type=Path, default=DEPLOY, help="folder to check")
    findings = check(parser.parse_args().deploy)
    for message in findings.messages:
        print(message, file=sys.stderr)
    if not findings.messages:
        print(f"manifests and units are in order (Kubernetes {' and '.join(KUBERNETES)})")
    return 1 if findings.messages else 0


if __name__ == "__main__":
    sys.exit(main())
