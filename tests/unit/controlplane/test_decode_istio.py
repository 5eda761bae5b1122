"""Strict decoding of the Istio API: what is refused, with which words, and what is warned of."""

from __future__ import annotations

import textwrap
from datetime import timedelta
from typing import Any

import pytest

from nodeagent.controlplane.decode import parse_duration
from nodeagent.controlplane.istio.values import (
    Destination,
    HttpMatch,
    LoadBalancer,
    MatchKind,
    Redirect,
    StringMatch,
    VirtualService,
)
from nodeagent.controlplane.report import Severity

VS = "VirtualService default/reviews: "
DR = "DestinationRule default/reviews: "


def virtual_service(spec: str) -> str:
    head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n"
    return head + textwrap.indent(textwrap.dedent(spec), "  ")


def destination_rule(spec: str) -> str:
    return virtual_service(spec).replace("VirtualService", "DestinationRule")


def route(text: str) -> str:
    """A VirtualService with one http route; `text` is what its first entry holds."""
    return virtual_service("hosts: [reviews]\nhttp:\n- " + text)


TO = "route: [{destination: {host: reviews}}]"

VIRTUAL_SERVICE_ERRORS = {
    route("route: [{destination: {host: reviews, subst: v2}}]"): (
        "spec.http[0].route[0].destination.subst: unknown field; did you mean subset?"
    ),
    route(f"{TO}\n  timeout: 5"): "spec.http[0].timeout: expected a duration such as 5s, got a number",
    route(f"{TO}\n  timeout: 5 seconds"): (
        "spec.http[0].timeout: '5 seconds' is not a duration; write it as 5s, 100ms or 1h30m"
    ),
    route(f"{TO}\n  timeout: 9999h"): "spec.http[0].timeout: must be between 0s and 365 days, got 9999h",
    route("route: [{destination: {host: reviews}, weight: -1}]"): (
        "spec.http[0].route[0].weight: must be between 0 and 2147483647, got -1"
    ),
    route("route: [{destination: {host: reviews}, weight: 1.5}]"): (
        "spec.http[0].route[0].weight: expected a whole number, got a number"
    ),
    route("route: [{destination: {host: reviews}, weight: '1'}]"): (
        "spec.http[0].route[0].weight: expected a whole number, got a string"
    ),
    route("route: [{destination: {host: a}}, {destination: {host: b}}]"): (
        "spec.http[0].route: the weights of several destinations must not all be 0"
    ),
    route("route: [{weight: 1}]"): "spec.http[0].route[0].destination: required, but missing",
    route("route: [{destination: {subset: v1}}]"): (
        "spec.http[0].route[0].destination.host: required, but missing"
    ),
    route(
        'route: [{destination: {host: ""}}]'
    ): "spec.http[0].route[0].destination.host: required, but empty",
    route('route: [{destination: {host: "*.example.com"}}]'): (
        "spec.http[0].route[0].destination.host: '*.example.com': a wildcard is not allowed here"
    ),
    route("route: [{destination: {host: 'a b'}}]"): (
        "spec.http[0].route[0].destination.host: 'a b' is not a host name; "
        "use a name such as reviews or a.example.com"
    ),
    route("route: [{destination: {host: a, port: 80}}]"): (
        "spec.http[0].route[0].destination.port: expected an object, got a number"
    ),
    route("route: [{destination: {host: a, port: {number: 70000}}}]"): (
        "spec.http[0].route[0].destination.port.number: must be between 1 and 65535, got 70000"
    ),
    route("route: [{destination: {host: a, port: {}}}]"): (
        "spec.http[0].route[0].destination.port.number: required, but missing"
    ),
    route("route: []"): "spec.http[0].route: required, but empty",
    route("route: reviews"): "spec.http[0].route: expected a list, got a string",
    route("route: [reviews]"): "spec.http[0].route[0]: expected an object, got a string",
    route("name: nothing"): "spec.http[0]: one of route, redirect, directResponse must be set",
    route(f"{TO}\n  redirect: {{uri: /x}}"): "spec.http[0]: only one of route, redirect may be set",
    route("redirect: {uri: /x}\n  rewrite: {uri: /y}"): "spec.http[0].rewrite: only a route can be rewritten",
    route("redirect: {uri: /x, redirectCode: 305}"): (
        "spec.http[0].redirect.redirectCode: must be one of 301, 302, 303, 307, 308, got 305"
    ),
    route("redirect: {}"): "spec.http[0].redirect: uri, authority, scheme or port must be set",
    route("redirect: {uri: /a, prefixRewrite: /b}"): (
        "spec.http[0].redirect: only one of uri, prefixRewrite may be set"
    ),
    route("redirect: {uri: /a, port: 80, derivePort: FROM_REQUEST_PORT}"): (
        "spec.http[0].redirect: only one of port, derivePort may be set"
    ),
    route("redirect: {uri: /a, derivePort: SOMEHOW}"): (
        "spec.http[0].redirect.derivePort: must be one of FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT, got 'SOMEHOW'"
    ),
    route("directResponse: {status: 99}"): (
        "spec.http[0].directResponse.status: must be between 200 and 599, got 99"
    ),
    route("directResponse: {body: {string: x}}"): "spec.http[0].directResponse.status: required, but missing",
    route("directResponse: {status: 200, body: {bytes: '!'}}"): (
        "spec.http[0].directResponse.body.bytes: must be base64"
    ),
    route("directResponse: {status: 200, body: {string: a, bytes: YQ==}}"): (
        "spec.http[0].directResponse.body: only one of string, bytes may be set"
    ),
    route(f"{TO}\n  rewrite: {{}}"): (
        "spec.http[0].rewrite: one of uri, authority, uriRegexRewrite must be set"
    ),
    route(f"{TO}\n  rewrite: {{uri: /a, uriRegexRewrite: {{match: a, rewrite: b}}}}"): (
        "spec.http[0].rewrite: only one of uri, uriRegexRewrite may be set"
    ),
    route(f"{TO}\n  rewrite: {{uriRegexRewrite: {{rewrite: b}}}}"): (
        "spec.http[0].rewrite.uriRegexRewrite.match: required, but missing"
    ),
    route(f"{TO}\n  rewrite: {{uriRegexRewrite: {{match: '/(a)', rewrite: '/\\2'}}}}"): (
        "spec.http[0].rewrite.uriRegexRewrite.rewrite: \\2 means a group that the pattern does not have; it has 1"
    ),
    route(f"{TO}\n  rewrite: {{uriRegexRewrite: {{match: '/a', rewrite: '/\\d'}}}}"): (
        "spec.http[0].rewrite.uriRegexRewrite.rewrite: a backslash must be followed by a digit or another backslash"
    ),
    route(f'{TO}\n  rewrite: {{uri: " "}}'): (
        "spec.http[0].rewrite.uri: ' ' has a character that a URI cannot have; write it percent-encoded"
    ),
    route(f"{TO}\n  rewrite: {{uri: '/a#b'}}"): (
        "spec.http[0].rewrite.uri: '/a#b': a request has no fragment; write # as %23"
    ),
    route(f"{TO}\n  rewrite: {{authority: a/b}}"): (
        "spec.http[0].rewrite.authority: 'a/b' is not a host with an optional port"
    ),
    route(f'{TO}\n  headers: {{request: {{set: {{Host: "a\\nb"}}}}}}'): (
        "spec.http[0].headers.request.set[Host]: 'a\\nb' is not a host with an optional port"
    ),
    route("redirect: {uri: /ä}"): (
        "spec.http[0].redirect.uri: '/ä' has a character that a URI cannot have; write it percent-encoded"
    ),
    route("redirect: {authority: 'a b'}"): (
        "spec.http[0].redirect.authority: 'a b' is not a host with an optional port"
    ),
    route(
        "redirect: {scheme: 'https:'}"
    ): "spec.http[0].redirect.scheme: 'https:' is not a scheme such as https",
    route(
        "route: [{destination: {host: a}, weight: 2147483647}, {destination: {host: b}, weight: 2147483647}, "
        "{destination: {host: c}, weight: 2}]"
    ): "spec.http[0].route: the weights must not add up to more than 4294967295",
    route(f"match: [{{uri: {{regex: 'a(?=b)'}}}}]\n  {TO}"): (
        "spec.http[0].match[0].uri.regex: 'a(?=b)' is not an RE2 regular expression: invalid perl operator: (?="
    ),
    route(
        f"match: [{{uri: {{}}}}]\n  {TO}"
    ): "spec.http[0].match[0].uri: one of exact, prefix, regex must be set",
    route(f"match: [{{uri: {{exact: /a, prefix: /b}}}}]\n  {TO}"): (
        "spec.http[0].match[0].uri: only one of exact, prefix may be set"
    ),
    route(
        f"match: [{{uri: {{prefix: ''}}}}]\n  {TO}"
    ): "spec.http[0].match[0].uri.prefix: required, but empty",
    route(f"match: [{{url: {{prefix: /}}}}]\n  {TO}"): (
        "spec.http[0].match[0].url: unknown field; did you mean uri?"
    ),
    route(f"match: {{uri: {{prefix: /}}}}\n  {TO}"): "spec.http[0].match: expected a list, got an object",
    route(f"match: [{{headers: {{a: b}}}}]\n  {TO}"): (
        "spec.http[0].match[0].headers[a]: expected an object, got a string"
    ),
    route(f"match: [{{headers: {{'a b': {{exact: c}}}}}}]\n  {TO}"): (
        "spec.http[0].match[0].headers[a b]: 'a b' is not a header name"
    ),
    route(f"match: [{{headers: {{':status': {{exact: c}}}}}}]\n  {TO}"): (
        "spec.http[0].match[0].headers[:status]: ':status' is not a pseudo-header; "
        "there are :authority, :method, ..."
    ),
    route(f"match: [{{port: 0}}]\n  {TO}"): "spec.http[0].match[0].port: must be between 1 and 65535, got 0",
    route(f"match: [{{sourceLabels: {{version: 1}}}}]\n  {TO}"): (
        "spec.http[0].match[0].sourceLabels[version]: expected a string, got a number; put it in quotes"
    ),
    route(f"match: [{{ignoreUriCase: 'yes'}}]\n  {TO}"): (
        "spec.http[0].match[0].ignoreUriCase: expected true or false, got a string"
    ),
    route(f"match: [{{queryParams: {{'': {{exact: c}}}}}}]\n  {TO}"): (
        "spec.http[0].match[0].queryParams[]: a query parameter needs a name"
    ),
    route(f"{TO}\n  headers: {{request: {{set: {{x-a: 1}}}}}}"): (
        "spec.http[0].headers.request.set[x-a]: expected a string, got a number; put it in quotes"
    ),
    route(f"{TO}\n  headers: {{request: {{add: {{':path': /}}}}}}"): (
        "spec.http[0].headers.request.add[:path]: ':path' is not a header name that can be changed"
    ),
    route(f"{TO}\n  headers: {{request: {{add: {{Host: x}}}}}}"): (
        "spec.http[0].headers.request.add[Host]: Host can only be set, on requests (headers.request.set)"
    ),
    route(f'{TO}\n  headers: {{response: {{set: {{x-a: "a\\nb"}}}}}}'): (
        "spec.http[0].headers.response.set[x-a]: a header value cannot hold line breaks or other control characters"
    ),
    route(f"{TO}\n  headers: {{response: {{set: {{x-a: '50%'}}}}}}"): (
        "spec.http[0].headers.response.set[x-a]: '50%': a percent sign begins a command such as %PROTOCOL%; "
        "write it as %%"
    ),
    route(f"{TO}\n  headers: {{requests: {{}}}}"): (
        "spec.http[0].headers.requests: unknown field; did you mean request?"
    ),
    virtual_service(f"http: [{{{TO}}}]"): "spec.hosts: required, but missing",
    virtual_service(f"hosts: []\nhttp: [{{{TO}}}]"): "spec.hosts: required, but empty",
    virtual_service(f"hosts: [a, a]\nhttp: [{{{TO}}}]"): "spec.hosts[1]: a is there twice",
    virtual_service(f"hosts: ['*a']\nhttp: [{{{TO}}}]"): (
        "spec.hosts[0]: '*a' is not a host name; use a name such as reviews or a.example.com"
    ),
    virtual_service("hosts: [a]"): "spec: one of http, tcp, tls must be set",
    virtual_service(f"hosts: [a]\nexportTo: ['a b']\nhttp: [{{{TO}}}]"): (
        "spec.exportTo: 'a b' is neither '*', '.', '~' nor a namespace"
    ),
    virtual_service(f"hosts: [a]\nexportTo: ['~', '*']\nhttp: [{{{TO}}}]"): (
        "spec.exportTo: '~' (nobody) cannot be combined with others"
    ),
    virtual_service(f"hosts: [a]\ngateways: [a/b/c]\nhttp: [{{{TO}}}]"): (
        "spec.gateways[0]: 'a/b/c' is neither mesh nor namespace/gateway"
    ),
    virtual_service("hosts: [a]\ntcp: [{match: [{port: 1}]}]"): "spec.tcp[0].route: required, but missing",
    virtual_service(f"hosts: [a]\ntcp: [{{match: [{{destinationSubnets: [10.0.0.0/33]}}], {TO}}}]"): (
        "spec.tcp[0].match[0].destinationSubnets[0]: '10.0.0.0/33' is neither an IP address nor a subnet "
        "such as 10.1.0.0/16"
    ),
    virtual_service("hosts: [a]\ntcp: [{route: [{destination: {host: a}, headers: {}}]}]"): (
        "spec.tcp[0].route[0].headers: unknown field"
    ),
    "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n": (
        "spec: required, but missing"
    ),
    "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {}\n": (
        "apiVersion: networking.istio.io/v2 is not known; there are: v1, v1alpha3, v1beta1"
    ),
}

