"""The xDS client against a real ADS server that does what each test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from harness.ads import AdsServer, Session, resource

from nodeagent.errors import ConfigError
from nodeagent.model.extensions import MORE
from nodeagent.xds.backoff import Backoff
from nodeagent.xds.protocol import STEP, Update
from nodeagent.xds.stream import DeltaStream
from nodeagent.xds.transport import grpc_target
from nodeagent.xds.types import CLUSTER, ENDPOINTS, LISTENER


class Recorder:
    """A consumer that keeps what it is given and rejects the names it is told to."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.rejecting: dict[str, str] = {}
        self.broken = False

    def apply(self, update: Update) -> Mapping[str, str]:
        self.updates.append(update)
        if self.broken:
            raise RuntimeError("a defect")
        names = {received.name for received in update.resources}
        return {name: why for name, why in self.rejecting.items() if name in names}

    @property
    def names(self) -> list[list[str]]:
        return [[received.name for received in update.resources] for update in self.updates]

    async def wait(self, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while len(self.updates) < count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def server() -> AsyncIterator[AdsServer]:
    async with AdsServer() as server:
        yield server


@contextlib.asynccontextmanager
async def running(address: str, consumer: Recorder, **fields: Any) -> AsyncIterator[DeltaStream]:
    stream = DeltaStream(
        "test", address, base_pb2.Node(id="node-1"), (CLUSTER, ENDPOINTS, LISTENER), consumer, **fields
    )
    stream.subscribe(CLUSTER, ["*"])
    task = asyncio.create_task(stream.run())
    try:
        yield stream
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def a_cluster(name: str, version: str = "1", aliases: tuple[str, ...] = ()) -> Any:
    return resource(name, cluster_pb2.Cluster(name=name), version, aliases)


async def acked(session: Session, nonce: str) -> Any:
    request = await session.request()
    assert request.response_nonce == nonce
    return request


async def test_the_wildcard_is_asked_for_by_naming_nothing(server: AdsServer) -> None:
    async with running(server.address, Recorder()):
        request = await (await server.session()).request()
        assert request.node.id == "node-1"
        assert request.type_url == CLUSTER
        assert list(request.resource_names_subscribe) == []
        assert not request.response_nonce


async def test_a_response_is_delivered_and_acked(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        nonce = session.respond(CLUSTER, [a_cluster("a"), a_cluster("b")], removed=["c"])
        ack = await acked(session, nonce)
        assert not ack.HasField("error_detail")
        assert not ack.HasField("node")
        assert recorder.names == [[], ["a", "b"]]
        assert recorder.updates[0].removed == ("c",)
        state = stream.protocol.types[CLUSTER]
        assert sorted(state.resources) == ["a", "b"]
        assert state.in_sync
        assert state.version == "test"
        assert stream.state.connected


async def test_one_bad_resource_of_three_is_nacked_and_the_others_apply(server: AdsServer) -> None:
    recorder = Recorder()
    recorder.rejecting = {"b": "lb_policy is not supported"}
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        nonce = session.respond(CLUSTER, [a_cluster("a"), a_cluster("b"), a_cluster("c")])
        nack = await acked(session, nonce)
        assert nack.error_detail.message == "b: lb_policy is not supported"
        assert nack.error_detail.code == 3
        state = stream.protocol.types[CLUSTER]
        assert sorted(state.resources) == ["a", "c"]
        assert state.nack == "b: lb_policy is not supported"
        # The mended one clears it.
        recorder.rejecting = {}
        ack = await acked(session, session.respond(CLUSTER, [a_cluster("b", "2")]))
        assert not ack.HasField("error_detail")
        assert state.nack == ""
        assert state.nacks == 1


async def test_a_rejected_change_keeps_the_last_good_one(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("a", "1")]))
        recorder.rejecting = {"a": "no"}
        await acked(session, session.respond(CLUSTER, [a_cluster("a", "2")]))
        assert stream.protocol.types[CLUSTER].resources["a"].version == "1"


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([a_cluster("a"), a_cluster("a", "2")], "a: is in one response more than once"),
        (
            [resource("a", base_pb2.Node())],
            f"a: is a type.googleapis.com/envoy.config.core.v3.Node, not a {CLUSTER}",
        ),
        (
            [discovery_pb2.Resource(name="a", resource={"type_url": CLUSTER, "value": b"\xff\xff\xff"})],
            "a: cannot be decoded",
        ),
    ],
)
async def test_malformed_resources_are_nacked_by_name(server: AdsServer, items: list[Any], why: str) -> None:
    recorder = Recorder()
    async with running(server.address, recorder):
        session = await server.session()
        await session.request()
        nack = await acked(session, session.respond(CLUSTER, [*items, a_cluster("good")]))
        assert why in nack.error_detail.message
        assert recorder.names == [["good"]]


