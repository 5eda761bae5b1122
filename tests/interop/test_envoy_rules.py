"""Our rules and real Envoy's decide alike: each RBAC configuration is asked about each request, by both."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from google.protobuf import json_format
from harness import Namespace, require
from harness.envoy_process import start_envoy

from nodeagent.compiler.rbac import compile_http_rbac
from nodeagent.compiler.report import Report
from nodeagent.dataplane.access import AccessQuestion
from nodeagent.dataplane.engine import EngineOwner, EngineSettings
from nodeagent.errors import EngineError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.policies import Guards, Slashes
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol, Snapshot

pytestmark = [pytest.mark.envoy, pytest.mark.netns, pytest.mark.timeout(120)]

PORT: Final = 9080
LOOPBACK: Final = parse_address("127.0.0.1")
FILTERS: Final = "type.googleapis.com/envoy.extensions.filters"
RBAC: Final = f"{FILTERS}.http.rbac.v3"
TEMPLATE: Final = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
ANY: Final = {"any": True}


def header(name: str, /, **match: Any) -> dict[str, Any]:
    return {"header": {"name": name, **match}}


def header_string(name: str, /, **match: Any) -> dict[str, Any]:
    return header(name, string_match=match)


def path(**match: Any) -> dict[str, Any]:
    return {"url_path": {"path": match}}


def template(text: str) -> dict[str, Any]:
    config = {"@type": TEMPLATE, "path_template": text}
    return {"uri_template": {"name": "t", "typed_config": config}}


def regex(text: str) -> dict[str, Any]:
    return {"safe_regex": {"regex": text}}


def network(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


# Permissions, each alone in an ALLOW policy for anybody.
PERMISSIONS: Final[dict[str, dict[str, Any]]] = {
    "any": ANY,
    "path": path(exact="/admin"),
    "path prefix": path(prefix="/admin"),
    "path suffix": path(suffix="/x"),
    "path contains": path(contains="dmi"),
    "path with an encoded byte": path(exact="/a%7Cb"),
    "path with a byte to encode": path(exact="/a|b"),
    "path of plain bytes": path(**regex('[^<>{}|^`"]*')),
    "path regex": path(**regex("/[a-z]+")),
    "path without case": path(exact="/ADMIN", ignore_case=True),
    "path prefix without case": path(prefix="/AD", ignore_case=True),
    "not path": {"not_rule": path(prefix="/admin")},
    "template segment": template("/api/*"),
    "template segments": template("/api/**"),
    "template between": template("/*/v1/*"),
    "template suffix": template("/**.html"),
    "template variable": template("/api/{version}/items/{item=*}"),
    "template rest": template("/{all=**}"),
    "method": header_string(":method", exact="GET"),
    "method prefix": header_string(":method", prefix="P"),
    "path header": header_string(":path", exact="/admin?x=1"),
    "path header prefix": header_string(":path", prefix="/admin"),
    "scheme": header_string(":scheme", exact="http"),
    "host": header_string(":authority", exact="a.test", ignore_case=True),
    "host suffix": header_string(":authority", suffix=".TEST", ignore_case=True),
    "host header": header_string("host", prefix="a.", ignore_case=True),
    "header": header_string("x-role", exact="admin"),
    "header name without case": header_string("X-Role", exact="admin"),
    "header without case": header_string("x-role", exact="ADMIN", ignore_case=True),
    "header prefix": header_string("x-role", prefix="ad"),
    "header suffix": header_string("x-role", suffix="min"),
    "header contains": header_string("x-role", contains="dmi"),
    "header regex": header_string("x-role", **regex("a.*n")),
    "header present": header("x-role", present_match=True),
    "header absent": header("x-role", present_match=False),
    "header present inverted": header("x-role", present_match=True, invert_match=True),
    "header inverted": header("x-role", string_match={"exact": "admin"}, invert_match=True),
    "header inverted or missing": header(
        "x-role", string_match={"exact": "admin"}, invert_match=True, treat_missing_header_as_empty=True
    ),
    "header empty": header("x-role", string_match={"exact": ""}, treat_missing_header_as_empty=True),
    "header joined": header_string("x-role", exact="admin,guest"),
    "not header": {"not_rule": header_string("x-role", exact="admin")},
    "port": {"destination_port": PORT},
    "other port": {"destination_port": 80},
    "ports": {"destination_port_range": {"start": PORT, "end": PORT + 1}},
    "ports below": {"destination_port_range": {"start": 1, "end": PORT}},
    "address": {"destination_ip": network("127.0.0.0", 8)},
    "other address": {"destination_ip": network("10.0.0.0", 8)},
    "all": {"and_rules": {"rules": [path(prefix="/"), header_string(":method", exact="GET")]}},
    "one": {"or_rules": {"rules": [path(exact="/x"), header_string(":method", exact="PUT")]}},
    "nested": {
        "and_rules": {
            "rules": [
                {"or_rules": {"rules": [path(prefix="/a"), path(prefix="/x")]}},
                {"not_rule": {"or_rules": {"rules": [header_string("x-role", exact="guest")]}}},
            ]
        }
    },
}

# Principals, each alone in an ALLOW policy for anything. The peer is plaintext, from 127.0.0.1.
PRINCIPALS: Final[dict[str, dict[str, Any]]] = {
    "anybody": ANY,
    "authenticated": {"authenticated": {}},
    "somebody": {"authenticated": {"principal_name": {"prefix": "spiffe://"}}},
    "not authenticated": {"not_id": {"authenticated": {}}},
    "peer": {"direct_remote_ip": network("127.0.0.0", 8)},
    "other peer": {"direct_remote_ip": network("10.0.0.0", 8)},
    "peer of IPv6": {"direct_remote_ip": network("::", 0)},
    "no peer of IPv6": {"not_id": {"direct_remote_ip": network("::", 0)}},
    "client": {"remote_ip": network("127.0.0.1", 32)},
    "forwarded client": {"remote_ip": network("10.0.0.0", 8)},
    "no client of IPv6": {"not_id": {"remote_ip": network("::", 0)}},
    "header": header_string("x-role", exact="admin"),
    "path": path(prefix="/admin"),
    "both": {
        "and_ids": {
            "ids": [
                {"direct_remote_ip": network("127.0.0.1", 32)},
                header_string("x-role", exact="admin"),
            ]
        }
    },
    "either": {"or_ids": {"ids": [{"authenticated": {}}, header("x-role", present_match=True)]}},
    "not": {"not_id": header_string("x-role", prefix="g")},
}


def rules(action: str, *policies: dict[str, Any]) -> dict[str, Any]:
    return {"action": action, "policies": {f"p{index}": policy for index, policy in enumerate(policies)}}


def policy(permission: dict[str, Any] = ANY, principal: dict[str, Any] = ANY) -> dict[str, Any]:
    return {"permissions": [permission], "principals": [principal]}


ADMIN, ROLE = path(prefix="/admin"), header_string("x-role", exact="admin")

CONFIGURATIONS: Final[dict[str, dict[str, Any]]] = {
    **{f"permission {name}": {"rules": rules("ALLOW", policy(each))} for name, each in PERMISSIONS.items()},
    **{
        f"principal {name}": {"rules": rules("ALLOW", policy(ANY, each))} for name, each in PRINCIPALS.items()
    },
    "no rules": {},
    "allow nobody": {"rules": {"action": "ALLOW"}},
    "deny nobody": {"rules": {"action": "DENY"}},
    "deny": {"rules": rules("DENY", policy(ADMIN))},
    "deny one of two": {"rules": rules("DENY", policy(path(exact="/x")), policy(ADMIN, ROLE))},
    "allow one of two": {"rules": rules("ALLOW", policy(path(exact="/x")), policy(ADMIN, ROLE))},
    "log": {"rules": rules("LOG", policy(ANY))},
    "shadow": {"shadow_rules": rules("DENY", policy(ANY)), "shadow_rules_stat_prefix": "istio_dry_run_deny_"},
    "shadow and rules": {
        "shadow_rules": rules("DENY", policy(ANY)),
        "shadow_rules_stat_prefix": "istio_dry_run_deny_",
        "rules": rules("ALLOW", policy(ADMIN)),
    },
    "several permissions": {
        "rules": {"action": "ALLOW", "policies": {"p": {"permissions": [ADMIN, ROLE], "principals": [ANY]}}}
    },
    "several principals": {
        "rules": {
            "action": "DENY",
            "policies": {"p": {"permissions": [ADMIN], "principals": [{"authenticated": {}}, ROLE]}},
        }
    },
}

Request = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""Method, target, host and headers."""


