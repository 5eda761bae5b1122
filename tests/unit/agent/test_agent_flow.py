"""The agent against a real ADS server, with doubles of the data plane's owners only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness import xds_resources as xds
from harness.ads import MeshServer
from harness.agent_node import OUTBOUND, REVIEWS, VIP, FakeDataplane, Node, config, running

from nodeagent.app import agent
from nodeagent.app.agent import Agent
from nodeagent.errors import NetnsError, NftError, NodeagentError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import Protocol
from nodeagent.xds.types import ADDRESS, CLUSTER, ENDPOINTS, LISTENER, ROUTE, VIRTUAL_HOST


class TestEnrolment:
    async def test_capture_comes_last_and_with_inbound_in_force(self, node: Node) -> None:
        view = await node.enroll()
        assert view.startswith("default/default/productpage-")
        assert node.engine.log == ["start", "add uid-1", "capture"]
        (port,) = node.engine.applied.inbound["uid-1"].ports
        assert (port.port, port.protocol, port.xds_name) == (9080, Protocol.HTTP, "inbound|9080||")
        assert node.engine.applied.inbound["uid-1"].fallback is Protocol.TCP

    async def test_the_view_is_asked_for_in_the_name_of_the_pod(self, node: Node) -> None:
        await node.enroll(account="productpage")
        ids = {client.node.id: client.node for client in node.server.clients}
        mine = ids["sidecar~10.244.0.5~productpage-1.default~default.svc.cluster.local"]
        assert list(mine.client_features) == ["nodeagent.on-demand", "nodeagent.peers"]
        assert mine.metadata["SERVICE_ACCOUNT"] == "productpage"
        assert mine.metadata["NODE_NAME"] == "node-a"

    async def test_letting_go_restores_first_and_forgets_all(self, node: Node) -> None:
        view = await node.enroll()
        await node.agent.enrolment.remove("uid-1")
        assert node.engine.log[3:] == ["release", "remove uid-1 100", "uncapture"]
        await node.until(lambda: view not in node.engine.applied.views, "the view's end")
        assert node.engine.applied.inbound == {}
        await node.until(lambda: len(node.server.clients) == 1, "the stream's end")

    async def test_a_failed_capture_leaves_nothing(self, node: Node) -> None:
        node.dataplane.failing = True
        with pytest.raises(NftError, match="nft says no"):
            await node.enroll()
        assert node.engine.workloads == {}
        assert node.engine.log[-1] == "remove uid-1 0"
        (failed,) = node.agent.state.status().enrolment.workloads
        assert (failed.state, failed.error) == ("failed", "nft says no")
        node.dataplane.failing = False
        await node.enroll()
        (done,) = node.agent.state.status().enrolment.workloads
        assert done.state == "enrolled"

    async def test_pods_alike_share_a_view_until_the_last_goes(self, node: Node) -> None:
        labels = {"app": "reviews"}
        for number, address in enumerate(("10.244.0.6", "10.244.0.7")):
            pod = xds.workload(f"reviews-{number}", address, labels=labels)
            node.server.put(ADDRESS, pod.workload.uid, pod)
        first = await node.enroll("reviews-0", "uid-0")
        assert await node.enroll("reviews-1", "uid-1") == first
        await node.agent.enrolment.remove("uid-0")
        assert node.agent.views.get(first) is not None
        await node.agent.enrolment.remove("uid-1")
        assert node.agent.views.get(first) is None

    async def test_other_labels_are_another_view(self, node: Node) -> None:
        for number, version in enumerate(("v1", "v2")):
            pod = xds.workload(f"reviews-{number}", f"10.244.0.{number}", labels={"version": version})
            node.server.put(ADDRESS, pod.workload.uid, pod)
        assert await node.enroll("reviews-0", "uid-0") != await node.enroll("reviews-1", "uid-1")

    async def test_a_pod_that_nobody_knows_is_served_all_the_same(self, node: Node) -> None:
        view = await node.enroll("stranger", "uid-9")
        assert view.startswith("default/default/stranger-")
        assert "uid-9" in node.engine.applied.inbound

    async def test_what_becomes_known_of_a_stranger_is_told(self, node: Node) -> None:
        view = await node.enroll("stranger", "uid-9")
        pod = xds.workload("stranger", "10.244.0.5", labels={"app": "strange"})
        node.server.put(ADDRESS, pod.workload.uid, pod)

        def told() -> bool:
            nodes = [client.node for client in node.server.clients if client.node is not None]
            return any(dict(each.metadata).get("LABELS") == {"app": "strange"} for each in nodes)

        await node.until(told, "labels")
        assert node.engine.workloads["uid-9"] == view
        assert node.agent.enrolment.ref("uid-9").app == "strange"  # type: ignore[union-attr]

    async def test_a_pod_that_gets_other_labels_changes_its_view(self, node: Node) -> None:
        pods = [xds.workload(f"reviews-{n}", f"10.244.0.{n}", labels={"version": "v1"}) for n in (6, 7)]
        for pod in pods:
            node.server.put(ADDRESS, pod.workload.uid, pod)
        old = await node.enroll("reviews-6", "uid-6")
        assert await node.enroll("reviews-7", "uid-7") == old
        changed = xds.workload("reviews-7", "10.244.0.7", labels={"version": "v2"})
        node.server.put(ADDRESS, changed.workload.uid, changed)
        new = await node.until(lambda: (v := node.engine.workloads.get("uid-7")) != old and v, "move")
        assert node.engine.workloads["uid-6"] == old
        assert "uid-7" in node.engine.applied.inbound
        assert new in node.engine.applied.views
        await node.agent.enrolment.remove("uid-7")
        assert node.agent.views.get(new) is None
        assert node.agent.views.get(old) is not None


class TestOnDemand:
    async def test_nothing_is_subscribed_before_it_is_used(self, node: Node) -> None:
        await node.enroll()
        assert node.server.wanted(LISTENER) == {"virtualInbound", "virtualOutbound"}
        assert node.server.wanted(CLUSTER) == {"PassthroughCluster"}
        assert node.server.wanted(ROUTE) | node.server.wanted(VIRTUAL_HOST) == set()

    async def test_a_connection_gets_all_of_its_service(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view)
        destination = await node.destination(view)
        assert destination.protocol is Protocol.HTTP
        assert destination.table == f"{view}/9080"
        assert [share.cluster for share in destination.clusters] == [f"{view}/{OUTBOUND}"]
        table = node.view(view).tables[f"{view}/9080"]
        assert table.on_demand
        assert sorted(table.virtual_hosts) == ["allow_any", f"{REVIEWS}:9080"]
        assert node.endpoints(view) == ["10.244.0.8", "10.244.0.9"]

    async def test_it_is_asked_for_in_parallel(self, node: Node) -> None:
        """What the service's name implies is all asked for at once, not one answer after the other."""
        view = await node.enroll()
        node.server.delay = 0.5
        started = asyncio.get_running_loop().time()
        node.connect(view)
        await node.destination(view)
        # One round trip: the routes of this service name no cluster that its own name does not imply.
        assert asyncio.get_running_loop().time() - started < 0.95

    async def test_no_part_shows_before_the_whole_is_there(self, node: Node) -> None:
        view = await node.enroll()
        node.server.mute = {ENDPOINTS}
        node.connect(view)
        await node.until(lambda: OUTBOUND in node.server.wanted(ENDPOINTS), "subscription")
        await asyncio.sleep(0.1)
        assert node.view(view).destinations == {}
        node.server.mute = set()
        node.server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.8"))
        await node.destination(view)

    async def test_a_destination_without_service_passes_through(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view, "192.0.2.1", 8443)
        destination = await node.destination(view, "192.0.2.1", 8443)
        assert (destination.protocol, destination.clusters, destination.table) == (Protocol.TCP, (), None)

    async def test_an_http_port_elsewhere_gets_the_port_s_routes(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view, "192.0.2.1", 9080)
        destination = await node.destination(view, "192.0.2.1", 9080)
        assert destination.protocol is Protocol.HTTP
        assert destination.clusters == ()

    async def test_a_tcp_service(self, node: Node) -> None:
        mongo = f"outbound|27017||{xds.fqdn('mongo')}"
        node.server.put(ADDRESS, "default/mongo", xds.service("mongo", "10.96.0.9", (27017, "tcp")))
        node.server.put(LISTENER, "10.96.0.9_27017", xds.tcp_listener("10.96.0.9", 27017, mongo))
        node.server.put(CLUSTER, mongo, xds.cluster(mongo))
        node.server.put(ENDPOINTS, mongo, xds.assignment(mongo, "10.244.0.20", port=27017))
        view = await node.enroll()
        await node.until(lambda: node.agent.index.is_service_address(parse_address("10.96.0.9")), "index")
        node.connect(view, "10.96.0.9", 27017)
        destination = await node.destination(view, "10.96.0.9", 27017)
        assert destination.protocol is Protocol.TCP
        assert node.endpoints(view, mongo) == ["10.244.0.20"]

    async def test_a_host_of_another_name_is_asked_for(self, node: Node) -> None:
        ratings = f"outbound|9080||{xds.fqdn('ratings')}"
        view = await node.enroll()
        node.connect(view)
        await node.destination(view)
        node.server.put(CLUSTER, ratings, xds.cluster(ratings))
        node.server.put(ENDPOINTS, ratings, xds.assignment(ratings, "10.244.0.30"))
        node.server.put(
            VIRTUAL_HOST, "9080/ratings", xds.virtual_host("ratings", 9080, [xds.forward(ratings)])
        )
        node.request(view, "ratings")
        hosts = lambda: node.view(view).tables[f"{view}/9080"].virtual_hosts  # noqa: E731
        await node.until(lambda: f"{xds.fqdn('ratings')}:9080" in hosts(), "ratings")

    async def test_a_host_that_is_not_there_is_known_to_be_unknown_until_it_comes(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view)
        await node.destination(view)
        node.request(view, "example.com")
        table = lambda: node.view(view).tables[f"{view}/9080"]  # noqa: E731
        await node.until(lambda: table().unknown_hosts == {"example.com"}, "unknown host")
        host = xds.virtual_host("example", 9080, [xds.forward(OUTBOUND)], ["example.com"])
        node.server.put(VIRTUAL_HOST, "9080/example.com", host)
        await node.until(lambda: f"{xds.fqdn('example')}:9080" in table().virtual_hosts, "host")
        assert table().unknown_hosts == frozenset()

    async def test_what_is_not_used_goes(self, server: MeshServer, tmp_path: Path) -> None:
        async with running(server, tmp_path, on_demand_ttl=1.0) as node:
            view = await node.enroll()
            node.connect(view)
            await node.destination(view)
            await asyncio.sleep(1.1)
            node.agent._pull_usage()
            await node.until(lambda: not node.view(view).destinations, "expiry")
            assert node.view(view).clusters == {}
            await node.until(lambda: OUTBOUND not in node.server.wanted(CLUSTER), "unsubscription")
            lasting = {"virtualInbound", "virtualOutbound"}
            await node.until(
                lambda: node.server.wanted(LISTENER) == lasting, "unsubscription of the listener"
            )

    async def test_the_least_recently_used_makes_room(self, server: MeshServer, tmp_path: Path) -> None:
        async with running(server, tmp_path, on_demand_limit=16) as node:
            view = await node.enroll()
            for number in range(20):
                node.connect(view, f"192.0.2.{number}", 80)
                await node.destination(view, f"192.0.2.{number}", 80)
            await node.until(lambda: len(node.view(view).destinations) == 16, "eviction")
            assert (parse_address("192.0.2.3"), 80) not in node.view(view).destinations
            assert node.agent.views.counters.evicted == 4
            assert b"nodeagent_on_demand_evicted_total 4.0" in b"".join(node.agent.state.metrics())

    async def test_a_service_that_comes_later_replaces_the_pass_through(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view, "10.96.0.44", 5000)
        assert (await node.destination(view, "10.96.0.44", 5000)).clusters == ()
        late = f"outbound|5000||{xds.fqdn('late')}"
        node.server.put(CLUSTER, late, xds.cluster(late))
        node.server.put(ENDPOINTS, late, xds.assignment(late, "10.244.0.50", port=5000))
        node.server.put(LISTENER, "10.96.0.44_5000", xds.tcp_listener("10.96.0.44", 5000, late))
        node.server.put(ADDRESS, "default/late", xds.service("late", "10.96.0.44", (5000, "tcp")))
        key = (parse_address("10.96.0.44"), 5000)
        await node.until(lambda: node.view(view).destinations[key].clusters, "the service")


