"""Header changes: what is taken, what is left out with a word."""

from __future__ import annotations

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.config.route.v3 import route_components_pb2
from google.protobuf import text_format

from nodeagent.compiler.mutation import compile_mutations
from nodeagent.compiler.report import Report
from nodeagent.snapshot.values import HeaderMutation, HeaderOp, HeaderSide

KEPT = HeaderMutation(HeaderSide.RESPONSE, HeaderOp.ADD, "x-kept", "1")


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            'request_headers_to_remove: "Connection"',
            "request_headers_to_remove.Connection: belongs to the connection and is left as it is",
        ),
        (
            'response_headers_to_add {header {key: "Content-Length" value: "1"}}',
            "response_headers_to_add.content-length: belongs to the connection and is left as it is",
        ),
        (
            'response_headers_to_add {header {key: "x-tls" value: "v=%PROTOCOL% %DOWNSTREAM_TLS_VERSION%"}}',
            "response_headers_to_add.x-tls: command operator %DOWNSTREAM_TLS_VERSION% is not supported; "
            "the header is left as it is",
        ),
        (
            'response_headers_to_add {header {key: "x-off" value: "50% off"}}',
            "response_headers_to_add.x-off: '50% off' has a percent sign that begins no command operator "
            "(%% is a percent sign); the header is left as it is",
        ),
    ],
)
def test_what_cannot_be_changed_is_left_and_the_rest_applies(text: str, warning: str) -> None:
    kept = 'response_headers_to_add {header {key: "X-Kept" value: "1"}}'
    route = text_format.Parse(f"{text} {kept}", route_components_pb2.Route())
    report = Report()
    assert compile_mutations(route, report) == (KEPT,)
    assert report.warnings == (warning,)


@pytest.mark.parametrize(
    "value", ["100%% sure", "%REQ(x-a?y):3%%%", "%START_TIME(%Y %H:%M)%", "a%PROTOCOL%b"]
)
def test_command_operators_are_the_engines(value: str) -> None:
    route = route_components_pb2.Route()
    route.request_headers_to_add.add().header.MergeFrom(HeaderValue(key="X-A", value=value))
    report = Report()
    assert compile_mutations(route, report) == (
        HeaderMutation(HeaderSide.REQUEST, HeaderOp.ADD, "x-a", value),
    )
    assert report.warnings == ()