DESTINATION_RULE_ERRORS = {
    "subsets: []": "spec.host: required, but missing",
    "host: a\nsubset: []": "spec.subset: unknown field; did you mean subsets?",
    "host: a\nsubsets: [{labels: {a: b}}]": "spec.subsets[0].name: required, but missing",
    "host: a\nsubsets: [{name: a}, {name: a}]": "spec.subsets[1].name: subset a is there twice",
    "host: a\nsubsets: [{name: 'a|b'}]": "spec.subsets[0].name: 'a|b': a subset's name cannot hold '|'",
    "host: a\nsubsets: [{name: a, labels: {version: 1}}]": (
        "spec.subsets[0].labels[version]: expected a string, got a number; put it in quotes"
    ),
    "host: a\ntrafficPolicy: {loadBalancer: {simple: BEST}}": (
        "spec.trafficPolicy.loadBalancer.simple: must be one of LEAST_REQUEST, LEAST_CONN, RANDOM, ROUND_ROBIN, "
        "UNSPECIFIED, PASSTHROUGH, got 'BEST'"
    ),
    "host: a\ntrafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}": (
        "spec.trafficPolicy.loadBalancer: only one of simple, consistentHash may be set"
    ),
    "host: a\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}": (
        "spec.trafficPolicy.connectionPool.tcp.maxConnections: must be between 0 and 2147483647, got -1"
    ),
    "host: a\ntrafficPolicy: {connectionPool: {tcp: {connectTimeout: 1us}}}": (
        "spec.trafficPolicy.connectionPool.tcp.connectTimeout: must be between 0.001s and 365 days, got 1us"
    ),
    "host: a\ntrafficPolicy: {connectionPool: {http: {maxRequest: 1}}}": (
        "spec.trafficPolicy.connectionPool.http.maxRequest: unknown field; did you mean maxRetries?"
    ),
    "host: a\ntrafficPolicy: {portLevelSettings: [{loadBalancer: {simple: RANDOM}}]}": (
        "spec.trafficPolicy.portLevelSettings[0].port: required, but missing"
    ),
    "host: a\ntrafficPolicy: {portLevelSettings: [{port: {number: 1}}, {port: {number: 1}}]}": (
        "spec.trafficPolicy.portLevelSettings[1].port: port 1 is there twice"
    ),
    "host: a\ntrafficPolicy: {portLevelSettings: [{port: {number: 1}, portLevelSettings: []}]}": (
        "spec.trafficPolicy.portLevelSettings[0].portLevelSettings: unknown field"
    ),
}