def get(target: str, *headers: tuple[str, str], method: str = "GET", host: str = "a.test") -> Request:
    return method, target, host, headers


REQUESTS: Final[tuple[Request, ...]] = (
    get("/"),
    get("/admin"),
    get("/admin", method="PUT"),
    get("/admin", method="POST", host="b.test:80"),
    get("/admin?x=1"),
    get("/ADMIN"),
    get("/administer/x"),
    get("/x"),
    get("/x?y=/admin"),
    get("/x/"),
    get("/api/v1"),
    get("/api/v1/items/7"),
    get("/api/"),
    get("/a/v1/b"),
    get("/a/b/c.html"),
    get("/admin", host="A.Test"),
    get("/admin", host="sub.a.test"),
    get("/", ("x-role", "admin")),
    get("/", ("X-ROLE", "Admin")),
    get("/", ("x-role", "guest")),
    get("/", ("x-role", "")),
    get("/", ("x-role", "admin"), ("x-role", "guest")),
    get("/", ("x-role", "guest"), ("x-role", "admin")),
    get("/admin", ("x-role", "admin")),
    get("/admin", ("x-role", "administrator"), method="PUT"),
    get("/", ("x-forwarded-for", "10.0.0.1")),
    get("/", ("x-forwarded-for", "10.0.0.1, 192.0.2.1")),
    get("/", ("X-Forwarded-For", "192.0.2.1"), ("x-forwarded-for", "fd00::1 , 10.0.0.1")),
    get("/", ("x-forwarded-for", "10.0.0.1, fd00::1")),
    get("/", ("x-forwarded-for", "10.0.0.1,")),
    get("/", ("x-forwarded-for", "10.0.0.1:80")),
)