class TestChanges:
    async def _used(self, node: Node) -> str:
        view = await node.enroll()
        node.connect(view)
        await node.destination(view)
        return view

    async def test_endpoints_change_and_nothing_else(self, node: Node) -> None:
        view = await self._used(node)
        before = node.view(view)
        node.server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.8"))
        await node.until(lambda: node.endpoints(view) == ["10.244.0.8"], "endpoints")
        after = node.view(view)
        assert after.tables is before.tables
        assert after.clusters is before.clusters
        assert after.destinations is before.destinations

    async def test_a_new_split_waits_for_its_clusters(self, node: Node) -> None:
        view = await self._used(node)
        host = f"{REVIEWS}:9080"
        old = node.view(view).tables[f"{view}/9080"].virtual_hosts[host]
        changed = xds.virtual_host("reviews", 9080, [xds.split(v1=80, v2=20)])
        node.server.mute = {CLUSTER}
        node.server.put(VIRTUAL_HOST, f"9080/{REVIEWS}", changed)
        v1, v2 = (f"outbound|9080|{subset}|{REVIEWS}" for subset in ("v1", "v2"))
        await node.until(lambda: v2 in node.server.wanted(CLUSTER), "subscription")
        assert node.view(view).tables[f"{view}/9080"].virtual_hosts[host] is old
        node.server.mute = set()
        for name in (v1, v2):
            node.server.put(ENDPOINTS, name, xds.assignment(name, "10.244.0.8"))
            node.server.put(CLUSTER, name, xds.cluster(name))
        await node.until(
            lambda: node.view(view).tables[f"{view}/9080"].virtual_hosts[host] is not old, "the change"
        )
        assert all(f"{view}/{name}" in node.view(view).clusters for name in (v1, v2))

    async def test_a_bad_change_is_nacked_and_the_last_good_one_stays(self, node: Node) -> None:
        view = await self._used(node)
        before = node.view(view)
        bad = {"match": {"safeRegex": {"regex": "("}}, "route": {"cluster": OUTBOUND}, "name": "broken"}
        node.server.put(VIRTUAL_HOST, f"9080/{REVIEWS}", xds.virtual_host("reviews", 9080, [bad]))
        await node.until(lambda: node.server.nacks, "the NACK")
        assert node.server.nacks == [
            (VIRTUAL_HOST, f"9080/{REVIEWS}: route broken: missing )"),
        ]
        assert node.view(view) is before
        stream = next(s for s in node.agent.state.status().control_plane.streams if s.name == view)
        (stale,) = (each for each in stream.types if each.state == "STALE")
        assert "missing )" in stale.nack

    async def test_a_route_to_a_cluster_that_is_not_there_is_a_black_hole(self, node: Node) -> None:
        view = await self._used(node)
        missing = f"outbound|9080|v9|{REVIEWS}"
        routes = [xds.forward(missing, match={"prefix": "/v9"}), xds.forward(OUTBOUND)]
        node.server.put(VIRTUAL_HOST, f"9080/{REVIEWS}", xds.virtual_host("reviews", 9080, routes))
        await node.until(lambda: f"{view}/{missing}" in node.view(view).clusters, "the black hole")
        assert node.view(view).clusters[f"{view}/{missing}"].kind.name == "BLACKHOLE"
        assert node.view(view).clusters[f"{view}/{OUTBOUND}"].kind.name == "ENDPOINTS"

    async def test_what_the_engine_refuses_leaves_the_last_one(self, node: Node) -> None:
        view = await self._used(node)
        node.engine.refusing = "no memory"
        node.server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.99"))
        await node.until(lambda: node.agent.state.status().snapshot.last_error == "no memory", "the error")
        assert node.endpoints(view) == ["10.244.0.8", "10.244.0.9"]
        node.engine.refusing = ""
        node.server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.98"))
        await node.until(lambda: node.endpoints(view) == ["10.244.0.98"], "recovery")
        assert node.agent.state.status().snapshot.last_error == ""

    async def test_inbound_follows_and_guards_close(self, node: Node) -> None:
        await self._used(node)
        guard = {
            "name": "0.0.0.0_9443",
            "filterChainMatch": {"destinationPort": 9443},
            "filters": [
                {
                    "name": "envoy.filters.network.ext_authz",
                    "typedConfig": {
                        "@type": "type.googleapis.com/google.protobuf.Struct",
                        "value": {},
                    },
                },
                xds.tcp_filter("inbound|9443||"),
            ],
        }
        node.server.put(LISTENER, "virtualInbound", xds.inbound_listener({9080: "detect"}, [guard]))
        await node.until(lambda: len(node.engine.applied.inbound["uid-1"].ports) == 2, "the change")
        ports = {port.port: port.protocol for port in node.engine.applied.inbound["uid-1"].ports}
        assert ports == {9080: Protocol.DETECT, 9443: Protocol.REFUSE}
        assert any("ext_authz" in text for text in node.agent.state.status().warnings)

    async def test_the_server_s_restart_takes_nothing_away(self, node: Node) -> None:
        view = await self._used(node)
        before = node.view(view)
        await node.server.stop()
        await asyncio.sleep(0.2)
        assert node.view(view) is before
        await node.server.start()
        node.server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.60"))
        await node.until(lambda: node.endpoints(view) == ["10.244.0.60"], "the change", 20)

    async def test_endpoints_follow_who_is_at_their_address(self, node: Node) -> None:
        view = await self._used(node)
        workload = lambda: node.view(view).endpoints[f"{view}/{OUTBOUND}"][0].workload  # noqa: E731
        assert workload() is None
        pod = xds.workload("reviews-1", "10.244.0.8", account="reviews", node="node-b")
        node.server.put(ADDRESS, pod.workload.uid, pod)
        await node.until(workload, "the workload")
        assert workload().principal == "spiffe://cluster.local/ns/default/sa/reviews"


