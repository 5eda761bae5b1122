"""Channel arguments of gRPC are free text: one that is misspelt is ignored without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from nodeagent.controlplane.xds import server
from nodeagent.xds import stream


@pytest.mark.parametrize("name", sorted({name for name, _ in (*server._OPTIONS, *stream._OPTIONS)}))
def test_grpc_knows_the_option(name: str) -> None:
    assert name.encode() + b"\0" in Path(cygrpc.__file__).read_bytes()


def test_the_server_takes_pings_as_often_as_the_agent_sends_them() -> None:
    allowed = dict(server._OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed < dict(stream._OPTIONS)["grpc.keepalive_time_ms"]
