"""Explicit listeners from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.app.agent_static import read
from nodeagent.errors import ConfigError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import ClusterKind, Protocol

FILE = """
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 0.0.0.0, port_value: 8080}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: backend}}]
  - name: raw
    address: {socket_address: {address: 127.0.0.1, port_value: 9090}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: raw
          cluster: backend
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "static.yaml"
    path.write_text(text)
    return path


def test_listeners_routes_and_endpoints(tmp_path: Path) -> None:
    resources = read(write(tmp_path, FILE))
    view = resources.view
    assert resources.ports == (8080, 9090)
    http = view.destinations[None, 8080]
    assert http.protocol is Protocol.HTTP
    assert http.table == "static/local"
    assert set(view.tables["static/local"].virtual_hosts) == {"all"}
    tcp = view.destinations[parse_address("127.0.0.1"), 9090]
    assert [share.cluster for share in tcp.clusters] == ["static/backend"]
    assert [endpoint.port for endpoint in view.endpoints["static/backend"]] == [80]
    assert view.refuse_unknown, "a connection to another address of the port would come back to the port"


def test_a_missing_cluster_is_a_black_hole(tmp_path: Path) -> None:
    view = read(write(tmp_path, FILE.replace("- name: backend\n    type", "- name: other\n    type"))).view
    assert view.clusters["static/backend"].kind is ClusterKind.BLACKHOLE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("port_value: 8080", "port_value: many"), "static_resources.listeners[0]"),
        (("cluster: backend\n  clusters", "klaster: backend\n  clusters"), "static_resources.listeners[1]"),
        (("filters.network.tcp_proxy.v3.TcpProxy", "filters.network.none.v3.None"), "listeners[1]"),
        (("type: STATIC", "type: NOWHERE"), "static_resources.clusters[0]"),
        (("port_value: 8080", "port_value: 70000"), "port 70000 is out of range"),
        (("listeners:", "listener:"), "there are no listeners"),
        (("static_resources:", "static_resources: ["), "not valid YAML"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = write(tmp_path, FILE.replace(*change))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