class TestWildcard:
    async def test_everything_is_taken_and_no_more_is_asked(self, server: MeshServer, tmp_path: Path) -> None:
        host = xds.virtual_host("reviews", 9080, [xds.forward(OUTBOUND)])
        server.put(ROUTE, "9080", xds.route_configuration("9080", [host]))
        async with running(server, tmp_path, xds_mode="wildcard") as node:
            view = await node.enroll()
            await node.until(lambda: (None, 9080) in node.view(view).destinations, "everything")
            table = node.view(view).tables[f"{view}/9080"]
            assert not table.on_demand
            assert sorted(table.virtual_hosts) == ["allow_any", f"{REVIEWS}:9080"]
            assert node.endpoints(view) == ["10.244.0.8", "10.244.0.9"]
            client = next(c for c in server.clients if c.node.id.startswith("sidecar"))
            assert list(client.node.client_features) == ["nodeagent.peers"]
            own = await node.destination(view)
            assert own.table == f"{view}/9080"
            assert [share.cluster for share in own.clusters] == [f"{view}/{OUTBOUND}"]

    async def test_auto_finds_out_that_a_server_sends_everything(self, tmp_path: Path) -> None:
        class Istiod(MeshServer):
            """Ignores names for listeners and clusters, as istiod does."""

            def received(self, session: Any, request: Any) -> None:
                if request.type_url in (LISTENER, CLUSTER) and request.resource_names_subscribe:
                    del request.resource_names_subscribe[:]
                    request.resource_names_subscribe.append("*")
                super().received(session, request)

        host = xds.virtual_host("reviews", 9080, [xds.forward(OUTBOUND)])
        async with Istiod() as server:
            server.put(LISTENER, "virtualInbound", xds.inbound_listener({9080: "http"}))
            server.put(LISTENER, "virtualOutbound", xds.outbound_catch_all("BlackHoleCluster"))
            server.put(LISTENER, "0.0.0.0_9080", xds.http_listener(9080))
            server.put(ROUTE, "9080", xds.route_configuration("9080", [host]))
            server.put(CLUSTER, OUTBOUND, xds.cluster(OUTBOUND))
            server.put(CLUSTER, "PassthroughCluster", xds.passthrough())
            server.put(ENDPOINTS, OUTBOUND, xds.assignment(OUTBOUND, "10.244.0.8"))
            async with running(server, tmp_path) as node:
                view = await node.enroll()
                await node.until(lambda: (None, 9080) in node.view(view).destinations, "everything")
                assert node.endpoints(view) == ["10.244.0.8"]
                assert node.view(view).refuse_unknown


