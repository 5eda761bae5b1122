"""The plan of a lab: addresses, links and routes."""

from ipaddress import ip_address

from nodeagent.config.lab import LabFile, NodeSpec, PodSpec
from nodeagent.lab.names import LabNames
from nodeagent.lab.plan import DNS4, DNS6, plan_lab


def lab(nodes: int, pods: int) -> LabFile:
    return LabFile(
        tuple(NodeSpec(f"node-{n}") for n in range(nodes)),
        tuple(PodSpec(f"pod-{p}", "default", f"node-{p % nodes}") for p in range(pods)),
        (),
    )


def test_addresses_are_by_place_in_the_file() -> None:
    plan = plan_lab(LabNames("t"), lab(2, 3))
    assert [str(node.pods4) for node in plan.nodes] == ["10.244.1.0/24", "10.244.2.0/24"]
    assert [str(node.pods6) for node in plan.nodes] == ["fd00:10:244:1::/64", "fd00:10:244:2::/64"]
    assert [str(pod.ipv4) for pod in plan.pods] == ["10.244.1.2", "10.244.2.2", "10.244.1.3"]
    assert str(plan.pods[2].ipv6) == "fd00:10:244:1::3"


def test_the_dns_service_is_where_kubeadm_puts_it() -> None:
    assert (ip_address("10.96.0.10"), ip_address("fd00:10:96::a")) == (DNS4, DNS6)


def test_the_largest_lab_has_distinct_addresses_and_short_names() -> None:
    plan = plan_lab(LabNames("x" * 30), lab(200, 200 * 250))
    every = [a for pod in plan.pods for a in (pod.ipv4, pod.ipv6)] + [
        a for node in plan.nodes for a in (node.ipv4, node.ipv6, node.gateway4, node.gateway6)
    ]
    assert len(every) == len(set(every))
    assert all(len(pod.link) <= 15 for pod in plan.pods)  # IFNAMSIZ
    assert all(pod.ipv4 in node.pods4 for node in plan.nodes[:3] for pod in plan.pods_on(node.name))
    path = plan.names.node("n" * 40) / "admin.sock"
    assert len(str(path)) <= 107  # sun_path of unix(7)


def test_namespaces_come_in_an_order_that_works() -> None:
    plan = plan_lab(LabNames("t"), lab(2, 2))
    namespaces = plan.namespaces()
    assert [n.netns for n in namespaces] == [
        "na.t", "na.t.node-0", "na.t.node-1", "na.t.default.pod-0", "na.t.default.pod-1",
    ]  # fmt: skip
    made = {"na.t"}
    for namespace in namespaces:
        assert namespace.netns in made, "its link is made by an earlier one"
        made |= {line.rsplit(" ", 1)[1] for line in namespace.commands if " netns " in line}


def test_a_service_of_a_node_has_the_node_s_network() -> None:
    service = PodSpec("service", "default", "a", host_network=True)
    plan = plan_lab(LabNames("t"), LabFile((NodeSpec("a"),), (service, PodSpec("pod", "default", "a")), ()))
    first, second = plan.pods
    assert (first.netns, first.ipv4, first.ipv6) == (
        plan.nodes[0].netns,
        plan.nodes[0].ipv4,
        plan.nodes[0].ipv6,
    )
    assert str(second.ipv4) == "10.244.1.2", "it takes no address from the pods"
    assert [namespace.netns for namespace in plan.namespaces()] == ["na.t", "na.t.a", "na.t.default.pod"]


def test_nodes_route_to_each_others_pods() -> None:
    plan = plan_lab(LabNames("t"), lab(2, 2))
    node = next(n for n in plan.namespaces() if n.netns == "na.t.node-0")
    assert "route add 10.244.2.0/24 via 172.30.0.12" in node.commands
    assert "route add fd00:10:244:2::/64 via fd00:172:30::c" in node.commands
    assert "route add 10.244.1.2/32 dev pod2" in node.commands
    assert not any("10.244.1.0/24" in line for line in node.commands)


def test_a_lab_owns_only_its_own_namespaces() -> None:
    names = LabNames("a")
    assert names.owns_netns("na.a")
    assert names.owns_netns("na.a.node")
    assert not names.owns_netns("na.ab")
    assert not names.owns_netns("na.b.a")
