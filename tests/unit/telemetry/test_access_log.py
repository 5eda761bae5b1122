"""Access log formats, and the writer."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.processes import wait_until

from nodeagent.dataplane.report import AccessRecord, ResponseFlag, WireProtocol
from nodeagent.errors import ConfigError
from nodeagent.snapshot.address import parse_address
from nodeagent.snapshot.values import InboundPort, Protocol
from nodeagent.telemetry.accesslog import BATCH, AccessLog
from nodeagent.telemetry.log_format import (
    IDENTITY_JSON,
    IDENTITY_TEXT,
    json_format,
    parse_json_template,
    text_format,
)

RecordMaker = Callable[..., AccessRecord]
NOWHERE = (bytes(16), 0)


def test_istio_text(record: RecordMaker) -> None:
    assert text_format()(record()) == (
        '[2016-11-30T15:52:25.123Z] "GET /reviews/0?x=1 HTTP/1.1" 200 - via_upstream - "-" 7 295 5 4 "-" '
        '"curl/7.88.1" "6d1a1c1f-0000-4000-8000-000000000000" "reviews:9080" "10.1.0.2:9080" '
        "outbound|9080|v1|reviews 10.1.0.1:41234 10.96.0.7:9080 10.1.0.1:41000 - default\n"
    )


def test_a_request_that_found_no_route(record: RecordMaker) -> None:
    line = text_format()(
        record(
            status=404,
            flags=int(ResponseFlag.NR),
            detail="route_not_found",
            cluster=None,
            upstream_us=0,
            upstream_remote=NOWHERE,
            upstream_local=NOWHERE,
            route="",
        )
    )
    assert '" 404 NR route_not_found - "-" 7 295 5 - "-"' in line
    assert line.endswith('"-" - - 10.96.0.7:9080 10.1.0.1:41000 - -\n')


def test_tcp_and_passthrough(record: RecordMaker) -> None:
    line = text_format()(
        record(
            protocol=WireProtocol.TCP,
            cluster=None,
            method="",
            path="",
            authority="",
            user_agent="",
            request_id="",
            status=0,
            detail="",
            route="",
            upstream_us=0,
            upstream_remote=(parse_address("fd00::7"), 443),
        )
    )
    assert line.startswith(
        '[2016-11-30T15:52:25.123Z] "- - -" 0 - - - "-" 7 295 5 - "-" "-" "-" "-" "[fd00::7]:443" '
    )
    assert "PassthroughCluster" in line


def test_inbound_cluster_names(record: RecordMaker) -> None:
    show = text_format("%UPSTREAM_CLUSTER%")
    port = InboundPort(9080, Protocol.HTTP, None, "inbound|9080||")
    assert show(record(inbound=True, cluster=None, inbound_port=port)) == "inbound|9080||\n"
    assert show(record(inbound=True, cluster=None)) == "InboundPassthroughCluster\n"


def test_json_has_types_and_null(record: RecordMaker) -> None:
    line = json_format()(record(http_minor=0))
    assert line.endswith("}\n")
    values = json.loads(line)
    assert values["response_code"] == 200
    assert values["duration"] == 5
    assert values["protocol"] == "HTTP/1.0"
    assert values["x_forwarded_for"] is None
    assert values["upstream_service_time"] == 4
    assert values["start_time"] == "2016-11-30T15:52:25.123Z"
    assert list(values) == sorted(values)
    assert len(values) == 24


def test_peers_that_have_proved_who_they_are(record: RecordMaker) -> None:
    web = "spiffe://cluster.local/ns/default/sa/web"
    outbound, inbound = record(principal=web), record(principal=web, inbound=True)
    show = text_format(IDENTITY_TEXT)
    assert show(outbound).endswith(f'- default "-" "{web}"\n')
    assert show(inbound).endswith(f'- default "{web}" "-"\n')
    values = json.loads(json_format(IDENTITY_JSON)(outbound))
    assert (values["downstream_peer_uri_san"], values["upstream_peer_uri_san"]) == (None, web)
    assert list(values) == sorted(values)


def test_who_audits(record: RecordMaker) -> None:
    """Envoy's hint and the policy's name; the default formats name it in JSON, where there is one."""
    policy = "ns[a]-policy[b]-rule[0]"
    show = text_format("%AUDITED_BY% %DYNAMIC_METADATA(envoy.common:access_log_hint)%")
    assert show(record(audited_by=policy)) == f"{policy} true\n"
    assert show(record()) == "- false\n"
    assert json.loads(json_format()(record(audited_by=policy)))["audited_by"] == policy
    hint = json_format({"audited": "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"})
    assert json.loads(hint(record(audited_by=policy))) == {"audited": True}


@pytest.mark.parametrize("text", ["%PROTOCOL%", "[]", '{"a": 1}'])
def test_a_json_format_is_an_object_of_texts(text: str) -> None:
    with pytest.raises(ConfigError, match="access log format: "):
        parse_json_template(text)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("%REQ(:METHOD)% 100%% %PROTOCOL%", "GET 100% HTTP/1.1"),
        ("%REQ(X-FORWARDED-FOR?USER-AGENT):4%", "curl"),
        ("%REQ(user-agent)%", "curl/7.88.1"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", "10.1.0.1 41000"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f)%", "2016/11/30T15:52:25.123"),
        ("%START_TIME(%s)%", "1480521145"),
        ("plain", "plain"),
        ("%RESPONSE_CODE%\n", "200"),
    ],
)
def test_custom_formats(record: RecordMaker, template: str, expected: str) -> None:
    assert text_format(template)(record()) == expected + "\n"


def test_custom_json(record: RecordMaker) -> None:
    line = json_format({"what": "%REQ(:METHOD)% %REQ(:PATH)%", "code": "%RESPONSE_CODE%", "v": "1"})(record())
    assert json.loads(line) == {"what": "GET /reviews/0?x=1", "code": 200, "v": "1"}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("%DYNAMIC_METADATA(x)%", "DYNAMIC_METADATA"),
        ("%REQ(COOKIE)%", "COOKIE"),
        ("%NOPE%", "NOPE"),
        ("50% done", "lone %"),
        ("%RESPONSE_CODE(x)%", "RESPONSE_CODE"),
    ],
)
def test_what_is_not_supported_is_named(template: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        text_format(template)


def test_nobody_writes_lines_of_their_own(record: RecordMaker) -> None:
    line = text_format("%REQ(USER-AGENT)%")(record(user_agent="x\n[2026] \x1b[31mGET"))
    assert line == "x\\x0a[2026] \\x1b[31mGET\n"


# -- the writer --


def test_writes_all_before_it_closes(tmp_path: Path, record: RecordMaker) -> None:
    path = tmp_path / "access.log"
    writer = AccessLog(str(path), text_format("%RESPONSE_CODE%"))
    writer.start()
    for status in range(3 * BATCH):
        writer.submit([record(status=status)])
    writer.close()
    assert path.read_text().split() == [str(status) for status in range(3 * BATCH)]
    assert writer.written == 3 * BATCH
    assert writer.dropped == 0


def test_a_stuck_disk_blocks_nobody_and_drops_are_counted(tmp_path: Path, record: RecordMaker) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = AccessLog(str(pipe), text_format("x" * 4000), queue_limit=100)
    writer.start()
    batch = [record()] * 50
    # A pipe takes 64 KiB: the thread is stuck in its first batch.
    writer.submit(batch)
    wait_until(lambda: not writer._queue, "the thread has taken the first batch")
    for _ in range(10):
        writer.submit(batch)
    assert writer.dropped == 400
    drained = threading.Thread(target=lambda: _drain(reader, 150 * 4001))
    drained.start()
    writer.close()
    drained.join()
    os.close(reader)
    assert writer.written == 150


def _drain(fd: int, size: int) -> None:
    os.set_blocking(fd, True)
    while size > 0:
        size -= len(os.read(fd, 1 << 16))


def test_follows_rotation(tmp_path: Path, record: RecordMaker) -> None:
    path = tmp_path / "access.log"
    writer = AccessLog(str(path), text_format("%RESPONSE_CODE%"))
    writer.start()
    writer.submit([record(status=1)])
    wait_until(lambda: path.read_text() == "1\n", "the first record")
    path.rename(tmp_path / "access.log.1")
    writer.reopen()
    writer.submit([record(status=2)])
    writer.close()
    assert path.read_text() == "2\n"
    assert (tmp_path / "access.log.1").read_text() == "1\n"


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/access\.log: No such file or directory"):
        AccessLog(str(tmp_path / "nowhere" / "access.log"), text_format())


def test_survives_a_full_disk(record: RecordMaker) -> None:
    writer = AccessLog("/dev/full", text_format())
    writer.start()
    writer.submit([record(), record()])
    wait_until(lambda: writer.dropped == 2, "both are counted as dropped")
    writer.close()