@pytest.mark.parametrize("text", VIRTUAL_SERVICE_ERRORS, ids=VIRTUAL_SERVICE_ERRORS.values())
def test_virtual_service_is_refused(configured: Any, text: str) -> None:
    configured.put(text)
    assert configured.messages() == [VS + VIRTUAL_SERVICE_ERRORS[text]]
    assert not configured.world.rules.virtual_services


@pytest.mark.parametrize("spec", DESTINATION_RULE_ERRORS, ids=DESTINATION_RULE_ERRORS.values())
def test_destination_rule_is_refused(configured: Any, spec: str) -> None:
    configured.put(destination_rule(spec))
    errors = [
        str(issue).partition(": ")[2] for issue in configured.report if issue.severity is Severity.ERROR
    ]
    assert errors == [DR + DESTINATION_RULE_ERRORS[spec]]
    assert not configured.world.rules.destination_rules


LATER = {
    route(f"{TO}\n  retries: {{attempts: 3}}"): "spec.http[0].retries",
    route(f"{TO}\n  fault: {{}}"): "spec.http[0].fault",
    route(f"{TO}\n  mirror: {{host: a}}"): "spec.http[0].mirror",
    route(f"{TO}\n  mirrors: []"): "spec.http[0].mirrors",
    route(f"{TO}\n  mirrorPercentage: {{value: 1}}"): "spec.http[0].mirrorPercentage",
    route(f"{TO}\n  corsPolicy: {{}}"): "spec.http[0].corsPolicy",
    route("delegate: {name: a}"): "spec.http[0].delegate",
    virtual_service(f"hosts: [reviews]\ngateways: [mesh, gw]\nhttp: [{{{TO}}}]"): "spec.gateways",
    virtual_service("hosts: [reviews]\ntls: []"): "spec.tls",
    destination_rule("host: reviews\nworkloadSelector: {}"): "spec.workloadSelector",
    destination_rule("host: reviews\ntrafficPolicy: {outlierDetection: {}}"): (
        "spec.trafficPolicy.outlierDetection"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {tls: {mode: SIMPLE}}"): "spec.trafficPolicy.tls",
    destination_rule("host: reviews\ntrafficPolicy: {tunnel: {}}"): "spec.trafficPolicy.tunnel",
    destination_rule("host: reviews\ntrafficPolicy: {proxyProtocol: {}}"): "spec.trafficPolicy.proxyProtocol",
    destination_rule("host: reviews\ntrafficPolicy: {retryBudget: {}}"): "spec.trafficPolicy.retryBudget",
    destination_rule("host: reviews\ntrafficPolicy: {loadBalancer: {consistentHash: {}}}"): (
        "spec.trafficPolicy.loadBalancer.consistentHash"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {loadBalancer: {localityLbSetting: {}}}"): (
        "spec.trafficPolicy.loadBalancer.localityLbSetting"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {loadBalancer: {warmup: {}}}"): (
        "spec.trafficPolicy.loadBalancer.warmup"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}"): (
        "spec.trafficPolicy.loadBalancer.simple"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {}}}}"): (
        "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive"
    ),
    destination_rule("host: reviews\ntrafficPolicy: {connectionPool: {http: {maxRetries: 1}}}"): (
        "spec.trafficPolicy.connectionPool.http.maxRetries"
    ),
    destination_rule("host: reviews\nsubsets: [{name: a, trafficPolicy: {tls: {}}}]"): (
        "spec.subsets[0].trafficPolicy.tls"
    ),
}