async def test_a_type_is_answered_with_the_last_part(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("a")], identifier=MORE))
        assert recorder.names == [["a"]]
        assert not stream.protocol.types[CLUSTER].answered
        await acked(session, session.respond(CLUSTER, [a_cluster("b")], identifier="istiod"))
        assert stream.protocol.types[CLUSTER].answered
        await acked(session, session.respond(CLUSTER, [a_cluster("c")], identifier=MORE))
        assert stream.protocol.types[CLUSTER].answered


async def test_a_large_response_lets_others_have_their_turn(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        nonce = session.respond(CLUSTER, [a_cluster(f"c{i}") for i in range(5000)] + [a_cluster("c7", "2")])
        await recorder.wait(1)
        assert len(recorder.updates) < 5000 / STEP / 2
        assert not stream.protocol.types[CLUSTER].answered
        nack = await acked(session, nonce)
        assert nack.error_detail.message == "c7: is in one response more than once"
        assert sum(map(len, recorder.names)) == 5000
        assert stream.protocol.types[CLUSTER].answered


async def test_a_type_that_was_not_asked_for_is_nacked(server: AdsServer) -> None:
    async with running(server.address, Recorder()):
        session = await server.session()
        await session.request()
        nack = await acked(session, session.respond("type.googleapis.com/acme.Anvil"))
        assert "was not asked for" in nack.error_detail.message


async def test_a_defect_in_the_consumer_is_nacked_and_survived(server: AdsServer) -> None:
    recorder = Recorder()
    recorder.broken = True
    async with running(server.address, recorder):
        session = await server.session()
        await session.request()
        nack = await acked(session, session.respond(CLUSTER, [a_cluster("a")]))
        assert "internal error" in nack.error_detail.message
        recorder.broken = False
        ack = await acked(session, session.respond(CLUSTER, [a_cluster("a")]))
        assert not ack.HasField("error_detail")


async def test_subscriptions_change_on_a_live_stream(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        stream.subscribe(LISTENER, ["x", "y"])
        request = await session.request()
        assert (request.type_url, list(request.resource_names_subscribe)) == (LISTENER, ["x", "y"])
        stream.unsubscribe(LISTENER, ["x"])
        request = await session.request()
        assert list(request.resource_names_unsubscribe) == ["x"]
        assert list(request.resource_names_subscribe) == []
        stream.unsubscribe(LISTENER, ["never"])
        stream.subscribe(LISTENER, ["y"])
        await session.silence()


async def test_a_name_wanted_again_at_once_is_asked_for_again(server: AdsServer) -> None:
    async with running(server.address, Recorder()) as stream:
        session = await server.session()
        await session.request()
        stream.subscribe(LISTENER, ["x"])
        await session.request()
        stream.unsubscribe(LISTENER, ["x"])
        stream.subscribe(LISTENER, ["x"])
        request = await session.request()
        assert list(request.resource_names_subscribe) == ["x"]
        assert list(request.resource_names_unsubscribe) == []


async def test_names_that_are_not_there_are_known_to_be_absent(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        stream.subscribe(LISTENER, ["x"])
        await session.request()
        state = stream.protocol.types[LISTENER]
        assert not state.known("x")
        await acked(session, session.respond(LISTENER, removed=["x"]))
        assert state.known("x")
        assert recorder.updates[-1].removed == ("x",)


async def test_an_unanswered_name_is_taken_for_absent_after_a_while(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder, fetch_timeout=0.2) as stream:
        await (await server.session()).request()
        stream.subscribe(LISTENER, ["x"])
        await recorder.wait()
        assert recorder.updates[-1] == Update(LISTENER, removed=("x",))
        assert stream.protocol.types[LISTENER].known("x")


async def test_what_nobody_wants_any_more_is_passed_over(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        stream.subscribe(ENDPOINTS, ["x"])
        await session.request()
        stream.unsubscribe(ENDPOINTS, ["x"])
        await session.request()
        late = discovery_pb2.Resource(name="x", version="1", resource={"type_url": ENDPOINTS})
        ack = await acked(session, session.respond(ENDPOINTS, [late]))
        assert not ack.HasField("error_detail")
        assert recorder.updates == []


async def test_an_alias_answers_the_name_asked_for(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        stream.unsubscribe(CLUSTER, ["*"])
        stream.subscribe(CLUSTER, ["short"])
        session = await server.session()
        request = await session.request()
        while list(request.resource_names_subscribe) != ["short"]:
            request = await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("long", aliases=("short", "other"))]))
        assert recorder.names == [["short"]]
        assert list(stream.protocol.types[CLUSTER].resources) == ["short"]


async def test_a_heartbeat_keeps_a_resource_and_its_end_removes_it(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder, fetch_timeout=0.4) as stream:
        session = await server.session()
        await session.request()
        item = a_cluster("a")
        item.ttl.FromMilliseconds(400)
        await acked(session, session.respond(CLUSTER, [item]))
        beat = discovery_pb2.Resource(name="a", version="1")
        beat.ttl.FromMilliseconds(400)
        for _ in range(3):
            await asyncio.sleep(0.2)
            await acked(session, session.respond(CLUSTER, [beat]))
        assert recorder.names == [["a"]]
        await recorder.wait(2)
        assert recorder.updates[-1].removed == ("a",)
        assert not stream.protocol.types[CLUSTER].resources


async def test_a_resource_without_body_says_that_there_is_none(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        stream.subscribe(LISTENER, ["x"])
        await session.request()
        await acked(session, session.respond(LISTENER, [discovery_pb2.Resource(name="x")]))
        assert recorder.updates[-1].removed == ("x",)


async def test_a_reconnect_tells_what_is_held_without_what_was_rejected(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("a", "1"), a_cluster("b", "1")]))
        stream.subscribe(LISTENER, ["x"])
        await session.request()
        recorder.rejecting = {"b": "no"}
        await acked(session, session.respond(CLUSTER, [a_cluster("b", "2")]))
        session.end(grpc.StatusCode.UNAVAILABLE, "going away")
        session = await server.session()
        first, second = await session.request(), await session.request()
        assert first.node.id == "node-1"
        assert dict(first.initial_resource_versions) == {"a": "1"}
        assert list(first.resource_names_subscribe) == []
        assert list(second.resource_names_subscribe) == ["x"]
        assert not second.HasField("node")
        assert not first.response_nonce
        # Nothing was taken away meanwhile.
        assert sorted(stream.protocol.types[CLUSTER].resources) == ["a", "b"]
        assert stream.state.connects == 2


async def test_a_server_that_restarts_is_found_again(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("a")]))
        await server.stop()
        await asyncio.sleep(0.2)
        assert not stream.state.connected
        assert stream.state.last_error
        await server.start()
        session = await server.session(15)
        assert dict((await session.request()).initial_resource_versions) == {"a": "1"}