class TestLastGood:
    async def test_a_start_without_control_plane_serves_what_was(
        self, server: MeshServer, tmp_path: Path
    ) -> None:
        async with running(server, tmp_path) as node:
            view = await node.enroll()
            node.connect(view)
            await node.destination(view)
        await server.stop()
        async with running(server, tmp_path) as node:
            started = asyncio.get_running_loop().time()
            assert await node.enroll() == view
            node.connect(view)
            await node.destination(view)
            assert asyncio.get_running_loop().time() - started < 1
            assert node.endpoints(view) == ["10.244.0.8", "10.244.0.9"]
            assert node.engine.applied.inbound["uid-1"].ports[0].protocol is Protocol.HTTP
            assert node.agent.state.status().snapshot.from_disk
            # The live answer takes over, with nothing missing in between.
            server.resources[ENDPOINTS][OUTBOUND] = xds.assignment(OUTBOUND, "10.244.0.70")
            server._version[ENDPOINTS, OUTBOUND] = "new"
            count = len(node.engine.history)
            await server.start()
            await node.until(lambda: node.endpoints(view) == ["10.244.0.70"], "the live answer", 20)
            for snapshot in node.engine.history[count:]:
                assert (parse_address(VIP), 9080) in snapshot.views[view].destinations
            assert not node.agent.state.status().snapshot.from_disk

    async def test_nobody_waits_for_a_control_plane_that_is_known_to_be_away(
        self, server: MeshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "HOPE", 1.0)
        async with running(server, tmp_path) as node:
            await node.enroll()
            await node.until(lambda: node.engine.applied.hints.addresses, "services")
            assert node.engine.applied.hints.answered
            await server.stop()
            await asyncio.sleep(0.4)
            assert node.engine.applied.hints.answered, "it may just be replaced"
            await node.until(lambda: not node.engine.applied.hints.answered, "no hope")
            assert node.engine.applied.hints.addresses
            server.put(ADDRESS, "default/other", xds.service("other", "10.96.0.8"))
            await server.start()
            await node.until(lambda: node.engine.applied.hints.answered, "hope", 20)
            await node.until(lambda: len(node.engine.applied.hints.addresses) == 2, "the new service")
            assert node.engine.applied.hints.answered

    async def test_a_damaged_file_is_passed_over(self, server: MeshServer, tmp_path: Path) -> None:
        async with running(server, tmp_path) as node:
            await node.enroll()
        for path in (tmp_path / "state" / "xds").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        async with running(server, tmp_path) as node:
            view = await node.enroll()
            node.connect(view)
            await node.destination(view)


