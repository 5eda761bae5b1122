"""The engine and real Envoy ask an authorization service the same, and do the same with its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from harness.envoy_process import start_envoy
from harness.guarded_pod import CLIENT, CLUSTER, HERE, WEB, Answer, GuardedPod, guarded_pod
from harness.requirements import require
from harness.scripted_authorizer import GrpcAuthorizer, HttpAnswer, HttpAuthorizer, response

from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import Callout, TextMatch

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

BY_GRPC, BY_HTTP = 9100, 9101
GRPC, HTTP = 9901, 9902
OWN = {"x-request-id", "x-forwarded-proto", "x-envoy-expected-rq-timeout-ms", "x-envoy-internal", "host"}
"""Headers in which the two differ whatever is asked."""
FILTERS = "type.googleapis.com/envoy.extensions.filters"


def listener(port: int, service: dict[str, Any]) -> dict[str, Any]:
    authz = {
        "@type": f"{FILTERS}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "with_request_body": {"max_request_bytes": 10},
        **service,
    }
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "normalize_path": True,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "authz", "typed_config": authz},
            {"name": "router", "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"}},
        ],
    }
    address = {"socket_address": {"address": "0.0.0.0", "port_value": port}}
    return {"address": address, "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}


def cluster(name: str, port: int, **more: Any) -> dict[str, Any]:
    address = {"socket_address": {"address": HERE, "port_value": port}}
    load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    return {"name": name, "load_assignment": load, **more}


def envoy_config() -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {
        options: {
            "@type": f"type.googleapis.com/{options}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    grpc = {"grpc_service": {"envoy_grpc": {"cluster_name": "grpc"}, "timeout": "2s"}}
    http = {
        "http_service": {
            "server_uri": {"uri": "http://authz.test", "cluster": "http", "timeout": "2s"},
            "path_prefix": "/check",
            "authorization_response": {
                "allowed_upstream_headers": {"patterns": [{"exact": "x-user"}]},
                "allowed_client_headers": {"patterns": [{"exact": "x-why"}]},
                "allowed_client_headers_on_success": {"patterns": [{"exact": "x-seen"}]},
            },
        },
        "allowed_headers": {"patterns": [{"exact": "x-told"}]},
    }
    clusters = [
        cluster("app", WEB),
        cluster("grpc", GRPC, typed_extension_protocol_options=http2),
        cluster("http", HTTP),
    ]
    listeners = [listener(BY_GRPC, grpc), listener(BY_HTTP, http)]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def exactly(name: str) -> tuple[TextMatch, ...]:
    return (TextMatch(MatchKind.EXACT, name),)


ASK_GRPC = Callout(CLUSTER, grpc=True, timeout_ms=2000, body_bytes=10)
ASK_HTTP = Callout(
    CLUSTER,
    grpc=False,
    timeout_ms=2000,
    body_bytes=10,
    path_prefix="/check",
    send=exactly("x-told"),
    keep=exactly("x-user"),
    answer=exactly("x-why"),
    answer_allowed=exactly("x-seen"),
)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[GuardedPod]:
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-envoyask-{id(object())}") as made:
        start_envoy(made.namespace, envoy_config(), tmp_path / "envoy.json", BY_GRPC)
        yield made


def outcome(answer: Answer) -> dict[str, Any]:
    """What of an answer must be alike: status, words, some headers; of an allowed request what the application saw."""
    shown = {"status": answer.status}
    told = (
        "x-answer",
        "x-why",
        "x-more",
        "x-seen",
        "location",
        "www-authenticate",
        "set-cookie",
        "content-type",
    )
    shown |= {name: answer.headers[name] for name in told if name in answer.headers}
    if answer.status != 200:
        return shown | {"body": answer.body}
    seen = answer.seen
    shown |= {"path": seen["path"], "request body": seen["body"]}
    return shown | {"headers": sorted((name, value) for name, value in seen["headers"] if name not in OWN)}


def question(request: Any) -> dict[str, Any]:
    """What of a CheckRequest must be alike."""
    attributes = MessageToDict(request)["attributes"]
    http = attributes["request"]["http"]
    del http["id"], attributes["request"]["time"]
    for side in ("source", "destination"):
        attributes[side]["address"]["socketAddress"].pop("portValue")
    http["headers"] = {name: value for name, value in http["headers"].items() if name not in OWN}
    return {name: value for name, value in attributes.items() if value}  # Envoy sends empty contexts


REQUESTS: list[dict[str, Any]] = [
    {"path": "/a/./b/../c?d=e&f"},
    {"path": "/", "headers": {"X-Two": "1", "x-told": "t", "Authorization": "Bearer x", "Cookie": "a=b"}},
    {"path": "/", "method": "POST", "body": "0123456789", "headers": {"Content-Type": "text/plain"}},
    {"path": "/", "method": "POST", "body": "01234567890"},
]
ANSWERS = [
    'ok_response { headers { header { key: "X-User" value: "jane" } } }',
    'ok_response { headers { header { key: "x-two" value: "2" } append { value: true } } }',
    'ok_response { headers { header { key: "x-two" value: "2" } append { value: false } } }',
    'ok_response { headers_to_remove: "x-two" headers_to_remove: "host" headers_to_remove: ":path" }',
    'ok_response { response_headers_to_add { header { key: "x-answer" value: "a" } } }',
    'ok_response { headers { header { key: "x-new" value: "2" } append { value: true } } }',
    'ok_response { headers { header { key: "x-two" value: "2" } append_action: OVERWRITE_IF_EXISTS } }',
    'ok_response { headers { header { key: "x-new" value: "2" } append_action: OVERWRITE_IF_EXISTS_OR_ADD } }',
    'ok_response { headers { header { key: "x-new" value: "" } } }',
    'ok_response { headers { header { key: ":path" value: "/other" } } }',
    'ok_response { headers { header { key: "x-two" value: "2" } } headers_to_remove: "x-two" }',
    'ok_response { query_parameters_to_set { key: "d" value: "9" } query_parameters_to_remove: "f" }',
    'ok_response { response_headers_to_add { header { key: "content-type" value: "a/b" } } }',
    'ok_response { query_parameters_to_set { key: "n" value: "1" } }',
    'ok_response { query_parameters_to_remove: "f" }',
    'status { code: 7 } denied_response { status { code: 401 } body: "no" }',
    'status { code: 7 } denied_response { headers { header { key: "x-why" value: "a" } } }',
    "status { code: 16 }",
    "status { code: 7 } ok_response { }",
    "denied_response { status { code: 401 } }",
]


async def test_the_same_question_by_grpc(pod: GuardedPod) -> None:
    service = GrpcAuthorizer(pod.namespace, GRPC)
    try:
        await pod.guard(ASK_GRPC, authorizers=(GRPC,))
        for asked in REQUESTS:
            service.requests.clear()
            options = {"headers": {}, **asked}
            options["headers"] = {"Host": "shop.test", **options["headers"]}
            ours, envoys = [outcome(await pod.ask(**options, port=port)) for port in (WEB, BY_GRPC)]
            assert ours == envoys, asked
            questions = [question(request) for request in service.requests]
            assert questions == questions[:1] * len(questions), asked
            assert len(questions) == (0 if ours["status"] == 413 else 2)
            assert all(each["source"]["address"]["socketAddress"]["address"] == CLIENT for each in questions)
    finally:
        service.stop()


@pytest.mark.parametrize("text", ANSWERS)
async def test_the_same_answer_by_grpc(pod: GuardedPod, text: str) -> None:
    service = GrpcAuthorizer(pod.namespace, GRPC)
    try:
        service.answer = lambda request: response(text)
        await pod.guard(ASK_GRPC, authorizers=(GRPC,))
        headers = {"Host": "shop.test", "x-two": "1", "x-user": "root"}
        ours, envoys = [outcome(await pod.ask("/p?d=e&f=g", headers, port=port)) for port in (WEB, BY_GRPC)]
        assert ours == envoys
    finally:
        service.stop()


async def test_the_same_without_an_answer(pod: GuardedPod) -> None:
    await pod.guard(ASK_GRPC, authorizers=(GRPC,))
    ours, envoys = [outcome(await pod.ask("/", port=port)) for port in (WEB, BY_GRPC)]
    assert ours == envoys
    assert ours["status"] == 403
    service = GrpcAuthorizer(pod.namespace, GRPC)
    try:
        service.answer = lambda request: 1 / 0
        ours, envoys = [outcome(await pod.ask("/", port=port)) for port in (WEB, BY_GRPC)]
        assert ours == envoys
    finally:
        service.stop()


async def test_the_same_by_http(pod: GuardedPod) -> None:
    web = HttpAuthorizer(pod.namespace, HTTP)
    found = (("x-user", "jane"), ("x-why", "a"), ("x-seen", "b"), ("x-more", "c"), ("location", "/login"))
    try:
        await pod.guard(ASK_HTTP, authorizers=(HTTP,))
        for status in (200, 201, 204, 302, 401, 404, 500):
            web.answer = lambda check, status=status: HttpAnswer(
                status, found, b"" if status == 204 else b"why"
            )
            for asked in REQUESTS:
                web.checks.clear()
                options = {"headers": {}, **asked}
                options["headers"] = {"Host": "shop.test", "x-user": "root", **options["headers"]}
                ours, envoys = [outcome(await pod.ask(**options, port=port)) for port in (WEB, BY_HTTP)]
                assert ours == envoys, (status, asked)
                told = [(each.method, each.path, each.body) for each in web.checks]
                assert told == told[:1] * len(told), (status, asked)
                headers = [
                    {
                        k: v
                        for k, v in each.headers.items()
                        if k not in OWN | {"x-forwarded-for", "x-envoy-auth"}
                    }
                    for each in web.checks
                ]
                assert headers == headers[:1] * len(headers), (status, asked)
                assert {each.headers["host"] for each in web.checks} <= {"shop.test"}
    finally:
        web.stop()