@pytest.mark.parametrize(
    ("header", "finding"),
    [
        (
            "x-tls: '%DOWNSTREAM_TLS_VERSION%'",
            "set[x-tls]: command operator %DOWNSTREAM_TLS_VERSION% is not supported by the agent; "
            "it leaves the header as it is",
        ),
        (
            "Content-Length: '1'",
            "set[Content-Length]: Content-Length belongs to the connection; the agent leaves it as it is",
        ),
    ],
)
def test_header_that_cannot_be_changed_is_warned_of(configured: Any, header: str, finding: str) -> None:
    configured.put(route(f"{TO}\n  headers: {{response: {{set: {{{header}}}}}}}"))
    own = [text for text in configured.messages() if "headers" in text]
    assert own == [f"{VS}spec.http[0].headers.response.{finding}"]
    assert len(configured.world.rules.virtual_services) == 1


@pytest.mark.parametrize("value", ["100%% sure", "%DOWNSTREAM_REMOTE_ADDRESS%", "%START_TIME(%Y)%"])
def test_what_is_a_header_value_to_envoy(configured: Any, value: str) -> None:
    configured.put(route(f"{TO}\n  headers: {{response: {{set: {{x-a: '{value}'}}}}}}"))
    assert not [text for text in configured.messages() if "headers" in text]