async def test_a_part_that_ends_by_itself_ends_the_agent_with_an_error(
    server: MeshServer, tmp_path: Path
) -> None:
    one = Agent(config(server, tmp_path), FakeDataplane())

    async def broken() -> None:
        raise RuntimeError("a defect")

    one._spawn("saver", broken())
    with pytest.raises(NodeagentError, match=r"saver ended unexpectedly.*a defect"):
        await one.run()


class TestCapture:
    async def test_what_is_captured_besides_is_forgotten_when_all_are_named(self, node: Node) -> None:
        await node.enroll()
        node.agent.enrolment.synced()
        await node.until(lambda: node.dataplane.settled, "settled")
        assert len(node.dataplane.settled[0]) == 1

    async def test_nothing_is_forgotten_while_one_could_not_be_taken_on(self, node: Node) -> None:
        """It may have been captured by an earlier agent, and must stay so."""
        node.dataplane.failing = True
        with pytest.raises(NodeagentError):
            await node.enroll()
        node.agent.enrolment.synced()
        await asyncio.sleep(0.05)
        assert not node.dataplane.settled

    async def test_it_is_let_go_of_at_the_end(self, server: MeshServer, tmp_path: Path) -> None:
        async with running(server, tmp_path) as node:
            assert not node.dataplane.closed
        assert node.dataplane.closed

    async def test_what_cannot_listen_stays_as_an_earlier_agent_has_left_it(self, node: Node) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise NetnsError("port 15001 is taken")

        node.engine.add_workload = refuse  # type: ignore[method-assign]
        with pytest.raises(NetnsError):
            await node.enroll()
        assert "uncapture" not in node.engine.log

    async def test_a_changed_workload_stays_captured_until_it_is_taken_on_again(self, node: Node) -> None:
        await node.enroll()
        await node.agent.enrolment.retire("uid-1")
        assert "uid-1" not in node.engine.workloads
        assert not {"release", "uncapture"} & set(node.engine.log)
        await node.enroll()
        await node.agent.enrolment.retire("uid-1")
        node.dataplane.failing = True
        with pytest.raises(NftError):
            await node.enroll()
        assert "uncapture" not in node.engine.log
        await node.agent.enrolment.remove("uid-1")
        assert node.engine.log[-1] == "uncapture", "it is not to come again"
        assert not list(node.agent.enrolment)


