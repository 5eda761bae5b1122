"""Lab files: what they say, and what is said when they are wrong."""

from pathlib import Path

import pytest

from nodeagent.config.lab import AgentOptions, check_capture, check_lab_name, load_lab_file
from nodeagent.errors import ConfigError

GOOD = """
nodes: [{name: node-a}, {name: node-b}]
pods:
- name: reviews-v1
  namespace: shop
  node: node-b
  serviceAccount: reviews
  labels: {app: reviews, example.com/tier: "1"}
  command: [nodeagent, echo, --http, "9080"]
  env: {MODE: fast}
  ports: [{name: http, containerPort: 9080}, {name: dns, containerPort: 53, protocol: UDP}]
  mesh: false
  restart: never
- {name: sleep, node: node-a}
config: [services.yaml, routes/]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "lab.yaml"
    path.write_text(text)
    return path


def test_everything_is_read(tmp_path: Path) -> None:
    lab = load_lab_file(write(tmp_path, GOOD))
    assert [node.name for node in lab.nodes] == ["node-a", "node-b"]
    pod = lab.pods[0]
    assert (pod.key, pod.node, pod.service_account) == ("shop/reviews-v1", "node-b", "reviews")
    assert pod.labels == {"app": "reviews", "example.com/tier": "1"}
    assert pod.command == ("nodeagent", "echo", "--http", "9080")
    assert pod.env == {"MODE": "fast"}
    assert [(p.name, p.container_port, p.protocol) for p in pod.ports] == [
        ("http", 9080, "TCP"),
        ("dns", 53, "UDP"),
    ]
    assert not pod.mesh
    assert not pod.restart
    assert lab.config == (tmp_path / "services.yaml", tmp_path / "routes")


def test_a_service_of_a_node(tmp_path: Path) -> None:
    text = """\