@pytest.mark.parametrize("text", LATER, ids=LATER.values())
def test_field_without_effect_yet_is_warned_of(configured: Any, text: str) -> None:
    configured.put(text)
    later = [issue for issue in configured.report if issue.code == "not-supported-yet"]
    assert [issue.path for issue in later] == [LATER[text]]
    assert later[0].severity is Severity.WARNING
    assert later[0].message == "not supported yet; it has no effect"
    rules = configured.world.rules
    assert len(rules.virtual_services) + len(rules.destination_rules) == 1


@pytest.mark.parametrize("kind", ["Gateway", "ProxyConfig", "Sidecar", "EnvoyFilter", "WorkloadGroup"])
def test_kind_without_effect_yet_is_warned_of(configured: Any, kind: str) -> None:
    configured.put(f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}")
    assert configured.messages() == [f"{kind} default/a: kind {kind} is not supported yet; it has no effect"]


@pytest.mark.parametrize(
    ("api", "kind"),
    [("apps/v1", "Deployment"), ("gateway.networking.k8s.io/v1", "HTTPRoute"), ("v1", "Secret")],
)
def test_unknown_kind_is_warned_of(configured: Any, api: str, kind: str) -> None:
    configured.put(f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}")
    (issue,) = configured.report
    assert issue.severity is Severity.WARNING
    assert issue.message == f"kind {kind} ({api}) is not known; it is ignored"


