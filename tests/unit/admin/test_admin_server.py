"""The admin API, asked by curl and by raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.agent_state import READY, V1, FakeState

from nodeagent.admin.listen import MAX_CONNECTIONS, bind_unix, parse_address
from nodeagent.admin.server import AdminOptions, AdminServer
from nodeagent.admin.state import WorkloadRow
from nodeagent.errors import ConfigError


@dataclasses.dataclass
class Running:
    """A server and the state that it shows."""

    server: AdminServer
    state: FakeState
    path: Path

    async def curl(self, target: str, *arguments: str) -> tuple[int, str]:
        """Ask the admin socket; return status and body."""
        return await curl("--unix-socket", str(self.path), *arguments, f"http://agent{target}")

    async def json(self, target: str) -> object:
        status, body = await self.curl(target)
        assert status == 200, body
        return json.loads(body)


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    body, _, status = output.decode().rpartition("\n")
    return int(status), body


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Running]:
    state = FakeState()
    path = tmp_path / "deep" / "admin.sock"
    server = AdminServer(state, AdminOptions(path, "127.0.0.1:0", "127.0.0.1:0"))
    await server.start()
    yield Running(server, state, path)
    await server.stop()
    assert not path.exists()


async def test_status_is_the_state_field_by_field(agent: Running) -> None:
    assert await agent.json("/status") == json.loads(json.dumps(dataclasses.asdict(READY)))


async def test_socket_is_for_its_owner_only(agent: Running) -> None:
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("/workloads", 2),
        ("/workloads?namespace=data", 1),
        ("/workloads?name=reviews-v1", 1),
        ("/workloads?name=fd00:10:244:1::3", 1),
        ("/workloads?local=true", 1),
        ("/workloads?limit=1", 1),
        ("/workloads?name=none", 0),
        ("/services?name=reviews.default.svc.cluster.local", 1),
        ("/routes?name=reviews", 1),
        ("/clusters?direction=outbound", 1),
        (f"/endpoints?cluster={V1}", 2),
        ("/endpoints?name=fd00::3", 1),
        ("/listeners?name=9080", 1),
        ("/connections?name=7", 1),
        ("/certificates", 1),
        ("/policies?state=closed", 1),
        ("/policies?workloads=default/reviews-v1", 2),
    ],
)
async def test_lists_and_filters(agent: Running, target: str, count: int) -> None:
    rows = await agent.json(target)
    assert isinstance(rows, list)
    assert len(rows) == count


async def test_rows_carry_all_fields(agent: Running) -> None:
    rows = await agent.json("/workloads?limit=1")
    assert isinstance(rows, list)
    assert set(rows[0]) == {field.name for field in dataclasses.fields(WorkloadRow)}
    assert rows[0]["addresses"] == ["10.244.1.3", "fd00:10:244:1::3"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/workloads?nmae=x", "no parameter 'nmae' here; there are: limit, name, "),
        ("/clusters?limit=0", "limit=0: not a whole number from 1 to"),
        ("/clusters?limit=x", "limit=x: not"),
        ("/explain/route?port=80", "workload is missing"),
        ("/explain/access?workload=a/b&port=x", "port 'x': not a number"),
    ],
)
async def test_bad_queries_are_named(agent: Running, target: str, message: str) -> None:
    status, body = await agent.curl(target)
    assert status == 400
    assert message in body


async def test_explanations(agent: Running) -> None:
    route = await agent.json(
        "/explain/route?workload=a/b&host=c&port=80&method=GET&header=X-A:b:c&header=d:e"
    )
    assert isinstance(route, dict)
    assert route["targets"][0]["workload"] == "default/productpage"
    (asked,) = agent.state.asked
    assert (asked.host, asked.port, asked.method) == ("c", 80, "GET")
    assert asked.headers == (("x-a", "b:c"), ("d", "e"))
    access = await agent.json("/explain/access?workload=a/b&port=80")
    assert isinstance(access, dict)
    assert (access["allowed"], access["lines"][0]) == (False, {"step": "stage", "text": "deny"})


async def test_unknown_path_and_method_are_told_what_there_is(agent: Running) -> None:
    status, body = await agent.curl("/nothing")
    assert status == 404
    assert "no path /nothing" in body
    for path in ("/status", "/workloads", "/config_dump", "/quitquitquit (POST)"):
        assert f"  {path}\n" in body + "\n"
    status, body = await agent.curl("/quitquitquit")
    assert (status, body.strip()) == (405, "error: /quitquitquit wants POST, not GET")
    assert agent.state.quits == 0


async def test_config_dump_has_ztunnels_sections(agent: Running) -> None:
    dump = await agent.json("/config_dump")
    assert isinstance(dump, dict)
    assert list(dump)[:4] == ["workloads", "services", "policies", "certificates"]
    assert dump["workloads"][0]["workloadIps"] == ["10.244.1.3", "fd00:10:244:1::3"]
    assert dump["workloads"][0]["locality"] == {"region": "eu", "zone": "a"}
    assert dump["services"][0]["vips"] == ["/10.96.0.7"]
    assert dump["services"][0]["ports"] == {"9080": 9080}
    assert dump["certificates"][0]["certChain"][0]["expirationTime"] == "2027-01-16T08:00:00Z"
    assert dump["policies"][0]["action"] == "Deny"
    assert dump["clusters"][0]["name"] == V1
    assert dump["xdsClusters"] == [{"name": V1}]


async def test_large_lists_leave_the_loop_its_turns(agent: Running) -> None:
    [row, _] = agent.state.workload_rows
    agent.state.workload_rows = (row,) * 20_000
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)

    watcher = asyncio.create_task(watch())
    rows = await agent.json("/workloads")
    watcher.cancel()
    assert isinstance(rows, list)
    assert len(rows) == 20_000
    assert longest < 0.25


async def test_a_failure_amid_a_list_cuts_the_connection(agent: Running) -> None:
    [row, _] = agent.state.workload_rows

    def broken() -> Iterator[WorkloadRow]:
        yield from (row,) * 1000
        raise RuntimeError("state is broken")

    agent.state.workload_rows = broken()
    process = await asyncio.create_subprocess_exec(
        *("curl", "-s", "--unix-socket", str(agent.path), "http://agent/workloads"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 18, "curl's code for a partial answer"
    assert len(await agent.json("/clusters")) == 2  # type: ignore[arg-type]


async def test_what_fails_at_once_is_answered_with_500(agent: Running) -> None:
    def broken() -> Iterator[WorkloadRow]:
        raise RuntimeError("state is broken")
        yield

    agent.state.workload_rows = broken()
    assert await agent.curl("/workloads") == (500, "error: RuntimeError: state is broken\n")


async def test_a_broken_section_of_the_dump_leaves_the_others(agent: Running) -> None:
    [row, _] = agent.state.workload_rows

    def broken() -> Iterator[WorkloadRow]:
        yield row
        raise RuntimeError("state is broken")

    agent.state.workload_rows = broken()
    dump = await agent.json("/config_dump")
    assert isinstance(dump, dict)
    assert dump["workloads"][0]["name"] == "reviews-v1"
    assert dump["workloads"][1] == {"error": "RuntimeError: state is broken"}
    assert dump["xdsClusters"] == [{"name": V1}]


async def test_readiness(agent: Running) -> None:
    url = f"http://127.0.0.1:{agent.server.port('ready')}/healthz/ready"
    assert await curl(url) == (200, "ready\n")
    agent.state.break_ready("control plane not connected", "2 workloads pending")
    expected = (503, "not ready: control plane not connected; 2 workloads pending\n")
    assert await curl(url) == expected
    assert await agent.curl("/healthz/ready") == expected


async def test_settling(agent: Running) -> None:
    assert await agent.curl("/healthz/settled") == (200, "settled\n")
    agent.state.unsettled_value = ("view v waits for a Cluster", "UDP")
    assert await agent.curl("/healthz/settled") == (503, "not settled: view v waits for a Cluster; UDP\n")


async def test_metrics_port_serves_metrics_and_nothing_else(agent: Running) -> None:
    base = f"http://127.0.0.1:{agent.server.port('metrics')}"
    for path in ("/metrics", "/stats/prometheus"):
        assert await curl(base + path) == (200, b"".join(agent.state.metrics()).decode())
    for path in ("/status", "/config_dump", "/quitquitquit"):
        assert (await curl("-X", "POST", base + path))[0] == 404
    assert agent.state.quits == 0
    assert (await agent.curl("/stats/prometheus"))[0] == 200


async def test_loopback_port_is_for_reading(tmp_path: Path) -> None:
    state = FakeState()
    server = AdminServer(state, AdminOptions(tmp_path / "a.sock", "", "", "127.0.0.1:0"))
    await server.start()
    base = f"http://127.0.0.1:{server.port('loopback')}"
    assert (await curl(f"{base}/explain/route?workload=a/b&port=80"))[0] == 404
    assert (await curl(f"{base}/config_dump"))[0] == 200
    assert (await curl("-X", "POST", f"{base}/quitquitquit"))[0] == 404
    assert (await curl("-X", "POST", f"{base}/logging?level=debug"))[0] == 405
    await server.stop()
    assert state.quits == 0
    outside = AdminServer(state, AdminOptions(tmp_path / "a.sock", "", "", "0.0.0.0:0"))
    with pytest.raises(ConfigError, match="not a loopback address"):
        await outside.start()


async def test_quit(agent: Running) -> None:
    assert await agent.curl("/quitquitquit", "-X", "POST") == (200, "shutting down\n")
    assert agent.state.quits == 1


async def test_logging(agent: Running) -> None:
    scoped = logging.getLogger("nodeagent.sometest")
    whole = logging.getLogger("nodeagent")
    before = whole.level
    try:
        status, body = await agent.curl("/logging?level=debug,sometest:error", "-X", "POST")
        assert status == 200
        assert "nodeagent: debug\n" in body
        assert "nodeagent.sometest: error" in body
        assert scoped.level == logging.ERROR
        for query in ("?level=loud", "?level=nosuch:info", "?lvl=info", ""):
            assert (await agent.curl(f"/logging{query}", "-X", "POST"))[0] == 400
        assert whole.level == logging.DEBUG
    finally:
        whole.setLevel(before)
        scoped.setLevel(logging.NOTSET)


async def test_stale_socket_is_replaced_and_a_live_one_is_not(agent: Running, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another process listens there"):
        bind_unix("--admin", agent.path)
    stale = tmp_path / "stale.sock"
    bind_unix("--admin", stale).close()
    assert stale.exists()
    bind_unix("--admin", stale).close()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is no socket"):
        bind_unix("--admin", file)
    with pytest.raises(ConfigError, match="longer than"):
        bind_unix("--admin", tmp_path / ("x" * 120))


async def test_ports_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = AdminServer(FakeState(), AdminOptions(tmp_path / "a.sock", "", address))
        with pytest.raises(ConfigError, match=f"--ready {address}: cannot listen: Address already in use"):
            await refused.start()
        assert not (tmp_path / "a.sock").exists()
        without = AdminServer(FakeState(), AdminOptions(tmp_path / "b.sock", address, ""))
        await without.start()
        assert without.problems
        assert "--metrics" in without.problems[0]
        await without.stop()


async def test_held_connections_cannot_keep_a_probe_out(agent: Running) -> None:
    port = agent.server.port("ready")
    with contextlib.ExitStack() as held:
        for _ in range(MAX_CONNECTIONS * 2):
            held.enter_context(socket.create_connection(("127.0.0.1", port), 5)).sendall(b"GET / HT")
            await asyncio.sleep(0)
        assert (await curl(f"http://127.0.0.1:{port}/healthz/ready"))[0] == 200


def test_addresses() -> None:
    assert parse_address("--x", "0.0.0.0:1") == ("0.0.0.0", 1)
    assert parse_address("--x", "[::]:1") == ("::", 1)
    assert parse_address("--x", ":1") == ("", 1)
    for bad in ("1", "::1", "a:b", "a:70000"):
        with pytest.raises(ConfigError, match="not ADDRESS:PORT"):
            parse_address("--x", bad)