nodes: [{name: a}, {name: b}]
pods:
- {name: one, node: a, hostNetwork: true, ports: [{name: http, containerPort: 80}]}
- {name: two, node: b, hostNetwork: true, ports: [{name: http, containerPort: 80}]}
- {name: pod, node: a, ports: [{name: http, containerPort: 80}]}
"""
    assert [pod.host_network for pod in load_lab_file(write(tmp_path, text)).pods] == [True, True, False]
    with pytest.raises(ConfigError, match=r":4: pods\[1\]: port 80 of node a is default/one's already"):
        load_lab_file(write(tmp_path, text.replace("node: b, host", "node: a, host")))


def test_defaults(tmp_path: Path) -> None:
    pod = load_lab_file(write(tmp_path, GOOD)).pods[1]
    assert (pod.key, pod.service_account, pod.command, pod.labels) == ("default/sleep", "default", (), {})
    assert pod.mesh
    assert pod.restart


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lab.yaml: the file is empty"),
        ("[]", "lab.yaml:1: must be a mapping, is a list"),
        ("nodes: [", "lab.yaml:1: not valid YAML"),
        ("nodes: []", "lab.yaml:1: nodes: a lab needs at least one node"),
        ("pods: []", "lab.yaml: nodes: missing"),
        ("nodes: [{name: a}]\nnodes: [{name: b}]", "lab.yaml:2: not valid YAML: key 'nodes' is given twice"),
        ("nodes: [{name: a}]\nconfg: []", "lab.yaml:2: confg: unknown field; did you mean config?"),
        ("nodes: [{nam: a}]", "lab.yaml:1: nodes[0].nam: unknown field; did you mean name?"),
        ("nodes: [{}]", "lab.yaml:1: nodes[0]: name is missing"),
        ("nodes: [{name: A}]", "nodes[0].name: 'A' is not a valid name"),
        ("nodes: [{name: 7}]", 'nodes[0].name: must be a string, is a number (quote it: "7")'),
        ("nodes: [{name: a}, {name: a}]", "nodes[1].name: a second node named a"),
        ("nodes: [{name: controlplane}]", "nodes[0].name: controlplane is the name of a process of the lab"),
        (f"nodes: [{{name: {'n' * 41}}}]", "longer than 40 characters"),
    ],
)
def test_errors_of_nodes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_lab_file(write(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        ("{node: node-a}", "lab.yaml:3: pods[0]: name is missing"),
        ("{name: p}", "pods[0]: node is missing"),
        ("{name: p, node: nod-a}", "pods[0].node: there is no node 'nod-a'; did you mean node-a?"),
        ("{name: p, node: node-a, lables: {}}", "pods[0].lables: unknown field; did you mean labels?"),
        ("{name: p, node: node-a, zzz: 1}", "pods[0].zzz: unknown field; known: command, env, hostNetwork, labels"),
        ("{name: p, node: node-a, labels: {version: 1}}",
         'pods[0].labels.version: must be a string, is a number (quote it: "1")'),
        ("{name: p, node: node-a, labels: {a: b c}}", "pods[0].labels.a: label 'a': value 'b c'"),
        ("{name: p, node: node-a, labels: {-a: b}}", "label '-a': a key is at most 63"),
        ("{name: p, node: node-a, labels: {A_/b: c}}", "the part before '/' must be a DNS name"),
        ("{name: p, node: node-a, command: sleep}", "pods[0].command: must be a list, is a string"),
        ("{name: p, node: node-a, command: []}", "pods[0].command: an empty command"),
        ("{name: p, node: node-a, command: [echo, 8]}", "pods[0].command[1]: must be a string"),
        ("{name: p, node: node-a, env: {1A: x}}", "'1A' cannot be the name of an environment variable"),
        ("{name: p, node: node-a, mesh: maybe}", "pods[0].mesh: must be true or false, is a string"),
        ("{name: p, node: node-a, restart: sometimes}", "'sometimes' is not one of always, never"),
        ("{name: p, node: node-a, ports: [{name: h}]}", "pods[0].ports[0]: containerPort is missing"),
        ("{name: p, node: node-a, ports: [{name: h, containerPort: 0}]}", "0 is not a port number"),
        ("{name: p, node: node-a, ports: [{name: h, containerPort: http}]}",
         "must be a port number, is a string"),
        ("{name: p, node: node-a, ports: [{name: h, containerPort: 1, protocol: SCTP}]}",
         "is not one of TCP, UDP"),
        ("{name: p, node: node-a}\n- {name: p, node: node-a}",
         "lab.yaml:4: pods[1].name: a second pod named default/p"),
        ("{name: p, node: node-a, namespace: a.b}", "pods[0].namespace: 'a.b' is not a valid name"),
    ],
)  # fmt: skip
def test_errors_of_pods(tmp_path: Path, pod: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_lab_file(write(tmp_path, f"nodes: [{{name: node-a}}]\npods:\n- {pod}\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [("", 86400), ("identity: false", None), ("identity: true", 86400), ("identity: {}", 86400),
     ("identity: {certLifetime: 60}", 60)],
)  # fmt: skip
def test_identity(tmp_path: Path, text: str, lifetime: int | None) -> None:
    found = load_lab_file(write(tmp_path, f"nodes: [{{name: node-a}}]\n{text}\n")).identity
    assert (found.cert_lifetime if found else None) == lifetime


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity: maybe", "identity: must be true or false, is a string"),
        ("identity: {certLifetime: 1}", "identity.certLifetime: 1 is not 2 to 7776000 seconds"),
        ("identity: {certLifetime: 1h}", "must be a whole number of seconds"),
        ("identity: {lifetime: 60}", "unknown field"),
    ],
)
def test_errors_of_identity(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_lab_file(write(tmp_path, f"nodes: [{{name: node-a}}]\n{text}\n"))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_lab_file(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["", "a.b", "../x", "A", "x" * 31])
def test_lab_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        check_lab_name(name)


def test_what_no_agent_could_take_on_is_told_at_once(tmp_path: Path) -> None:
    """Not after a minute of waiting for it."""
    pod = "nodes: [{name: a}]\npods: [{name: one, node: a, hostNetwork: true%s}]"
    lab = load_lab_file(write(tmp_path, pod % ""))
    check_capture(lab, AgentOptions("auto"))
    with pytest.raises(ConfigError, match=r"pod default/one has hostNetwork.*leave out --capture nft"):
        check_capture(lab, AgentOptions("nft"))
    check_capture(load_lab_file(write(tmp_path, pod % ", mesh: false")), AgentOptions("nft"))