@pytest.mark.parametrize(
    ("api", "kind", "meant"),
    [
        ("networking.istio.io/v1", "VirtualServce", "VirtualService of networking.istio.io"),
        ("networking.istio.io/v1", "virtualservice", "VirtualService of networking.istio.io"),
        ("v1", "DestinationRule", "DestinationRule of networking.istio.io"),
        ("networking.istio.io/v1", "Service", "Service of v1"),
    ],
)
def test_a_kind_like_a_known_one_is_an_error(configured: Any, api: str, kind: str, meant: str) -> None:
    configured.put(f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}")
    (issue,) = configured.report
    assert issue.severity is Severity.ERROR
    assert issue.message == f"kind {kind} ({api}) is not known; did you mean {meant}?"


def test_every_error_of_an_object_is_found_at_once(configured: Any) -> None:
    configured.put(route("route: [{destination: {host: reviews, subst: v2}, weight: -1}]\n  timeot: 5s"))
    assert len(configured.messages()) == 3


def test_last_good_version_stays(configured: Any) -> None:
    configured.put(route(f"{TO}\n  timeout: 1s"))
    configured.put(route(f"{TO}\n  timeout: nonsense"))
    (kept,) = configured.world.rules.virtual_services.values()
    assert kept.http[0].timeout == timedelta(seconds=1)
    assert "its last good version stays in force" in " ".join(configured.messages())
    configured.put(route(f"{TO}\n  timeout: 2s"))
    (mended,) = configured.world.rules.virtual_services.values()
    assert mended.http[0].timeout == timedelta(seconds=2)
    assert not [message for message in configured.messages() if "timeout" in message]


def decoded(configured: Any, text: str) -> VirtualService:
    configured.put(text)
    (found,) = configured.world.rules.virtual_services.values()
    assert isinstance(found, VirtualService)
    return found


def test_short_hosts_are_of_the_own_namespace(configured: Any) -> None:
    text = route("route: [{destination: {host: ratings}}]").replace(
        "{name: reviews}", "{name: r, namespace: shop}"
    )
    found = decoded(configured, text)
    assert found.hosts == ("reviews.shop.svc.cluster.local",)
    assert found.http[0].destinations[0].destination == Destination("ratings.shop.svc.cluster.local")


