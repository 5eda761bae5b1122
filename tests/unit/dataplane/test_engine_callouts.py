"""Authorization services asked through the engine's owner: real gRPC and HTTP servers, real requests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import require
from harness.guarded_pod import CLIENT, CLUSTER, HERE, TCP, UID, WEB, GuardedPod, guarded_pod
from harness.scripted_authorizer import (
    GrpcAuthorizer,
    HttpAnswer,
    HttpAuthorizer,
    denied,
    response,
)

from nodeagent.dataplane.access import AccessQuestion, AccessStep, Step
from nodeagent.dataplane.report import format_flags
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.matches import MatchKind
from nodeagent.snapshot.policies import (
    Always,
    Attribute,
    Callout,
    Not,
    Policy,
    RuleAction,
    Rules,
    TextCheck,
    TextMatch,
)

pytestmark = pytest.mark.netns

GRPC, HTTP, NOBODY = 9901, 9902, 9903
BY_GRPC = Callout(CLUSTER, grpc=True, timeout_ms=2000)
BY_HTTP = Callout(CLUSTER, grpc=False, timeout_ms=2000)


def names(*values: str) -> tuple[TextMatch, ...]:
    return tuple(TextMatch(MatchKind.EXACT, value) for value in values)


@pytest.fixture
async def pod() -> AsyncIterator[GuardedPod]:
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-callouts-{id(object())}") as made:
        yield made


@pytest.fixture
def service(pod: GuardedPod) -> Iterator[GrpcAuthorizer]:
    made = GrpcAuthorizer(pod.namespace, GRPC)
    yield made
    made.stop()


@pytest.fixture
def web(pod: GuardedPod) -> Iterator[HttpAuthorizer]:
    made = HttpAuthorizer(pod.namespace, HTTP)
    yield made
    made.stop()


# -- gRPC --


async def test_what_is_asked_by_grpc(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(
        replace(BY_GRPC, authority="authz.test", metadata=(("x-key", "secret"),)), authorizers=(GRPC,)
    )
    headers = {"X-Two": "ä", "x-request-id": "r1", "Host": "Shop.test"}
    answer = await pod.ask("/a/b?c=d", headers, method="PUT", body="text")
    assert answer.seen["body"] == "text"
    (check,) = service.requests
    source = check.attributes.source.address.socket_address
    destination = check.attributes.destination.address.socket_address
    assert source.address == CLIENT
    assert source.port_value > 0
    assert (destination.address, destination.port_value) == (HERE, WEB)
    assert check.attributes.source.principal == ""
    http = check.attributes.request.http
    assert (http.method, http.path, http.host, http.scheme) == ("PUT", "/a/b?c=d", "Shop.test", "http")
    assert (http.protocol, http.size, http.body) == ("HTTP/1.1", 0, "")
    assert http.id.isdigit()
    assert abs(check.attributes.request.time.ToNanoseconds() / 1e9 - time.time()) < 5
    assert http.headers["x-two"] == "!!" or http.headers["x-two"] == "!"
    assert http.headers["x-request-id"] == "r1"
    assert http.headers[":path"] == "/a/b?c=d"
    assert http.headers[":authority"] == "Shop.test"
    assert service.metadata[0]["x-key"] == "secret"
    assert pod.counter("callout_allowed_total") == 1
    assert pod.counter("callout_active") == 0


async def test_only_some_headers_are_told(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    headers = {"x-a": "1", "x-b": "2", "x-secret": "3", "X-Envoy-Auth-Partial-Body": "forged"}
    await pod.guard(replace(BY_GRPC, hide=names("x-secret")), authorizers=(GRPC,))
    await pod.ask("/", headers)
    told = service.requests[-1].attributes.request.http.headers
    assert (told["x-a"], told["x-b"], told[":method"]) == ("1", "2", "GET")
    assert "x-secret" not in told
    assert "x-envoy-auth-partial-body" not in told
    some = (TextMatch(MatchKind.PREFIX, "x-"),)
    await pod.guard(replace(BY_GRPC, send=some, hide=names("x-b", "x-secret")), authorizers=(GRPC,))
    await pod.ask("/", headers)
    assert dict(service.requests[-1].attributes.request.http.headers) == {"x-a": "1"}


async def test_connections_are_shared(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    for _ in range(5):
        assert (await pod.ask()).status == 200
    answers = await asyncio.gather(*(pod.ask(f"/{i}") for i in range(40)))
    assert {answer.status for answer in answers} == {200}
    assert len(service.requests) == 45
    assert len(service.peers) == 1


async def test_a_service_takes_so_many_at_once(pod: GuardedPod) -> None:
    service = GrpcAuthorizer(pod.namespace, GRPC, max_streams=2)
    try:
        service.answer = lambda request: time.sleep(0.05) or response()
        await pod.guard(BY_GRPC, authorizers=(GRPC,))
        await pod.ask()
        answers = await asyncio.gather(*(pod.ask(f"/{i}") for i in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert 1 < len(service.peers) <= 20
    finally:
        service.stop()


@pytest.mark.parametrize(
    ("limit", "counter"),
    [("callout_max_calls", "callout_overflow_total"), ("callout_max_channels", "callout_cx_overflow_total")],
)
async def test_questions_at_once_are_bounded(limit: str, counter: str) -> None:
    """By HTTP each question that is under way has a connection of its own."""
    require("root", "engine", "nft")
    async with guarded_pod(f"nt-callouts-{id(object())}", **{limit: 1}) as pod:
        waits = threading.Event()
        web = HttpAuthorizer(pod.namespace, HTTP)
        try:
            web.answer = lambda path: waits.wait(5) and HttpAnswer()
            await pod.guard(replace(BY_HTTP, status_on_error=503), authorizers=(HTTP,))
            first = asyncio.create_task(pod.ask("/first"))
            while not pod.counter("callout_active"):
                await asyncio.sleep(0.005)
            assert (await pod.ask("/second")).status == 503
            assert pod.counter(counter) == 1
            waits.set()
            assert (await first).status == 200
        finally:
            waits.set()
            web.stop()


async def test_an_answer_is_bounded(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(replace(BY_GRPC, status_on_error=503), authorizers=(GRPC,))
    for size, status in ((200_000, 403), (300_000, 503), (200_000, 403)):
        service.answer = lambda request, size=size: denied('body: "' + "x" * size + '"')
        answer = await pod.ask()
        assert answer.status == status
        assert len(answer.body) == (size if status == 403 else 0)
    many = 'headers_to_remove: "x" ' * 300
    service.answer = lambda request: response(f"ok_response {{ {many} }}")
    assert (await pod.ask()).status == 503
    big = "y" * 70_000
    service.answer = lambda request: response(
        f'ok_response {{ headers {{ header {{ key: "x" value: "{big}" }} }} }}'
    )
    assert (await pod.ask()).status == 503


async def test_a_refusal_is_passed_on(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    service.answer = lambda request: denied(
        """status { code: 429 } body: "{}"
        headers { header { key: "content-type" value: "application/json" } }
        headers { header { key: "set-cookie" value: "a=b" } }
        headers { header { key: "content-length" value: "9999" } }
        headers { header { key: "x-bad" value: "a\\r\\nx-evil: 1" } }"""
    )
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    answer = await pod.ask()
    assert (answer.status, answer.body) == (429, "{}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["set-cookie"] == "a=b"
    assert answer.headers["content-length"] == "2"
    assert "x-evil" not in answer.headers
    record = await pod.record()
    assert (record.detail, format_flags(record.flags)) == ("ext_authz_denied", "UAEX")
    service.answer = lambda request: response("status { code: 16 }")
    answer = await pod.ask()
    assert (answer.status, answer.body) == (403, "")
    assert pod.counter("callout_denied_total") == 2


async def test_an_allowing_answer_changes_the_request(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    service.answer = lambda request: response(
        """ok_response {
          headers { header { key: "X-User" value: "jane" } }
          headers { header { key: "x-list" value: "b" } append { value: true } }
          headers { header { key: "x-new" value: "n" } append { value: true } }
          headers { header { key: "x-absent" value: "1" } append_action: ADD_IF_ABSENT }
          headers { header { key: "x-there" value: "1" } append_action: ADD_IF_ABSENT }
          headers { header { key: "transfer-encoding" value: "chunked" } }
          headers_to_remove: "authorization"
          headers_to_remove: "host"
          headers_to_remove: ":path"
          response_headers_to_add { header { key: "x-answer" value: "yes" } }
          query_parameters_to_set { key: "b" value: "3" }
          query_parameters_to_set { key: "c" value: "4" }
          query_parameters_to_remove: "a"
        }"""
    )
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    headers = {"x-user": "root", "x-list": "a", "x-there": "0", "Authorization": "secret"}
    answer = await pod.ask("/p?a=1&b=2&d=5", headers)
    assert answer.seen["path"] == "/p?d=5&b=3&c=4"
    assert answer.header("x-user") == ["jane"]
    assert answer.header("x-list") == ["a,b"]
    assert answer.header("x-new") == []
    assert answer.header("x-absent") == ["1"]
    assert answer.header("x-there") == ["0"]
    assert answer.header("authorization") == answer.header("transfer-encoding") == []
    assert len(answer.header("host")) == 1
    assert answer.headers["x-answer"] == "yes"


async def test_an_impossible_change_is_no_answer(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    for change in (
        'headers { header { key: "x-a" value: "a\\nb" } }',
        'headers { header { key: "a b" value: "c" } }',
        'query_parameters_to_set { key: "a" value: "b c" }',
    ):
        service.answer = lambda request, text=change: response(f"ok_response {{ {text} }}")
        assert (await pod.ask()).status == 403, change
        assert (await pod.record()).detail == "ext_authz_error"


async def test_metadata_reaches_later_rules(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    name = "envoy.filters.http.ext_authz\x1fuser\x1froles"
    check = TextCheck(Attribute.METADATA, MatchKind.EXACT, "admin", name)
    await pod.guard(BY_GRPC, Rules(RuleAction.ALLOW, (Policy("admins", check),)), authorizers=(GRPC,))
    roles = """dynamic_metadata { fields { key: "user" value { struct_value { fields { key: "roles" value {
        list_value { values { string_value: "dev" } values { string_value: "%s" } } } } } } } }"""
    service.answer = lambda request: response(roles % "admin")
    assert (await pod.ask()).status == 200
    service.answer = lambda request: response(roles % "guest")
    assert (await pod.ask()).status == 403


def fail(request: Any) -> Any:
    raise ValueError("on purpose")


def sleep(request: Any) -> Any:
    time.sleep(1)
    return response()


@pytest.mark.parametrize("port", [NOBODY, HTTP, GRPC])
async def test_without_an_answer_it_is_closed_or_open(
    pod: GuardedPod, service: GrpcAuthorizer, web: HttpAuthorizer, port: int
) -> None:
    service.answer = fail
    callout = replace(BY_GRPC, status_on_error=503)
    await pod.guard(callout, authorizers=(port,))
    answer = await pod.ask()
    assert (answer.status, answer.body) == (503, "")
    record = await pod.record()
    assert (record.detail, format_flags(record.flags)) == ("ext_authz_error", "UAEX")
    mark = "x-envoy-auth-failure-mode-allowed"
    await pod.guard(replace(callout, fail_open=True), authorizers=(port,))
    assert (await pod.ask()).header(mark) == []
    await pod.guard(replace(callout, fail_open=True, mark_open=True), authorizers=(port,))
    assert (await pod.ask("/", {mark: "no"})).header(mark) == ["true"]
    assert pod.counter("callout_error_total") == 3
    assert pod.counter("callout_failed_open_total") == 2


async def test_a_late_answer_is_none(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    service.answer = sleep
    await pod.guard(replace(BY_GRPC, timeout_ms=100), authorizers=(GRPC,))
    began = time.monotonic()
    assert (await pod.ask()).status == 403
    assert time.monotonic() - began < 0.9
    assert pod.counter("callout_timeout_total") == 1
    await asyncio.sleep(1.2)  # the answer comes now, to nobody
    service.answer = lambda request: response()
    assert (await pod.ask()).status == 200
    assert pod.counter("callout_active") == 0


async def test_a_client_that_leaves_takes_its_question_along(
    pod: GuardedPod, service: GrpcAuthorizer
) -> None:
    service.answer = sleep
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    pod.namespace.run(lambda: _ask_and_leave())
    async with asyncio.timeout(5):
        while not service.requests or pod.counter("callout_active"):
            await asyncio.sleep(0.01)
    assert pod.counter("guards_waiting") == 0
    await asyncio.sleep(1.2)
    service.answer = lambda request: response()
    assert (await pod.ask()).status == 200


def _ask_and_leave() -> None:
    import socket

    with socket.create_connection((HERE, WEB), 5, (CLIENT, 0)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        linger = (1).to_bytes(4, "little") + bytes(4)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def test_a_restarted_service_is_found_again(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(BY_GRPC, authorizers=(GRPC,))
    assert (await pod.ask()).status == 200
    service.stop()
    assert (await pod.ask()).status == 403
    again = GrpcAuthorizer(pod.namespace, GRPC)
    try:
        assert (await pod.ask()).status == 200
    finally:
        again.stop()


async def test_another_endpoint_is_asked_when_one_is_gone(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(BY_GRPC, authorizers=(NOBODY, GRPC))
    assert [(await pod.ask()).status for _ in range(6)] == [200] * 6


async def test_it_is_asked_only_when_it_is_to_be(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    service.answer = lambda request: denied()
    check = TextCheck(Attribute.PATH, MatchKind.PREFIX, "/asked")
    await pod.guard(replace(BY_GRPC, when=check), authorizers=(GRPC,))
    assert (await pod.ask("/asked/a")).status == 403
    assert (await pod.ask("/other")).status == 200
    deny = Rules(RuleAction.DENY, (Policy("all", Always()),))
    await pod.guard(deny, BY_GRPC, authorizers=(GRPC,))
    assert (await pod.ask("/asked/a")).status == 403
    assert len(service.requests) == 1


async def test_it_is_explained_without_asking(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    check = TextCheck(Attribute.PATH, MatchKind.PREFIX, "/asked")
    await pod.guard(replace(BY_GRPC, when=check), authorizers=(GRPC,))
    here = parse_address(HERE)
    for path, words in (("/asked", "would be asked"), ("/", "not asked")):
        question = AccessQuestion(WEB, here, here, method="GET", authority="a", path=path)
        answer = pod.engine.explain_access(UID, question)
        assert answer.allowed
        assert AccessStep(Step.CALLOUT, (CLUSTER, words)) in answer.steps
    assert service.requests == []


async def test_a_cluster_that_is_not_there_does_not_answer(pod: GuardedPod) -> None:
    await pod.guard(BY_GRPC)
    assert (await pod.ask()).status == 403
    assert (await pod.record()).detail == "ext_authz_error"


# -- bodies --


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_are_sent_along(pod: GuardedPod, service: GrpcAuthorizer, chunked: bool) -> None:
    def body(text: str) -> Any:
        return iter([part.encode() for part in (text[:3], text[3:]) if part]) if chunked else text

    options = {"encode_chunked": chunked}
    await pod.guard(replace(BY_GRPC, body_bytes=10), authorizers=(GRPC,))
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    answer = await pod.ask("/", headers, method="POST", body=body("0123456789"), **options)
    assert answer.seen["body"] == "0123456789"
    http = service.requests[-1].attributes.request.http
    assert (http.body, http.size) == ("0123456789", 10)
    assert http.headers["x-envoy-auth-partial-body"] == "false"
    answer = await pod.ask("/", headers, method="POST", body=body("01234567890"), **options)
    assert (answer.status, answer.body) == (413, "Payload Too Large")
    assert pod.counter("callout_body_too_large_total") == 1
    partial = replace(BY_GRPC, body_bytes=10, body_partial=True, body_raw=True)
    await pod.guard(partial, authorizers=(GRPC,))
    long = "0123456789" * 30000
    answer = await pod.ask("/", headers, method="POST", body=body(long), **options)
    assert answer.seen["body"] == long
    http = service.requests[-1].attributes.request.http
    assert (http.raw_body, http.body) == (b"0123456789", "")
    assert http.headers["x-envoy-auth-partial-body"] == "true"
    assert (await pod.ask()).status == 200
    assert "x-envoy-auth-partial-body" not in service.requests[-1].attributes.request.http.headers


async def test_a_slow_body_is_waited_for(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(replace(BY_GRPC, body_bytes=100000), authorizers=(GRPC,))

    def slow() -> Iterator[bytes]:
        for part in range(5):
            yield str(part).encode() * 15000
            time.sleep(0.05)

    headers = {"Transfer-Encoding": "chunked"}
    answer = await pod.ask("/", headers, method="POST", body=slow(), encode_chunked=True)
    assert len(answer.seen["body"]) == 75000
    assert len(service.requests[0].attributes.request.http.body) == 75000


@pytest.mark.parametrize("sizes", [(100,), (1, 100)], ids=["one", "two"])
async def test_a_client_that_expects_to_be_invited_is(
    pod: GuardedPod, service: GrpcAuthorizer, sizes: tuple[int, ...]
) -> None:
    """Once, however many want the body."""
    asked = (replace(BY_GRPC, body_bytes=size, body_partial=True) for size in sizes)
    await pod.guard(*asked, authorizers=(GRPC,))
    head = (
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )

    def exchange() -> bytes:
        import socket

        with socket.create_connection((HERE, WEB), 5, (CLIENT, 0)) as connection:
            connection.sendall(head.encode())
            first = connection.recv(1000)
            connection.sendall(b"h")
            while len(service.requests) < len(sizes) - 1:
                time.sleep(0.005)
            time.sleep(0.05)  # for the second one to invite, if it would
            connection.sendall(b"i")
            rest = b""
            while chunk := connection.recv(65536):
                rest += chunk
            return first + rest

    received = await asyncio.to_thread(pod.namespace.run, exchange)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert received.count(b"HTTP/1.1 100") == 1, "the application's own invitation comes too late"
    assert b'"body": "hi"' in received


async def test_a_malformed_body_is_refused(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(replace(BY_GRPC, body_bytes=100), authorizers=(GRPC,))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await pod.raw(head + b"zz\r\n")).startswith(b"HTTP/1.1 400 ")
    assert service.requests == []


# -- connections --


async def test_connections_are_asked_about(pod: GuardedPod, service: GrpcAuthorizer) -> None:
    await pod.guard(connection=(BY_GRPC,), authorizers=(GRPC,))
    assert await pod.raw(b"", TCP) == b"hello"
    attributes = service.requests[0].attributes
    assert attributes.source.address.socket_address.address == CLIENT
    assert attributes.destination.address.socket_address.port_value == TCP
    assert not attributes.HasField("request")
    service.answer = lambda request: denied()
    assert await pod.raw(b"", TCP) == b"reset"
    service.answer = fail
    assert await pod.raw(b"", TCP) == b"reset"
    await pod.guard(connection=(replace(BY_GRPC, fail_open=True),), authorizers=(GRPC,))
    assert await pod.raw(b"", TCP) == b"hello"
    service.answer = sleep
    await pod.guard(connection=(replace(BY_GRPC, timeout_ms=100),), authorizers=(GRPC,))
    assert await pod.raw(b"", TCP) == b"reset"


# -- HTTP --


async def test_what_is_asked_by_http(pod: GuardedPod, web: HttpAuthorizer) -> None:
    callout = replace(
        BY_HTTP,
        path_prefix="/check",
        send=(*names("x-told"), TextMatch(MatchKind.PREFIX, "x-also-")),
        send_extra=(("x-extra", "1"), ("x-told-not", "2")),
        body_bytes=5,
        body_partial=True,
    )
    await pod.guard(callout, authorizers=(HTTP,))
    headers = {
        "Host": "shop.test",
        "X-Told": "a",
        "x-also-b": "b",
        "x-secret": "c",
        "x-extra": "forged",
        "Authorization": "Bearer x",
    }
    answer = await pod.ask("/p?q=1", headers, method="POST", body="0123456789")
    assert answer.seen["body"] == "0123456789"
    (check,) = web.checks
    assert (check.method, check.path, check.body) == ("POST", "/check/p?q=1", b"01234")
    assert check.headers == {
        "host": "shop.test",
        "content-length": "5",
        "x-envoy-auth-partial-body": "true",
        "x-told": "a",
        "x-also-b": "b",
        "authorization": "Bearer x",
        "x-extra": "1",
        "x-told-not": "2",
    }


async def test_an_http_answer_allows(pod: GuardedPod, web: HttpAuthorizer) -> None:
    found = (("X-User", "jane"), ("x-group", "a"), ("x-group", "b"), ("x-other", "c"), ("x-seen", "1"))
    web.answer = lambda check: HttpAnswer(headers=found, body=b"ignored")
    callout = replace(BY_HTTP, keep=names("x-user", "x-group"), answer_allowed=names("x-seen"))
    await pod.guard(callout, authorizers=(HTTP,))
    answer = await pod.ask("/", {"x-user": "root", "x-other": "mine"})
    assert answer.header("x-user") == ["jane"]
    assert answer.header("x-group") == ["a", "b"]
    assert answer.header("x-other") == ["mine"]
    assert answer.headers["x-seen"] == "1"
    assert "x-user" not in answer.headers


async def test_an_http_answer_adds_and_informs(pod: GuardedPod, web: HttpAuthorizer) -> None:
    name = "envoy.filters.http.ext_authz\x1fx-role"
    admins = TextCheck(Attribute.METADATA, MatchKind.EXACT, "admin", name)
    allow = Rules(RuleAction.ALLOW, (Policy("admins", admins),))
    web.answer = lambda check: HttpAnswer(headers=(("x-list", "b"), ("X-Role", "admin")))
    callout = replace(BY_HTTP, keep_append=names("x-list"), keep_metadata=names("x-role"))
    await pod.guard(callout, allow, authorizers=(HTTP,))
    assert (await pod.ask("/", {"x-list": "a"})).header("x-list") == ["a,b"]
    web.answer = lambda check: HttpAnswer(headers=(("x-role", "guest"),))
    assert (await pod.ask()).status == 403


async def test_an_http_answer_refuses(pod: GuardedPod, web: HttpAuthorizer) -> None:
    found = (("Location", "https://login.test"), ("x-why", "a"), ("x-more", "b"))
    web.answer = lambda check: HttpAnswer(302, found, b"go there")
    await pod.guard(BY_HTTP, authorizers=(HTTP,))
    answer = await pod.ask()
    assert (answer.status, answer.body) == (302, "go there")
    assert (answer.headers["location"], answer.headers["x-why"]) == ("https://login.test", "a")
    assert (await pod.record()).detail == "ext_authz_denied"
    await pod.guard(replace(BY_HTTP, answer=names("x-why")), authorizers=(HTTP,))
    answer = await pod.ask()
    assert (answer.headers["location"], answer.headers["x-why"]) == ("https://login.test", "a")
    assert "x-more" not in answer.headers


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_by_http_is_no_answer(pod: GuardedPod, web: HttpAuthorizer, status: int) -> None:
    web.answer = lambda check: HttpAnswer(status)
    await pod.guard(replace(BY_HTTP, status_on_error=502), authorizers=(HTTP,))
    assert (await pod.ask()).status == 502
    assert (await pod.record()).detail == "ext_authz_error"
    await pod.guard(replace(BY_HTTP, fail_open=True), authorizers=(HTTP,))
    assert (await pod.ask()).status == 200


async def test_http_connections_are_kept_and_renewed(pod: GuardedPod, web: HttpAuthorizer) -> None:
    await pod.guard(BY_HTTP, authorizers=(HTTP,))
    for _ in range(5):
        assert (await pod.ask()).status == 200
    assert len(web.connections) == 1
    web.answer = lambda check: HttpAnswer(close=True)
    assert [(await pod.ask()).status for _ in range(10)] == [200] * 10
    assert (await pod.ask("/", method="HEAD")).status in (200, 501)


async def test_two_services_and_rules_in_a_row(
    pod: GuardedPod, service: GrpcAuthorizer, web: HttpAuthorizer
) -> None:
    """What one stage writes the next one sees."""
    service.answer = lambda request: response(
        'ok_response { headers { header { key: "x-user" value: "jane" } } }'
    )
    user = TextCheck(Attribute.HEADER, MatchKind.EXACT, "jane", "x-user")
    allow = Rules(RuleAction.ALLOW, (Policy("jane", user),))
    deny = Rules(RuleAction.DENY, (Policy("others", Not(user)),))
    await pod.guard(BY_GRPC, allow, BY_GRPC, deny, authorizers=(GRPC,))
    assert (await pod.ask("/", {"x-user": "root"})).header("x-user") == ["jane"]
    assert [r.attributes.request.http.headers["x-user"] for r in service.requests] == ["root", "jane"]
