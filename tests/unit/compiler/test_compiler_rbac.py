"""Envoy's RBAC filters: what they let pass, and what of them closes a port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from harness.checks import Asked, admits
from harness.guard_filters import HTTP_RBAC, NETWORK_RBAC, guard, hidden, http_chain, listener, tcp_chain

from nodeagent.compiler.inbound import assemble_inbound, compile_inbound
from nodeagent.compiler.pieces import Scope
from nodeagent.snapshot.policies import Guards, RuleAction, Rules
from nodeagent.snapshot.values import InboundPort, Protocol

ALICE = "spiffe://cluster.local/ns/shop/sa/alice"
JWT = "envoy.filters.http.jwt_authn"
ANY = {"any": True}
GET = Asked(ALICE, path="/api/v1", headers={":method": "GET", ":authority": "web.shop:8080"})


def compiled(*chains: Mapping[str, Any]) -> tuple[InboundPort, tuple[str, ...]]:
    """(port 8080 of a listener with these chains, what was warned of)."""
    piece = compile_inbound(listener(*chains), Scope("v"))
    inbound = assemble_inbound(piece, ())
    if inbound.ports:
        return inbound.ports[0], piece.warnings
    return InboundPort(8080, inbound.fallback, guards=inbound.fallback_guards), piece.warnings


def policies(permissions: Any, principals: Any) -> dict[str, Any]:
    return {"ns[shop]-policy[p]-rule[0]": {"permissions": permissions, "principals": principals}}


def rules(permission: Any = ANY, principal: Any = ANY, action: str = "ALLOW") -> dict[str, Any]:
    return {"action": action, "policies": policies([permission], [principal])}


def text(**matcher: Any) -> dict[str, Any]:
    return {"urlPath": {"path": matcher}}


def template(value: str) -> dict[str, Any]:
    config = {
        "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "pathTemplate": value,
    }
    return {"uriTemplate": {"name": "template", "typedConfig": config}}


def claim(*keys: str, **value: Any) -> dict[str, Any]:
    return {"metadata": {"filter": JWT, "path": [{"key": key} for key in ("payload", *keys)], "value": value}}


def header(name: str, **matcher: Any) -> dict[str, Any]:
    return {"header": {"name": name, **matcher}}


def cidr(address: str, length: int) -> dict[str, Any]:
    return {"addressPrefix": address, "prefixLen": length}


PERMISSIONS = [
    (ANY, GET, True),
    ({"andRules": {"rules": [ANY, {"destinationPort": 8080}]}}, GET, True),
    ({"andRules": {"rules": [ANY, {"destinationPort": 8081}]}}, GET, False),
    ({"orRules": {"rules": [{"destinationPort": 1}, {"destinationPort": 8080}]}}, GET, True),
    ({"notRule": {"destinationPort": 8080}}, GET, False),
    ({"notRule": {"notRule": {"destinationPort": 8080}}}, GET, True),
    ({"destinationPortRange": {"start": 8000, "end": 8081}}, GET, True),
    ({"destinationPortRange": {"start": 8000, "end": 8080}}, GET, False),  # the end is excluded
    ({"destinationIp": cidr("10.244.0.0", 16)}, GET, True),
    ({"destinationIp": cidr("10.96.0.0", 16)}, GET, False),
    (text(exact="/api/v1"), GET, True),
    (text(exact="/API/v1"), GET, False),
    (text(exact="/API/v1", ignoreCase=True), GET, True),
    (text(prefix="/api/"), GET, True),
    (text(suffix="/v1"), GET, True),
    (text(contains="pi/"), GET, True),
    (text(safeRegex={"regex": "/api/v[0-9]"}), GET, True),
    (text(safeRegex={"regex": "/api"}), GET, False),  # the whole path
    (template("/api/{*}"), GET, True),
    (template("/{*}"), GET, False),
    (template("/{**}"), GET, True),
    (header(":method", stringMatch={"exact": "GET"}), GET, True),
    (header(":method", exactMatch="POST"), GET, False),
    (header(":method", exactMatch="POST", invertMatch=True), GET, True),
    (header(":authority", stringMatch={"exact": "WEB.shop:8080", "ignoreCase": True}), GET, True),
    (header("host", stringMatch={"prefix": "web.shop"}), GET, True),
    (header("x-none", presentMatch=True), GET, False),
    (header("x-none", stringMatch={"exact": "a"}, invertMatch=True), GET, False),  # missing: no
    (
        header("x-none", stringMatch={"exact": "a"}, invertMatch=True, treatMissingHeaderAsEmpty=True),
        GET,
        True,
    ),
    ({"requestedServerName": {"exact": "web.shop"}}, Asked(sni="web.shop", path="/"), True),
    ({"requestedServerName": {"exact": "web.shop"}}, GET, False),
]

CLAIM_ISS = f"{JWT}\x1fpayload\x1fiss"
TOKEN = Asked(ALICE, path="/", metadata={CLAIM_ISS: "me", f"{JWT}\x1fpayload\x1fa\x1fb": True})
PRINCIPALS = [
    (ANY, Asked(path="/"), True),
    ({"authenticated": {}}, GET, True),
    ({"authenticated": {}}, Asked(path="/"), False),
    ({"authenticated": {"principalName": {"exact": ALICE}}}, GET, True),
    ({"authenticated": {"principalName": {"exact": "cluster.local/ns/shop/sa/alice"}}}, GET, False),
    ({"authenticated": {"principalName": {"safeRegex": {"regex": ".*/ns/shop/.*"}}}}, GET, True),
    ({"authenticated": {"principalName": {"safeRegex": {"regex": ".*/ns/sho/.*"}}}}, GET, False),
    ({"notId": {"authenticated": {"principalName": {"safeRegex": {"regex": ".*/ns/shop/.*"}}}}}, GET, False),
    ({"notId": {"authenticated": {"principalName": {"prefix": "spiffe://"}}}}, Asked(path="/"), True),
    ({"filterState": {"key": "io.istio.peer_principal", "stringMatch": {"suffix": "/alice"}}}, GET, True),
    ({"directRemoteIp": cidr("10.244.0.0", 24)}, GET, True),
    ({"sourceIp": cidr("10.244.1.0", 24)}, GET, False),
    ({"remoteIp": cidr("203.0.113.0", 24)}, Asked(path="/", client="203.0.113.9"), True),
    ({"directRemoteIp": cidr("203.0.113.0", 24)}, Asked(path="/", client="203.0.113.9"), False),
    ({"directRemoteIp": cidr("::", 0)}, Asked(path="/", source="fd00::1"), True),
    (claim("iss", stringMatch={"exact": "me"}), TOKEN, True),
    (claim("iss", stringMatch={"exact": "you"}), TOKEN, False),
    (claim("iss", listMatch={"oneOf": {"stringMatch": {"prefix": "m"}}}), TOKEN, True),
    (
        claim(
            "iss", orMatch={"valueMatchers": [{"stringMatch": {"exact": "me"}}, {"nullMatch": {}}][:1] * 2}
        ),
        TOKEN,
        True,
    ),
    (claim("a", "b", boolMatch=True), TOKEN, True),
    (claim("a", "b", stringMatch={"exact": "true"}), TOKEN, False),
    (claim("a", "b", presentMatch=True), TOKEN, True),
    (claim("iss", boolMatch=True), TOKEN, False),
    (claim("sub", presentMatch=True), TOKEN, False),
    ({"metadata": {**claim("sub", presentMatch=True)["metadata"], "invert": True}}, TOKEN, True),
    (
        {"sourcedMetadata": {"metadataMatcher": claim("iss", stringMatch={"suffix": "e"})["metadata"]}},
        TOKEN,
        True,
    ),
    ({"andIds": {"ids": [{"authenticated": {}}, claim("iss", stringMatch={"exact": "me"})]}}, TOKEN, True),
    ({"andIds": {"ids": [{"authenticated": {}}, claim("iss", stringMatch={"exact": "x"})]}}, TOKEN, False),
    ({"orIds": {"ids": [{"remoteIp": cidr("10.0.0.0", 8)}, ANY]}}, Asked(path="/"), True),
]


@pytest.mark.parametrize(("permission", "asked", "verdict"), PERMISSIONS)
def test_a_permission(permission: Any, asked: Asked, verdict: bool) -> None:
    port, warnings = compiled(http_chain(guard(HTTP_RBAC, rules=rules(permission)), destinationPort=8080))
    assert warnings == ()
    assert admits(port.guards.request, asked) is verdict


@pytest.mark.parametrize(("principal", "asked", "verdict"), PRINCIPALS)
def test_a_principal(principal: Any, asked: Asked, verdict: bool) -> None:
    port, warnings = compiled(
        http_chain(guard(HTTP_RBAC, rules=rules(principal=principal)), destinationPort=8080)
    )
    assert warnings == ()
    assert admits(port.guards.request, asked) is verdict


class TestRules:
    def test_a_policy_needs_a_permission_and_a_principal(self) -> None:
        both = policies(
            [{"destinationPort": 1}, {"destinationPort": 8080}],
            [{"authenticated": {}}, {"directRemoteIp": cidr("10.9.0.0", 16)}],
        )
        port, _ = compiled(http_chain(guard(HTTP_RBAC, rules={"policies": both}), destinationPort=8080))
        assert admits(port.guards.request, GET)
        assert not admits(port.guards.request, Asked(path="/"))
        assert admits(port.guards.request, Asked(path="/", source="10.9.0.1"))
        assert not admits(port.guards.request, Asked(ALICE, path="/", port=2))

    def test_allow_without_policies_lets_nobody_in(self) -> None:
        port, _ = compiled(http_chain(guard(HTTP_RBAC, rules={}), destinationPort=8080))
        assert not admits(port.guards.request, GET)
        assert port.protocol is Protocol.HTTP

    def test_deny_comes_first_and_audit_decides_nothing(self) -> None:
        port, _ = compiled(
            http_chain(
                guard(HTTP_RBAC, rules=rules(action="LOG")),
                guard(HTTP_RBAC, rules=rules(text(prefix="/admin"), action="DENY")),
                guard(HTTP_RBAC, rules=rules(text(prefix="/"))),
                destinationPort=8080,
            )
        )
        actions = [stage.action for stage in port.guards.request if isinstance(stage, Rules)]
        assert actions == [RuleAction.LOG, RuleAction.DENY, RuleAction.ALLOW]
        assert admits(port.guards.request, GET)
        assert not admits(port.guards.request, Asked(path="/admin/x"))

    def test_policies_are_asked_in_the_order_of_their_names(self) -> None:
        both = {name: policies([ANY], [ANY]).popitem()[1] for name in ("b", "a")}
        port, _ = compiled(http_chain(guard(HTTP_RBAC, rules={"policies": both}), destinationPort=8080))
        (stage,) = port.guards.request
        assert isinstance(stage, Rules)
        assert [policy.name for policy in stage.policies] == ["a", "b"]

    def test_a_filter_in_a_typed_struct(self) -> None:
        fields = {"rules": {"action": "DENY", "policies": policies([text(prefix="/x")], [ANY])}}
        port, warnings = compiled(http_chain(hidden(HTTP_RBAC, **fields), destinationPort=8080))
        assert warnings == ()
        assert not admits(port.guards.request, Asked(path="/x"))
        assert admits(port.guards.request, GET)

    def test_a_disabled_filter_asks_nothing(self) -> None:
        off = {**guard(HTTP_RBAC, rules={}), "disabled": True}
        port, _ = compiled(http_chain(off, destinationPort=8080))
        assert port.guards == Guards()


class TestPlaces:
    def test_tcp_is_asked_by_connection(self) -> None:
        port, _ = compiled(
            tcp_chain(guard(NETWORK_RBAC, rules=rules(principal={"authenticated": {}})), destinationPort=8080)
        )
        assert port.guards.request == ()
        assert admits(port.guards.connection, Asked(ALICE))
        assert not admits(port.guards.connection, Asked())

    def test_what_needs_a_request_is_never_true_of_a_connection(self) -> None:
        port, _ = compiled(
            tcp_chain(guard(NETWORK_RBAC, rules=rules(text(prefix="/"))), destinationPort=8080)
        )
        assert not admits(port.guards.connection, GET)
        negated = {"notRule": header(":method", exactMatch="GET")}
        port, _ = compiled(tcp_chain(guard(NETWORK_RBAC, rules=rules(negated)), destinationPort=8080))
        assert admits(port.guards.connection, GET)

    def test_network_rules_before_http_are_asked_of_each_request_first(self) -> None:
        strict = guard(NETWORK_RBAC, rules=rules(principal={"notId": {"authenticated": {}}}, action="DENY"))
        allow = guard(HTTP_RBAC, rules=rules(text(prefix="/api")))
        port, _ = compiled(http_chain(allow, before=[strict], destinationPort=8080))
        assert port.guards.connection == ()
        assert [each.action for each in port.guards.request if isinstance(each, Rules)] == [
            RuleAction.DENY,
            RuleAction.ALLOW,
        ]
        assert not admits(port.guards.request, Asked(path="/api"))
        assert admits(port.guards.request, GET)

    def test_a_detected_port_has_both(self) -> None:
        port, _ = compiled(
            http_chain(
                guard(HTTP_RBAC, rules=rules(text(prefix="/api"))),
                destinationPort=8080,
                applicationProtocols=["http/1.1"],
            ),
            tcp_chain(
                guard(NETWORK_RBAC, rules=rules(principal={"authenticated": {}})), destinationPort=8080
            ),
        )
        assert port.protocol is Protocol.DETECT
        assert (len(port.guards.connection), len(port.guards.request)) == (1, 1)

    def test_the_catch_all_is_guarded_too(self) -> None:
        port, _ = compiled(tcp_chain(guard(NETWORK_RBAC, rules=rules(principal={"authenticated": {}}))))
        assert port.protocol is Protocol.TCP
        assert not admits(port.guards.connection, Asked())


class TestShadow:
    @pytest.mark.parametrize("prefix", ["", "istio_dry_run_allow_"])
    def test_dry_runs_are_told_but_decide_nothing(self, prefix: str) -> None:
        port, _ = compiled(
            http_chain(guard(HTTP_RBAC, shadowRules={}, shadowRulesStatPrefix=prefix), destinationPort=8080)
        )
        (stage,) = port.guards.request
        assert isinstance(stage, Rules)
        assert (stage.shadow, stage.prefix) == (True, prefix)
        assert admits(port.guards.request, GET)

    def test_a_dry_run_that_cannot_be_told_is_left_out(self) -> None:
        bad = {"policies": policies([{"matcher": {"name": "x", "typedConfig": {}}}], [ANY])}
        port, warnings = compiled(
            http_chain(
                guard(HTTP_RBAC, shadowRules=bad, shadowRulesStatPrefix="istio_dry_run_deny_"),
                destinationPort=8080,
            )
        )
        assert port.protocol is Protocol.HTTP
        assert any("these shadow rules have no effect" in warning for warning in warnings)

    def test_but_not_where_a_callout_depends_on_it(self) -> None:
        bad = {"policies": policies([{"matcher": {"name": "x", "typedConfig": {}}}], [ANY])}
        port, _ = compiled(
            http_chain(
                guard(HTTP_RBAC, shadowRules=bad, shadowRulesStatPrefix="istio_ext_authz_"),
                destinationPort=8080,
            )
        )
        assert port.protocol is Protocol.REFUSE


@pytest.mark.parametrize(
    ("filter_rules", "reason"),
    [
        ({"rules": rules({"matcher": {"name": "x", "typedConfig": {}}})}, "rbac matcher"),
        ({"rules": rules(header("a", rangeMatch={"start": 1, "end": 2}))}, "match.headers.range_match of a"),
        ({"rules": rules(principal={"custom": {"name": "x", "typedConfig": {}}})}, "rbac custom"),
        (
            {"rules": rules(principal={"filterState": {"key": "other", "stringMatch": {"exact": "a"}}})},
            "filter state 'other'",
        ),
        ({"rules": rules(claim("n", nullMatch={}))}, "null_match"),
        ({"rules": rules(claim("n", doubleMatch={"range": {"start": 1, "end": 2}}))}, "double_match"),
        (
            {
                "rules": rules(
                    {"sourcedMetadata": {"metadataMatcher": {"filter": "x"}, "metadataSource": "ROUTE"}}
                )
            },
            "metadata of routes",
        ),
        ({"rules": rules({"uriTemplate": {"name": "t", "typedConfig": {}}})}, "path template of type (none)"),
        ({"rules": rules({})}, "an empty permission or principal"),
        ({"matcher": {}}, "matching tree"),
        (
            {"rules": {"policies": {"p": {"permissions": [ANY], "principals": [ANY], "condition": {}}}}},
            "condition (CEL)",
        ),
    ],
)
def test_what_cannot_be_told_closes_the_port_and_is_named(filter_rules: Any, reason: str) -> None:
    port, warnings = compiled(
        http_chain(guard(HTTP_RBAC, **filter_rules), destinationPort=8080), http_chain(destinationPort=9090)
    )
    assert port.protocol is Protocol.REFUSE
    (warning,) = warnings
    assert reason in warning
    assert warning.endswith("is not supported yet; what it guards is closed")