@pytest.mark.parametrize("host", ["a.example.com", "*.example.com", "*", "10.0.0.1", "fd00::1"])
def test_other_hosts_are_left_alone(configured: Any, host: str) -> None:
    assert decoded(configured, virtual_service(f"hosts: ['{host}']\nhttp: [{{{TO}}}]")).hosts == (host,)


@pytest.mark.parametrize("version", ["v1alpha3", "v1beta1", "v1"])
def test_every_version_is_read(configured: Any, version: str) -> None:
    assert decoded(configured, route(TO).replace("io/v1\n", f"io/{version}\n"))


def test_match_kinds(configured: Any) -> None:
    text = route(
        "match:\n"
        "  - name: m\n"
        "    uri: {prefix: /a}\n"
        "    scheme: {exact: http}\n"
        "    method: {regex: 'GET|HEAD'}\n"
        "    authority: {prefix: rev}\n"
        "    headers: {X-B: {exact: b}, x-a: {}, x-c: {regex: '*'}}\n"
        "    withoutHeaders: {x-d: {exact: d}}\n"
        "    queryParams: {q: {prefix: p}, r: {}}\n"
        "    ignoreUriCase: true\n"
        "    statPrefix: s\n"
        "    port: 80\n"
        "    sourceLabels: {app: a}\n"
        "    sourceNamespace: b\n"
        f"  {TO}"
    )
    (match,) = decoded(configured, text).http[0].matches
    present = StringMatch(MatchKind.PRESENT)
    assert isinstance(match, HttpMatch)
    assert match.headers == (("x-a", present), ("x-b", StringMatch(MatchKind.EXACT, "b")), ("x-c", present))
    assert match.without_headers == (("x-d", StringMatch(MatchKind.EXACT, "d")),)
    assert match.query == (("q", StringMatch(MatchKind.PREFIX, "p")), ("r", present))
    assert match.method == StringMatch(MatchKind.REGEX, "GET|HEAD")
    assert (match.source.port, match.source.labels, match.source.namespace) == (80, {"app": "a"}, "b")
    assert (match.name, match.stat_prefix, match.ignore_uri_case) == ("m", "s", True)


def test_redirect_port_by_protocol(configured: Any) -> None:
    found = decoded(configured, route("redirect: {scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}"))
    assert found.http[0].redirect == Redirect(scheme="https", port=0)


def test_host_header_is_the_authority(configured: Any) -> None:
    found = decoded(configured, route(f"{TO}\n  headers: {{request: {{set: {{Host: other, X-A: b}}}}}}"))
    headers = found.http[0].headers
    assert (headers.authority, headers.request.set) == ("other", (("x-a", "b"),))


def test_destination_rule_policies(configured: Any) -> None:
    configured.put(
        destination_rule(
            """\
            host: reviews
            trafficPolicy:
              loadBalancer: {simple: ROUND_ROBIN}
              connectionPool: {tcp: {maxConnections: 5}}
              portLevelSettings:
              - port: {number: 80}
                connectionPool: {tcp: {maxConnections: 7}}
            subsets:
            - name: v1
              labels: {version: v1}
              trafficPolicy:
                loadBalancer: {simple: RANDOM}
            """
        )
    )
    (rule,) = configured.world.rules.destination_rules.values()
    assert rule.policy.at(9080).load_balancer is LoadBalancer.ROUND_ROBIN
    assert rule.policy.at(80).load_balancer is None
    assert rule.policy.at(80).connection_pool.max_connections == 7
    subset = rule.subsets[0].policy.at(9080, rule.policy.at(9080))
    assert subset.load_balancer is LoadBalancer.RANDOM
    assert subset.connection_pool.max_connections == 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("1h30m", 5400),
        ("100ms", 0.1),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("0", 0),
        ("0s", 0),
        ("1m1s", 61),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-1s", "1s ", "5sec", "1d", "1s2"])
def test_not_durations(text: str) -> None:
    assert parse_duration(text) is None