SPELLINGS: Final = (
    "/%61dmin", "/%41dmin", "/./admin", "/x/../admin", "/x/%2e%2e/admin", "/x/.%2E/admin", "/x/%2e/../admin",
    "/x\\..\\admin", "/../admin", "/../../admin", "//admin", "/x//../admin", "/x//..//admin", "/admin/", "/admin/.",
    "/admin/..", "/admin/../x", "/admin%2f", "/admin%2F..%2Fx", "/x/..%2fadmin", "/x%2f..%2fadmin", "/admin;x",
    "/admin;/../x", "/;/admin", "/%2561dmin", "/%61%64%6d%69%6e", "/admin%20", "/admin%00", "/%00admin", "/admin#",
    "/admin#/x", "/x#/admin", "/admin?x#y", "/...", "/.../admin", "/.admin", "/a..", "/%", "/%4", "/%zz/admin",
    "/%e4%b8%ad", "/admin%5c", "/x%5c..%5cadmin", "/~admin", "/%7eadmin", "/x/./././admin", "/a/b/c/../../../admin",
    "/a|b", "/a%7Cb", "/a%7cb", "/a{b}", '/"', "/<a>", "/a^b", "/a`b", "/[a]", "//", "///admin",
    "/admin//", "//admin//x", "/x//../../admin", "/x%2f/../admin", "/%2fadmin", "/%5Cadmin", "/x%2f..%2f..%2fadmin",
    "/x%5c%2e%2e%5cadmin", "/x%252f..%252fadmin", "/admin%2f/", "/x/%2f../admin", "/%2f%2fadmin",
    "/a'(b)*+,;:@!$&=~_-", "/x/..;/admin", "/x/..;p=1;q/admin", "/x/.;/admin", "/..;/admin", "/admin/x/..;", "/.;x",
    "/x/y/..;a/.;b/..;/admin", "/x/...;/admin", "/x/y..;/../admin", "/x/;..;/admin", "/x/;../../../admin",
)  # fmt: skip
"""Of paths that might be read as others."""


PATHS: Final = (
    "permission path",
    "permission path prefix",
    "permission path suffix",
    "permission path with an encoded byte",
    "permission path with a byte to encode",
    "permission path of plain bytes",
    "permission any",
    "permission template between",
    "permission template rest",
    "deny",
)
"""Configurations that look at paths."""

