"""The control plane's decoders and the engine judge the same fields: what the one accepts the other must take.

A table of fields, and of values that strangers might write into each. Whatever is decoded without an error goes all the
way: to xDS, through the agent's compiler, and into an engine's virtual host.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.config.route.v3 import route_pb2

from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.route import compile_route_configuration
from nodeagent.controlplane.kinds import RouteKind
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.view import Perspective, View
from nodeagent.dataplane.virtual_host import make_virtual_host
from nodeagent.errors import EngineError
from nodeagent.snapshot.values import VirtualHost

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80}]}
"""
TO = "route: [{destination: {host: reviews}}]"
FIELDS = {
    "uri exact": "match: [{uri: {exact: VALUE}}], " + TO,
    "uri prefix": "match: [{uri: {prefix: VALUE}}], " + TO,
    "uri regex": "match: [{uri: {regex: VALUE}}], " + TO,
    "method": "match: [{method: {exact: VALUE}}], " + TO,
    "authority regex": "match: [{authority: {regex: VALUE}}], " + TO,
    "header name": "match: [{headers: {VALUE: {exact: a}}}], " + TO,
    "header exact": "match: [{headers: {x-a: {exact: VALUE}}}], " + TO,
    "header regex": "match: [{headers: {x-a: {regex: VALUE}}}], " + TO,
    "absent header regex": "match: [{withoutHeaders: {x-a: {regex: VALUE}}}], " + TO,
    "query name": "match: [{queryParams: {VALUE: {exact: a}}}], " + TO,
    "query regex": "match: [{queryParams: {a: {regex: VALUE}}}], " + TO,
    "rewrite": "match: [{uri: {prefix: /a}}], rewrite: {uri: VALUE}, " + TO,
    "rewrite authority": "rewrite: {authority: VALUE}, " + TO,
    "rewrite regex": "rewrite: {uriRegexRewrite: {match: VALUE, rewrite: /}}, " + TO,
    "rewrite substitution": "rewrite: {uriRegexRewrite: {match: '/(a)', rewrite: VALUE}}, " + TO,
    "redirect": "redirect: {uri: VALUE}",
    "redirect authority": "redirect: {authority: VALUE}",
    "redirect scheme": "redirect: {scheme: VALUE}",
    "redirect code": "redirect: {uri: /, redirectCode: VALUE}",
    "redirect port": "redirect: {uri: /, port: VALUE}",
    "answer": "directResponse: {status: VALUE}",
    "answer body": "directResponse: {status: 200, body: {string: VALUE}}",
    "set name": f"{TO}, headers: {{request: {{set: {{VALUE: a}}}}}}",
    "set value": f"{TO}, headers: {{request: {{set: {{x-a: VALUE}}}}}}",
    "set host": f"{TO}, headers: {{request: {{set: {{Host: VALUE}}}}}}",
    "add answer value": f"{TO}, headers: {{response: {{add: {{x-a: VALUE}}}}}}",
    "remove name": f"{TO}, headers: {{response: {{remove: [VALUE]}}}}",
    "destination's set value": "route: [{destination: {host: reviews}, headers: {request: {set: {x-a: VALUE}}}}]",
    "timeout": f"{TO}, timeout: VALUE",
    "weight": "route: [{destination: {host: reviews}, weight: VALUE}, {destination: {host: reviews}, weight: 1}]",
}
YAML_KEY = 1000
"""Characters that an implicit key may have (YAML 1.2, 7.4.2)."""
VALUES: tuple[str | int, ...] = (
    *(
        "a",
        "/",
        "/a/b",
        "",
        " ",
        "a b",
        " a",
        "a ",
        "a\tb",
        "a\nb",
        "a\rb",
        "a\x00b",
        "a\x7fb",
        "ä",
        "日本",
        "a,b",
    ),
    *(
        "Host",
        ":authority",
        ":path",
        ":method",
        "Content-Length",
        "connection",
        "te",
        "x-envoy-a",
        "x_a",
        "x(a)",
    ),
    *(
        "a.b.c",
        "a.b.c:80",
        "a:99999",
        "[::1]",
        "[::1]:80",
        "[",
        "::1",
        "a@b",
        "a/b",
        "*.a",
        "*",
        "http",
        "1http",
    ),
    *(
        "(",
        ")",
        "[a",
        "a{9999}",
        "(?=a)",
        r"\1",
        r"\2",
        r"\9",
        "\\",
        r"a\b",
        "(a)|b",
        ".*",
        "^/a$",
        r"\pN",
        "(?i)a",
    ),
    *(
        "%",
        "%%",
        "50%",
        "%REQ(x-a)%",
        "%REQ(x-a?x-b):5%",
        "%START_TIME%",
        "%START_TIME(%Y-%m)%",
        "%20",
        "/%2F",
    ),
    *(
        "/a?b=c",
        "/a#b",
        "?a",
        "//a",
        "/a/../b",
        "GET",
        "get",
        "G T",
        "5s",
        "0s",
        "1ms",
        "0.5ms",
        "-1s",
        "8760h",
    ),
    *(
        0,
        1,
        -1,
        80,
        99,
        100,
        199,
        200,
        301,
        302,
        303,
        307,
        308,
        404,
        599,
        600,
        65535,
        65536,
        2147483647,
        4294967296,
    ),
    *("x" * 300, "/" + "x" * 9000),
)


def check(host: VirtualHost) -> None:
    try:
        make_virtual_host(host, 0)
    except EngineError as error:
        raise ValueError(str(error)) from None


def document(field: str, value: str | int) -> str:
    spec = FIELDS[field].replace("VALUE", json.dumps(value))
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n"
        f"spec: {{hosts: [reviews], http: [{{{spec}}}]}}\n"
    )


def decoded(configured: Any, text: str) -> bool:
    """Whether the control plane has nothing against it."""
    configured.put(SERVICE)
    configured.put(text)
    return not any(issue.severity is Severity.ERROR for issue in configured.report)


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_decoded_is_taken(field: str, configured: Any) -> None:
    verdicts: dict[str | int, bool] = {}
    for value in VALUES:
        if len(str(value)) > YAML_KEY and "VALUE:" in FIELDS[field]:
            continue
        fresh = type(configured)()
        verdicts[value] = decoded(fresh, document(field, value))
        if not verdicts[value]:
            continue
        resources = RouteKind().build(View(fresh.world, Perspective("default")), 80)
        message = route_pb2.RouteConfiguration.FromString(resources["80"].body)
        try:
            piece = compile_route_configuration(message, Scope("v", check=check))
        except ValueError as error:
            pytest.fail(f"{field} {value!r} is decoded, and refused by the agent: {error}")
        lost = [warning for warning in piece.warnings if "left" in warning and "belongs to" not in warning]
        assert not lost, f"{field} {value!r} is decoded, and left out by the agent: {lost}"
    assert any(verdicts.values()), "nothing was accepted: the table's field is wrong"
    assert not all(verdicts.values()), "nothing was refused: the table has no bad value for it"