async def test_a_stream_that_ends_well_is_opened_again(server: AdsServer) -> None:
    async with running(server.address, Recorder()) as stream:
        session = await server.session()
        await session.request()
        session.end()
        await (await server.session()).request()
        assert stream.state.connects == 2


async def test_a_stream_can_be_opened_anew(server: AdsServer) -> None:
    async with running(server.address, Recorder()) as stream:
        session = await server.session()
        await session.request()
        await acked(session, session.respond(CLUSTER, [a_cluster("a")]))
        stream.reopen()
        first = await (await server.session()).request()
        assert dict(first.initial_resource_versions) == {"a": "1"}
        assert stream.state.last_error == ""


async def test_a_slow_server_gets_each_answer_once(server: AdsServer) -> None:
    recorder = Recorder()
    async with running(server.address, recorder) as stream:
        session = await server.session()
        await session.request()
        nonces = [session.respond(CLUSTER, [a_cluster(f"c{i}")]) for i in range(50)]
        await recorder.wait(50)
        stream.subscribe(LISTENER, ["x"])
        seen = [await session.request() for _ in range(51)]
        assert [r.response_nonce for r in seen if r.type_url == CLUSTER] == nonces
        assert [r.type_url for r in seen].count(LISTENER) == 1


async def test_a_server_without_ads_is_not_hammered() -> None:
    refusing = grpc.aio.server()
    port = refusing.add_insecure_port("127.0.0.1:0")
    await refusing.start()
    backoff = Backoff()
    async with running(f"127.0.0.1:{port}", Recorder(), backoff=backoff) as stream:
        await asyncio.sleep(1)
        assert "UNIMPLEMENTED" in stream.state.last_error
        assert 3 <= backoff.attempts <= 10
    await refusing.stop(None)


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with running(address, Recorder()) as stream:
        async with asyncio.timeout(5):
            while not stream.state.last_error:
                await asyncio.sleep(0.01)
        assert "refused" in stream.state.last_error
        assert stream.state.attempts >= 1


async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    async with AdsServer(f"unix:{tmp_path}/ads.sock") as server, running(server.address, Recorder()):
        request = await (await server.session()).request()
        assert request.type_url == CLUSTER


@pytest.mark.parametrize("address", ["", "15010", "host", "host:0", "host:99999", "unix:", "http://h:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="neither host:port nor unix:PATH"):
        grpc_target(address)


def test_backoff_doubles_to_its_limit() -> None:
    backoff = Backoff()
    delays = [backoff.next() for _ in range(20)]
    assert 0.005 <= delays[0] <= 0.01
    assert all(7.5 <= delay <= 15 for delay in delays[11:])
    backoff.reset()
    assert backoff.next() <= 0.01


async def test_a_server_that_refuses_again_and_again_is_news_once(
    server: AdsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(server.address, Recorder()) as stream:
        for _ in range(4):
            session = await server.session()
            await session.request()
            session.end(grpc.StatusCode.PERMISSION_DENIED, "no pod default/web")
        session = await server.session()
        await session.request()
        assert [text for text in caplog.messages if "no pod default/web" in text] == [
            f"xDS stream test to {server.address}: PERMISSION_DENIED: no pod default/web"
        ]
        await acked(session, session.respond(CLUSTER, [a_cluster("a")]))
        assert stream.state.last_error == ""
        assert "is connected again" in caplog.messages[-1]