SLASHES: Final[dict[Slashes, dict[str, Any]]] = {
    Slashes.AS_SENT: {},
    Slashes.MERGE: {"merge_slashes": True},
    Slashes.DECODE: {"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"},
    Slashes.MERGE | Slashes.DECODE: {
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
    Slashes.REJECT: {"path_with_escaped_slashes_action": "REJECT_REQUEST"},
}
"""Settings of Envoy's connection manager."""


def bootstrap(slashes: Slashes) -> str:
    """An Envoy that judges a request by the configuration whose number its header x-case has."""
    routes = [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": "x-case", "string_match": {"exact": str(number)}}],
            },
            "direct_response": {"status": 200},
            "typed_per_filter_config": {
                "rbac": {"@type": f"{RBAC}.RBACPerRoute", **({"rbac": config} if config else {})}
            },
        }
        for number, config in enumerate(CONFIGURATIONS.values())
    ]
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "codec_type": "HTTP1",
        "normalize_path": True,
        **SLASHES[slashes],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "rbac", "typed_config": {"@type": f"{RBAC}.RBAC"}},
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
    }
    listener = {
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": PORT}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return json.dumps({"static_resources": {"listeners": [listener]}})


def raw(request: Request, case: int) -> bytes:
    method, target, host, headers = request
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", f"x-case: {case}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "content-length: 0", "", ""]).encode()


class Oracle:
    """Envoy, asked one request at a time."""

    def __init__(self, namespace: Namespace, folder: Path, slashes: Slashes) -> None:
        self._namespace = namespace
        start_envoy(namespace, bootstrap(slashes), folder / "bootstrap.json", PORT)

    def statuses(self, asked: list[tuple[Request, int]]) -> list[int]:
        """What Envoy answers to each."""
        return self._namespace.run(lambda: [self._status(request, case) for request, case in asked])

    @staticmethod
    def _status(request: Request, case: int) -> int:
        with socket.create_connection(("127.0.0.1", PORT), 5) as connection:
            connection.sendall(raw(request, case))
            with connection.makefile("rb") as answer:
                return int(answer.readline().split()[1])


class Ours:
    """The engine, with the same configuration in force."""

    def __init__(self, namespace: Namespace) -> None:
        self.engine = EngineOwner(EngineSettings())
        self.engine.start()
        self.engine.add_workload("pod", namespace.handle, "v", [LOOPBACK], [])

    def put(self, config: dict[str, Any], slashes: Slashes) -> None:
        """Have requests judged by it."""
        message = json_format.ParseDict(config, rbac_pb2.RBAC())
        guards = Guards(request=compile_http_rbac(message, Report()), slashes=slashes)
        port = InboundPort(PORT, Protocol.HTTP, guards=guards)
        assert not self.engine.apply(Snapshot(inbound={"pod": Inbound((port,))}))

    def status(self, request: Request, case: int) -> int:
        """The answer, with none of the network."""
        method, target, host, headers = request
        sent = (("x-case", str(case)), ("content-length", "0"), *headers)
        question = AccessQuestion(
            PORT, LOOPBACK, LOOPBACK, method=method, authority=host, path=target, headers=sent
        )
        try:
            return 200 if self.engine.explain_access("pod", question).allowed else 403
        except EngineError:
            return 400


@dataclass(frozen=True)
class Sides:
    """Both of them, reading slashes in the same way."""

    oracle: Oracle
    ours: Ours
    slashes: Slashes

    def compare(self, name: str, requests: tuple[Request, ...]) -> None:
        """Have each judge the requests by the configuration of the name."""
        case = list(CONFIGURATIONS).index(name)
        self.ours.put(CONFIGURATIONS[name], self.slashes)
        theirs = self.oracle.statuses([(request, case) for request in requests])
        found = [self.ours.status(request, case) for request in requests]
        assert dict(zip(requests, found, strict=True)) == dict(zip(requests, theirs, strict=True))


def start(folder: Path, slashes: Slashes) -> Iterator[Sides]:
    require("root", "engine")
    namespace = Namespace(f"nt-rules-{int(slashes)}-{id(object())}")
    ours = Ours(namespace)
    try:
        yield Sides(Oracle(namespace, folder, slashes), ours, slashes)
    finally:
        ours.engine.close()
        namespace.close()


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    yield from start(tmp_path_factory.mktemp("envoy"), Slashes.AS_SENT)


@pytest.fixture(scope="module", params=list(SLASHES)[1:], ids=str)
def slashing_sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    yield from start(tmp_path_factory.mktemp("envoy"), request.param)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rules_decide_as_envoy_does(sides: Sides, name: str) -> None:
    sides.compare(name, REQUESTS)


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_read_as_envoy_reads_them(sides: Sides, name: str) -> None:
    sides.compare(name, tuple(get(path) for path in SPELLINGS))


@pytest.mark.parametrize("name", PATHS)
def test_slashes_are_read_as_envoy_reads_them(slashing_sides: Sides, name: str) -> None:
    slashing_sides.compare(name, tuple(get(path) for path in SPELLINGS))
