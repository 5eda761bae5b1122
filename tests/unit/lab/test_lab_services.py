"""Services: decoding, virtual addresses, endpoints, and the service proxy's ruleset."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.errors import LabError, ResourceError
from nodeagent.lab.manifests import Manifest, parse_manifests
from nodeagent.lab.plan import DNS4
from nodeagent.lab.proxy import ruleset
from nodeagent.lab.registry import Registry
from nodeagent.lab.service_objects import decode_service, service_notes
from nodeagent.lab.services import Backend, build_services
from nodeagent.lab.store import ConfigStore
from nodeagent.lab.virtual_ips import VirtualIps


def manifest(text: str) -> Manifest:
    (found,) = parse_manifests(text, Path("services.yaml"))
    return found


def service(name: str = "web", **spec: Any) -> Manifest:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}], **spec}
    spec = {key: value for key, value in spec.items() if value is not None}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
    return manifest(yaml.safe_dump(body))


def pod(name: str, number: int, *, ready: bool = True, namespace: str = "default", **labels: str) -> Backend:
    addresses = (ip_address(f"10.244.1.{number}"), ip_address(f"fd00:10:244:1::{number:x}"))
    ports = {("http", "TCP"): 8080 + number, ("dns", "UDP"): 53}
    return Backend(name, namespace, labels, addresses, ready, ports)


def endpoints(text: Manifest, *pods: Backend) -> list[str]:
    (built,) = build_services([decode_service(text)], {}, pods, {})
    return [f"{address} {port}" for leads_to in built.ports for address, port in leads_to.endpoints]


def test_ready_pods_of_the_namespace_with_all_labels_are_selected() -> None:
    found = endpoints(
        service(selector={"app": "web", "tier": "front"}),
        pod("yes", 2, app="web", tier="front", extra="x"),
        pod("not-ready", 3, app="web", tier="front", ready=False),
        pod("half", 4, app="web"),
        pod("elsewhere", 5, app="web", tier="front", namespace="other"),
    )
    assert found == ["10.244.1.2 8080", "fd00:10:244:1::2 8080"]


def test_named_target_ports_are_each_pods_own() -> None:
    text = service(ports=[{"name": "w", "port": 80, "targetPort": "http"}])
    assert endpoints(text, pod("a", 2, app="web"), pod("b", 3, app="web")) == [
        "10.244.1.2 8082", "fd00:10:244:1::2 8082", "10.244.1.3 8083", "fd00:10:244:1::3 8083",
    ]  # fmt: skip
    assert endpoints(service(ports=[{"port": 80, "targetPort": "none"}]), pod("a", 2, app="web")) == []


def test_not_ready_addresses_are_published_on_demand() -> None:
    assert endpoints(service(publishNotReadyAddresses=True), pod("a", 2, app="web", ready=False))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ports": []}, "spec.ports: a Service needs at least one port"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port: 0 is not a port number"),
        ({"ports": [{"port": "http"}]}, "spec.ports[0].port: 'http' is not a port number"),
        ({"ports": [{"port": True}]}, "spec.ports[0].port: True is not a port number"),
        ({"ports": [{"port": 1}, {"port": 2}]}, "spec.ports[1].name: several ports need a name each"),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}, "a second TCP port 1"),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}, "a second port named 'a'"),
        ({"ports": [{"port": 1, "protocol": "SCTP"}]}, "'SCTP': the lab knows TCP and UDP"),
        ({"ports": [{"port": 1, "targetPort": 70000}]}, "spec.ports[0].targetPort: 70000 is neither"),
        ({"selector": {"app": 1}}, "spec.selector: must be a mapping of strings to strings"),
        ({"type": "Cluster"}, "spec.type: 'Cluster' is not one of"),
        ({"type": "ExternalName"}, "spec.externalName: missing"),
        ({"clusterIP": "10.96.0.300"}, "spec.clusterIPs: '10.96.0.300' does not appear to be"),
        ({"clusterIPs": ["10.96.1.1", "10.96.1.2"]}, "at most one address of each family"),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies: must be one or both of IPv4, IPv6"),
        ({"ipFamilyPolicy": "Dual"}, "spec.ipFamilyPolicy: 'Dual' is not one of"),
    ],
)
def test_wrong_services_are_explained(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        decode_service(service(**spec))
    assert str(caught.value).startswith("services.yaml:1: Service default/web: spec.")
    assert message in str(caught.value)


def test_what_the_proxy_does_not_do_is_said() -> None:
    notes = service_notes(service(type="LoadBalancer", sessionAffinity="ClientIP"))
    assert [note.split(":")[0] for note in notes] == ["spec.type", "spec.sessionAffinity"]
    assert service_notes(service(sessionAffinity="None")) == []


# -- virtual addresses --


def test_addresses_depend_on_the_name_alone(tmp_path: Path) -> None:
    first, second = VirtualIps(tmp_path / "a.json"), VirtualIps()
    one = first.allocate(decode_service(service("one")))
    for name in ("zero", "two"):
        second.allocate(decode_service(service(name)))
    assert second.allocate(decode_service(service("one"))) == one
    assert [address.version for address in one] == [4, 6]
    assert VirtualIps(tmp_path / "a.json").given() == first.given()


def test_no_two_services_share_an_address() -> None:
    addresses = VirtualIps()
    given = [a for n in range(3000) for a in addresses.allocate(decode_service(service(f"s{n}")))]
    assert len(given) == len(set(given)) == 6000
    assert DNS4 not in given


def test_fixed_addresses_are_kept_and_completed() -> None:
    addresses = VirtualIps()
    fixed = addresses.allocate(decode_service(service("a", clusterIP="10.96.7.7")))
    assert str(fixed[0]) == "10.96.7.7"
    assert fixed[1].version == 6
    with pytest.raises(LabError, match=r"10\.96\.7\.7 belongs to another Service"):
        addresses.allocate(decode_service(service("b", clusterIP="10.96.7.7")))
    with pytest.raises(LabError, match=r"10\.97\.0\.1 is not a free address of 10\.96\.0\.0/16"):
        addresses.allocate(decode_service(service("c", clusterIP="10.97.0.1")))
    with pytest.raises(LabError, match=r"10\.96\.0\.10 is not a free address"):
        addresses.allocate(decode_service(service("d", clusterIP=str(DNS4))))


def test_a_service_may_ask_for_one_family() -> None:
    addresses = VirtualIps()
    spec = decode_service(service("a", ipFamilies=["IPv6"], ipFamilyPolicy="SingleStack"))
    assert [address.version for address in addresses.allocate(spec)] == [6]
    spec = decode_service(service("b", ipFamilies=["IPv6", "IPv4"], ipFamilyPolicy="RequireDualStack"))
    assert [address.version for address in addresses.allocate(spec)] == [6, 4]
    spec = decode_service(service("c", ipFamilyPolicy="SingleStack"))
    assert [address.version for address in addresses.allocate(spec)] == [4]


def test_headless_services_have_none() -> None:
    assert VirtualIps().allocate(decode_service(service(clusterIP="None"))) == ()


def test_the_control_plane_reads_the_filled_service(tmp_path: Path) -> None:
    registry = Registry(ConfigStore(tmp_path), VirtualIps())
    assert registry.put(service()) == ("created", [])
    assert registry.put(service()) == ("unchanged", [])
    stored = yaml.safe_load((tmp_path / "service_default_web.yaml").read_text())
    assert stored["metadata"]["namespace"] == "default"
    assert stored["spec"]["clusterIP"] == stored["spec"]["clusterIPs"][0]
    assert stored["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert registry.put(service(ports=[{"port": 81}]))[0] == "configured"
    assert registry.remove(service().key)
    assert not registry.remove(service().key)
    assert list(tmp_path.iterdir()) == []


def test_slices_made_by_hand_serve_a_service_without_selector(tmp_path: Path) -> None:
    registry = Registry(ConfigStore(tmp_path), VirtualIps())
    registry.put(service(selector=None))
    registry.put(
        manifest(
            """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 9000}]