class TestState:
    async def test_readiness_names_what_is_missing(self, server: MeshServer, tmp_path: Path) -> None:
        async with running(server, tmp_path) as node:
            reasons = node.agent.state.not_ready()
            assert any("no workloads from the control plane" in reason for reason in reasons)
            await node.until(lambda: node.agent.workloads.synced, "workloads")
            (reason,) = node.agent.state.not_ready()
            assert "no workloads over" in reason

    async def test_it_is_settled_when_what_was_received_and_asked_for_is_in_force(self, node: Node) -> None:
        view, v9 = await node.enroll(), f"outbound|9080|v9|{REVIEWS}"
        state, key = node.agent.state, (parse_address(VIP), 9080)
        await node.until(lambda: not state.unsettled(), "quiet")
        node.connect(view)
        seen = set()
        while waiting := state.unsettled():
            seen.update(waiting)
            await asyncio.sleep(0)
        assert key in node.view(view).destinations
        assert seen >= {f"view {view} waits for a Cluster", "configuration of the engine"}
        node.server.put(CLUSTER, v9, xds.cluster(v9))
        node.server.put(ENDPOINTS, v9, xds.assignment(v9, "10.244.0.9"))
        route = xds.virtual_host("reviews", 9080, [xds.forward(v9)])
        node.server.put(VIRTUAL_HOST, f"9080/{REVIEWS}", route)
        await node.until(state.unsettled, "the route")
        await node.until(lambda: not state.unsettled(), "quiet")
        assert node.endpoints(view, v9) == ["10.244.0.9"], "the cluster was asked for when the route had come"

    async def test_the_lists_show_what_is_in_force(self, node: Node) -> None:
        view = await node.enroll()
        node.connect(view)
        await node.destination(view)
        state = node.agent.state
        assert {row.name for row in state.workloads()} == {"productpage-1"}
        (service,) = state.services()
        assert (service.hostname, service.addresses, service.ports[0].protocol) == (REVIEWS, (VIP,), "HTTP")
        routes = {row.virtual_host: row for row in state.routes()}
        assert routes[f"{REVIEWS}:9080"].action == OUTBOUND
        clusters = {row.name: row for row in state.clusters()}
        assert (clusters[OUTBOUND].fqdn, clusters[OUTBOUND].port) == (REVIEWS, 9080)
        assert clusters[OUTBOUND].endpoints == 2
        assert {row.address for row in state.endpoints()} == {"10.244.0.8", "10.244.0.9"}
        listeners = [(row.direction, row.address, row.port, row.destination) for row in state.listeners()]
        assert ("OUTBOUND", VIP, 9080, "Route: 9080") in listeners
        assert ("INBOUND", "*", 9080, "Cluster: inbound|9080||") in listeners
        dump = {name: list(items) for name, items in state.config_dump()}
        assert {item["name"] for item in dump["xdsClusters"]} == {OUTBOUND, "PassthroughCluster"}
        assert b'nodeagent_xds_resources{type="Cluster"} 2.0' in b"".join(state.metrics())
        page = b"".join(state.metrics())
        for line in (
            b'nodeagent_capture_events_total{event="captured"} 3.0',
            b'nodeagent_bpf_map_memory_bytes{map="original"} 2000.0',
            b'nodeagent_bpf_map_entries{map="workloads"} 4.0',
            b'nodeagent_bpf_map_limit{map="workloads"} 5.0',
            b'nodeagent_bpf_map_full_total{map="workloads"} 6.0',
        ):
            assert line in page
        assert b'nodeagent_bpf_map_limit{map="original"}' not in page
        assert state.status().control_plane.connected
        assert state.status().capture.counters == {"captured": 3}