endpoints: [{addresses: [10.244.1.9]}, {addresses: [10.244.1.8], conditions: {ready: false}}]
"""
        )
    )
    (built,) = registry.services([])
    assert built.ports[0].endpoints == ((ip_address("10.244.1.9"), 9000),)


# -- ruleset --


def test_the_ruleset_of_a_service() -> None:
    virtual = {"default/web": (ip_address("10.96.1.1"), ip_address("fd00:10:96::101"))}
    built = build_services(
        [decode_service(service())], virtual, [pod("a", 2, app="web"), pod("b", 3, app="web")], {}
    )
    text = ruleset(built)
    assert "10.96.1.1 . tcp . 80 : goto svc/default/web/tcp/80/v4" in text
    assert (
        "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.1.3 . 8080 }"
        in text
    )
    assert "fd00:10:96::101 . tcp . 80 : goto svc/default/web/tcp/80/v6" in text
    assert "10.244.1.2 . 10.244.1.2" in text, "a pod may reach itself"
    assert text == ruleset(reversed(built)), "the same services make the same text"


def test_a_service_without_endpoints_is_rejected_not_translated() -> None:
    virtual = {"default/web": (ip_address("10.96.1.1"),)}
    text = ruleset(build_services([decode_service(service())], virtual, [], {}))
    assert "elements = { 10.96.1.1 }" in text
    assert "dnat" not in text.replace("ct status dnat", "")
