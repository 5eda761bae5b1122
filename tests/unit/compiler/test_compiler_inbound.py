"""The inbound listener as a whole: STRICT, tokens, callouts, and what the control plane of the project itself makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2  # noqa: F401
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2  # noqa: F401
from google.protobuf import json_format
from harness.checks import Asked, admits
from harness.guard_filters import (
    HTTP_EXT_AUTHZ,
    HTTP_RBAC,
    JWT_AUTHN,
    NETWORK_EXT_AUTHZ,
    for_tls,
    guard,
    http_chain,
    listener,
    tcp_chain,
)

from nodeagent.compiler.inbound import assemble_inbound, compile_inbound
from nodeagent.compiler.pieces import InboundPiece, Scope
from nodeagent.compiler.signing_keys import MAX_KEYS, read_key_set
from nodeagent.compiler.tokens import RemoteKeys
from nodeagent.snapshot.matches import MatchKind, PathMatch
from nodeagent.snapshot.policies import (
    SEGMENT,
    AllowMissing,
    Attribute,
    Callout,
    Guards,
    NeedAll,
    NeedAny,
    NeedToken,
    SigningKey,
    Slashes,
    TextCheck,
    TextMatch,
    TokenPlace,
    TokenPlaceKind,
    TokenProvider,
    Tokens,
)
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol

ALICE = "spiffe://cluster.local/ns/shop/sa/alice"
CASES = Path(__file__).parents[2] / "golden" / "translate" / "cases"


def read(*chains: Mapping[str, Any]) -> InboundPiece:
    return compile_inbound(listener(*chains), Scope("v"))


def first(piece: InboundPiece) -> InboundPort:
    inbound = assemble_inbound(piece, ())
    return inbound.ports[0]


def http_port(*guards: Mapping[str, Any]) -> tuple[InboundPort, tuple[str, ...]]:
    piece = read(http_chain(*guards, destinationPort=8080))
    return first(piece), piece.warnings


class TestStrict:
    """Chains for TLS only: who has shown a certificate to a tunnel is served as they say, nobody else is."""

    def test_members_only(self) -> None:
        rule = {
            "policies": {
                "p": {"permissions": [{"urlPath": {"path": {"prefix": "/a"}}}], "principals": [{"any": True}]}
            }
        }
        chain = for_tls(http_chain(guard(HTTP_RBAC, rules=rule), destinationPort=8080), certificates=True)
        port = first(read(chain))
        assert port.protocol is Protocol.HTTP
        assert admits(port.guards.request, Asked(ALICE, path="/a"))
        assert not admits(port.guards.request, Asked(ALICE, path="/b"))
        assert not admits(port.guards.request, Asked(path="/a"))

    def test_an_undeclared_port(self) -> None:
        http = for_tls(http_chain(destinationPort=8080), certificates=True, alpn=["istio-http/1.1"])
        tcp = for_tls(tcp_chain(destinationPort=8080), certificates=True)
        port = first(read(http, tcp))
        assert port.protocol is Protocol.DETECT
        assert not admits(port.guards.connection, Asked())
        assert admits(port.guards.connection, Asked(ALICE))

    def test_the_catch_all(self) -> None:
        inbound = assemble_inbound(read(for_tls(tcp_chain(), certificates=True)), ())
        assert inbound.fallback is Protocol.TCP
        assert not admits(inbound.fallback_guards.connection, Asked())

    def test_chains_for_some_addresses_only_close_the_port(self) -> None:
        ranges = [{"addressPrefix": "10.0.0.0", "prefixLen": 8}]
        chain = for_tls(tcp_chain(destinationPort=8080, prefixRanges=ranges), certificates=True)
        piece = read(chain)
        assert first(piece).protocol is Protocol.REFUSE
        assert piece.warnings == (
            "filter chain 0.filter_chain_match.prefix_ranges is not supported yet; its port is closed",
        )

    def test_permissive_takes_both(self) -> None:
        chains = (
            tcp_chain(destinationPort=8080),
            for_tls(tcp_chain(destinationPort=8080), certificates=True),
        )
        port = first(read(*chains))
        assert (port.protocol, port.guards.connection) == (Protocol.TCP, ())

    def test_tls_that_asks_for_no_certificate_is_not_ours_to_end(self) -> None:
        port = first(read(for_tls(tcp_chain(destinationPort=8080), certificates=False)))
        assert port.protocol is Protocol.REFUSE


def key_set(*keys: Mapping[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


def b64(number: int | bytes, length: int = 0) -> str:
    import base64

    raw = number if isinstance(number, bytes) else number.to_bytes(length or (number.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


RSA = rsa.generate_private_key(65537, 2048).public_key()
EC = ec.generate_private_key(ec.SECP384R1()).public_key()
ED = ed25519.Ed25519PrivateKey.generate().public_key()
RSA_JWK = {"kty": "RSA", "kid": "r", "alg": "RS256", "n": b64(RSA.public_numbers().n), "e": "AQAB"}
EC_JWK = {
    "kty": "EC",
    "crv": "P-384",
    "x": b64(EC.public_numbers().x, 48),
    "y": b64(EC.public_numbers().y, 48),
}
ED_RAW = ED.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
ED_JWK = {"kty": "OKP", "crv": "Ed25519", "x": b64(ED_RAW), "use": "sig"}


def der(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


class TestKeySets:
    def test_each_kind_of_key(self) -> None:
        keys, problems = read_key_set(key_set(RSA_JWK, EC_JWK, ED_JWK))
        assert problems == ()
        assert keys == (
            SigningKey("r", "RS256", der(RSA)),
            SigningKey("", "", der(EC)),
            SigningKey("", "", der(ED)),
        )

    def test_padding_does_no_harm(self) -> None:
        (key,), _ = read_key_set(key_set({**ED_JWK, "x": ED_JWK["x"] + "="}))
        assert key.der == der(ED)

    @pytest.mark.parametrize(
        ("item", "problem"),
        [
            ({"kty": "oct", "k": "AAAA"}, "kty 'oct' is not RSA, EC or OKP"),
            ({"kty": ["RSA"]}, "kty ['RSA'] is not RSA, EC or OKP"),
            ({**RSA_JWK, "n": "AQAB"}, "an RSA key of 17 bits"),
            ({**RSA_JWK, "n": "a+b/"}, "n is not base64url"),
            ({**RSA_JWK, "e": 3}, "e is no string"),
            ({**RSA_JWK, "kid": 3}, "kid is no string"),
            ({**EC_JWK, "crv": "P-256K"}, "crv 'P-256K' is not"),
            ({**EC_JWK, "y": EC_JWK["x"]}, ""),  # not on the curve; the library words it
            ({**ED_JWK, "crv": "X25519"}, "crv 'X25519' is not Ed25519"),
        ],
    )
    def test_a_bad_key_is_left_out_and_named(self, item: Mapping[str, Any], problem: str) -> None:
        keys, problems = read_key_set(key_set(item, ED_JWK))
        assert len(keys) == 1
        assert problems[0].startswith(f"keys[0]: {problem}")

    def test_keys_for_encryption_are_none(self) -> None:
        assert read_key_set(key_set({**RSA_JWK, "use": "enc"}, {**RSA_JWK, "key_ops": ["sign"]})) == ((), ())

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"keys": 3}', "[" * 100_000, "-----BEGIN PUBLIC KEY-----"]
    )
    def test_what_is_no_key_set_has_no_keys(self, text: str) -> None:
        keys, problems = read_key_set(text)
        assert keys == ()
        assert len(problems) == 1

    def test_there_is_a_limit(self) -> None:
        keys, problems = read_key_set(key_set(*[ED_JWK] * (MAX_KEYS + 1)))
        assert len(keys) == MAX_KEYS
        assert problems == (f"only the first {MAX_KEYS} of {MAX_KEYS + 1} keys are taken",)


def provider(**fields: Any) -> dict[str, Any]:
    return {"issuer": "me", "localJwks": {"inlineString": key_set(RSA_JWK)}, **fields}


def tokens(requires: Any = None, match: Any = None, **providers: Any) -> tuple[Any, tuple[str, ...]]:
    rule: dict[str, Any] = {"match": match or {"prefix": "/"}}
    if requires is not None:
        rule["requires"] = requires
    port, warnings = http_port(guard(JWT_AUTHN, providers=providers or {"a": provider()}, rules=[rule]))
    return (port.guards.request[0] if port.guards.request else port), warnings


class TestTokens:
    def test_a_provider(self) -> None:
        stage, warnings = tokens(
            {"providerName": "a"},
            a=provider(
                audiences=["x", "y"],
                forward=True,
                fromHeaders=[{"name": "X-Token", "valuePrefix": "T "}],
                fromParams=["t"],
                fromCookies=["c"],
                forwardPayloadHeader="X-Payload",
                padForwardPayloadHeader=True,
                claimToHeaders=[{"headerName": "X-Sub", "claimName": "a.sub"}],
                payloadInMetadata="payload",
                clockSkewSeconds=5,
                normalizePayloadInMetadata={"spaceDelimitedClaims": ["scope"]},
            ),
        )
        assert warnings == ()
        assert isinstance(stage, Tokens)
        assert stage.providers == (
            TokenProvider(
                "a",
                "me",
                ("x", "y"),
                (SigningKey("r", "RS256", der(RSA)),),
                (
                    TokenPlace(TokenPlaceKind.HEADER, "x-token", "T "),
                    TokenPlace(TokenPlaceKind.PARAM, "t"),
                    TokenPlace(TokenPlaceKind.COOKIE, "c"),
                ),
                True,
                "x-payload",
                True,
                (("a.sub", "x-sub"),),
                "payload",
                5,
                ("scope",),
            ),
        )

    def test_the_usual_places(self) -> None:
        stage, _ = tokens({"providerName": "a"})
        assert stage.providers[0].places == (
            TokenPlace(TokenPlaceKind.HEADER, "authorization", "Bearer "),
            TokenPlace(TokenPlaceKind.PARAM, "access_token"),
        )
        assert stage.providers[0].clock_skew_s == 60

    @pytest.mark.parametrize(
        ("requires", "need"),
        [
            ({"providerName": "a"}, NeedToken("a")),
            ({"providerAndAudiences": {"providerName": "a", "audiences": ["z"]}}, NeedToken("a", ("z",))),
            ({"allowMissing": {}}, AllowMissing()),
            ({"allowMissingOrFailed": {}}, AllowMissing(failed=True)),
            (
                {"requiresAny": {"requirements": [{"providerName": "a"}, {"allowMissing": {}}]}},
                NeedAny((NeedToken("a"), AllowMissing())),
            ),
            ({"requiresAll": {"requirements": [{"providerName": "a"}]}}, NeedAll((NeedToken("a"),))),
            (None, None),
            ({}, None),
        ],
    )
    def test_a_requirement(self, requires: Any, need: Any) -> None:
        stage, warnings = tokens(requires)
        assert warnings == ()
        assert stage.rules[0].need == need
        assert stage.rules[0].path is None

    def test_a_path(self) -> None:
        stage, _ = tokens({"providerName": "a"}, match={"path": "/x"})
        assert stage.rules[0].path == PathMatch(MatchKind.EXACT, "/x")

    def test_a_requirement_by_name(self) -> None:
        port, _ = http_port(
            guard(
                JWT_AUTHN,
                providers={"a": provider()},
                requirementMap={"r": {"providerName": "a"}},
                rules=[{"match": {"prefix": "/"}, "requirementName": "r"}],
            )
        )
        (stage,) = port.guards.request
        assert isinstance(stage, Tokens)
        assert stage.rules[0].need == NeedToken("a")

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"subjects": {"exact": "x"}}, "providers[a].subjects"),
            ({"requireExpiration": True}, "providers[a].require_expiration"),
            ({"maxLifetime": "60s"}, "providers[a].max_lifetime"),
        ],
    )
    def test_a_restriction_that_cannot_be_kept_closes_the_port(self, fields: Any, reason: str) -> None:
        port, warnings = tokens({"providerName": "a"}, a=provider(**fields))
        assert isinstance(port, InboundPort)
        assert port.protocol is Protocol.REFUSE
        assert reason in warnings[0]

    def test_a_condition_beside_the_path_closes_the_port(self) -> None:
        port, warnings = tokens({"providerName": "a"}, match={"prefix": "/", "headers": [{"name": "x"}]})
        assert port.protocol is Protocol.REFUSE
        assert "jwt_authn.rules.match.headers" in warnings[0]

    def test_a_set_without_usable_keys_verifies_nothing(self) -> None:
        stage, warnings = tokens({"providerName": "a"}, a=provider(localJwks={"inlineString": "nonsense"}))
        assert stage.providers[0].keys == ()
        assert "not a JSON Web Key Set" in warnings[0]

    def test_remote_keys_are_put_in_when_they_are_there(self) -> None:
        remote = {
            "httpUri": {
                "uri": "https://idp.example/keys",
                "cluster": "outbound|443||idp.example",
                "timeout": "2s",
            },
            "cacheDuration": "600s",
        }
        chain = http_chain(
            guard(
                JWT_AUTHN,
                providers={"a": {"issuer": "me", "remoteJwks": remote}, "b": provider()},
                rules=[{"match": {"prefix": "/"}, "requires": {"providerName": "a"}}],
            ),
            destinationPort=8080,
        )
        piece = read(chain)
        wanted = RemoteKeys("https://idp.example/keys", "outbound|443||idp.example", 2.0, 600.0)
        assert piece.remote_keys == {wanted}
        assert self.keys(assemble_inbound(piece, ())) == [(), (SigningKey("r", "RS256", der(RSA)),)]
        key = SigningKey("k", "", b"der")
        assert self.keys(assemble_inbound(piece, (), keys_of={wanted: (key,)}.__getitem__))[0] == (key,)

    def keys(self, inbound: Inbound) -> list[tuple[SigningKey, ...]]:
        stage = inbound.ports[0].guards.request[0]
        assert isinstance(stage, Tokens)
        return [provider.keys for provider in stage.providers]


GRPC = {"envoyGrpc": {"clusterName": "outbound|9000||authz.shop.svc.cluster.local", "authority": "authz"}}


def callout(**fields: Any) -> tuple[Any, tuple[str, ...]]:
    port, warnings = http_port(guard(HTTP_EXT_AUTHZ, transportApiVersion="V3", **fields))
    return (port.guards.request[0] if port.guards.request else port), warnings


class TestCallouts:
    def test_by_grpc(self) -> None:
        stage, warnings = callout(
            grpcService={**GRPC, "timeout": "1.5s", "initialMetadata": [{"key": "X-Key", "value": "v"}]},
            failureModeAllow=True,
            statusOnError={"code": "ServiceUnavailable"},
            withRequestBody={"maxRequestBytes": 1024, "allowPartialMessage": True, "packAsBytes": True},
            filterEnabledMetadata={
                "filter": "envoy.filters.http.rbac",
                "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                "value": {"stringMatch": {"prefix": "istio-ext-authz"}},
            },
        )
        assert warnings == ()
        name = f"envoy.filters.http.rbac{SEGMENT}istio_ext_authz_shadow_effective_policy_id"
        assert stage == Callout(
            "v/outbound|9000||authz.shop.svc.cluster.local",
            grpc=True,
            authority="authz",
            timeout_ms=1500,
            fail_open=True,
            status_on_error=503,
            when=TextCheck(Attribute.METADATA, MatchKind.PREFIX, "istio-ext-authz", name),
            body_bytes=1024,
            body_partial=True,
            body_raw=True,
            metadata=(("x-key", "v"),),
        )

    def test_by_http(self) -> None:
        stage, warnings = callout(
            httpService={
                "serverUri": {
                    "uri": "http://authz.shop:8000",
                    "cluster": "outbound|8000||authz",
                    "timeout": "3s",
                },
                "pathPrefix": "/check",
                "authorizationRequest": {"headersToAdd": [{"key": "X-Ext", "value": "1"}]},
                "authorizationResponse": {
                    "allowedUpstreamHeaders": {"patterns": [{"exact": "X-User"}]},
                    "allowedClientHeaders": {"patterns": [{"prefix": "X-Why"}]},
                    "allowedClientHeadersOnSuccess": {"patterns": [{"suffix": "-Cookie"}]},
                    "allowedUpstreamHeadersToAppend": {"patterns": [{"exact": "X-List"}]},
                    "dynamicMetadataFromHeaders": {"patterns": [{"exact": "X-Role"}]},
                },
            },
            allowedHeaders={"patterns": [{"exact": "cookie"}]},
            disallowedHeaders={"patterns": [{"exact": "X-Secret"}]},
            failureModeAllow=True,
            failureModeAllowHeaderAdd=True,
        )
        assert warnings == ()
        assert stage == Callout(
            "v/outbound|8000||authz",
            grpc=False,
            timeout_ms=3000,
            fail_open=True,
            mark_open=True,
            path_prefix="/check",
            send=(TextMatch(MatchKind.EXACT, "cookie"),),
            hide=(TextMatch(MatchKind.EXACT, "x-secret"),),
            send_extra=(("x-ext", "1"),),
            keep=(TextMatch(MatchKind.EXACT, "x-user"),),
            keep_append=(TextMatch(MatchKind.EXACT, "x-list"),),
            keep_metadata=(TextMatch(MatchKind.EXACT, "x-role"),),
            answer=(TextMatch(MatchKind.PREFIX, "x-why"),),
            answer_allowed=(TextMatch(MatchKind.SUFFIX, "-cookie"),),
        )

    def test_so_much_of_a_body_is_sent_at_most(self) -> None:
        stage, warnings = callout(grpcService=GRPC, withRequestBody={"maxRequestBytes": 1 << 24})
        assert stage.body_bytes == 1 << 20
        assert "max_request_bytes 16777216: 1048576 at most" in warnings[0]

    def test_who_is_asked_must_be_known_to_the_view(self) -> None:
        piece = read(http_chain(guard(HTTP_EXT_AUTHZ, grpcService=GRPC), destinationPort=8080))
        assert piece.clusters == {"outbound|9000||authz.shop.svc.cluster.local"}

    def test_of_a_connection(self) -> None:
        fields = {"statPrefix": "x", "grpcService": GRPC, "failureModeAllow": True}
        port = first(read(tcp_chain(guard(NETWORK_EXT_AUTHZ, **fields), destinationPort=8080)))
        (stage,) = port.guards.connection
        assert isinstance(stage, Callout)
        assert (stage.fail_open, stage.timeout_ms) == (True, 200)

    def test_of_a_connection_before_http_closes_the_port(self) -> None:
        before = guard(NETWORK_EXT_AUTHZ, statPrefix="x", grpcService=GRPC)
        assert first(read(http_chain(before=[before], destinationPort=8080))).protocol is Protocol.REFUSE

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({}, "ext_authz without a service"),
            (
                {"grpcService": {"googleGrpc": {"targetUri": "x", "statPrefix": "x"}}},
                "grpc_service.google_grpc",
            ),
        ],
    )
    def test_nobody_to_ask_closes_the_port(self, fields: Any, reason: str) -> None:
        port, warnings = callout(**fields)
        assert port.protocol is Protocol.REFUSE
        assert reason in warnings[0]

    def test_what_has_no_effect_is_told(self) -> None:
        half = {"defaultValue": {"numerator": 50, "denominator": "HUNDRED"}}
        stage, warnings = callout(grpcService=GRPC, filterEnabled=half, includePeerCertificate=True)
        assert isinstance(stage, Callout)
        assert len(warnings) == 2
        whole = {"defaultValue": {"numerator": 100, "denominator": "HUNDRED"}}
        assert callout(grpcService=GRPC, filterEnabled=whole)[1] == ()


def test_a_route_with_a_guard_of_its_own_closes_the_port() -> None:
    chain = http_chain(guard(HTTP_RBAC, rules={}), destinationPort=8080)
    routes = chain["filters"][0]["typedConfig"]["routeConfig"]
    own = {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"}
    routes["virtualHosts"] = [
        {"name": "h", "domains": ["*"], "typedPerFilterConfig": {"envoy.filters.http.rbac": own}}
    ]
    piece = read(chain)
    assert first(piece).protocol is Protocol.REFUSE
    assert "envoy.filters.http.rbac in typed_per_filter_config of a route" in piece.warnings[0]


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_what_our_control_plane_makes_closes_no_port(path: Path) -> None:
    shown = json.loads(path.read_text())
    found = [each for each in shown.get("listeners", {}).values() if each.get("name") == "virtualInbound"]
    for data in found:
        piece = compile_inbound(json_format.ParseDict(data, listener_pb2.Listener()), Scope("v"))
        assert [warning for warning in piece.warnings if "closed" in warning] == []
        assert Protocol.REFUSE not in [port.protocol for port in assemble_inbound(piece, ()).ports]


@pytest.mark.parametrize(
    ("settings", "slashes"),
    [
        ({}, Slashes.AS_SENT),
        ({"mergeSlashes": True}, Slashes.MERGE),
        (
            {"mergeSlashes": True, "pathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD"},
            Slashes.MERGE | Slashes.DECODE,
        ),
        ({"pathWithEscapedSlashesAction": "REJECT_REQUEST"}, Slashes.REJECT),
        ({"pathWithEscapedSlashesAction": "KEEP_UNCHANGED"}, Slashes.AS_SENT),
    ],
)
def test_paths_are_judged_as_the_manager_reads_slashes(settings: Mapping[str, Any], slashes: Slashes) -> None:
    chain = http_chain(guard(HTTP_RBAC, rules={}), destinationPort=8080)
    chain["filters"][0]["typedConfig"].update(settings)
    piece = read(chain)
    assert piece.warnings == ()
    assert first(piece).guards.slashes is slashes


@pytest.mark.parametrize("settings", [{"useRemoteAddress": True}, {"xffNumTrustedHops": 1}])
def test_other_ways_to_know_the_client_close_the_port_if_it_is_asked_for(settings: Mapping[str, Any]) -> None:
    for kind, closed in (("remoteIp", True), ("directRemoteIp", False)):
        principal = {"notId": {kind: {"addressPrefix": "10.0.0.1", "prefixLen": 32}}}
        policies = {"p": {"permissions": [{"any": True}], "principals": [principal]}}
        chain = http_chain(guard(HTTP_RBAC, rules={"policies": policies}), destinationPort=8080)
        chain["filters"][0]["typedConfig"].update(settings)
        assert (first(read(chain)).protocol is Protocol.REFUSE) is closed


def test_slashes_are_read_so_where_nobody_is_judged_too() -> None:
    chain = http_chain(destinationPort=8080)
    chain["filters"][0]["typedConfig"]["mergeSlashes"] = True
    assert first(read(chain)).guards == Guards(slashes=Slashes.MERGE)


@pytest.mark.parametrize("details", ["SANITIZE", "APPEND_FORWARD", "ALWAYS_FORWARD_ONLY"])
def test_client_certificates_are_never_forwarded(details: str) -> None:
    chain = http_chain(destinationPort=8080)
    chain["filters"][0]["typedConfig"]["forwardClientCertDetails"] = details
    piece = read(chain)
    assert first(piece).protocol is Protocol.HTTP
    warning = (
        f"filter chain 0.http_connection_manager.forward_client_cert_details {details} is not supported yet; "
        "x-forwarded-client-cert is removed, as by SANITIZE"
    )
    assert piece.warnings == (() if details == "SANITIZE" else (warning,))


def test_a_redirect_for_slashes_closes_the_port() -> None:
    chain = http_chain(guard(HTTP_RBAC, rules={}), destinationPort=8080)
    chain["filters"][0]["typedConfig"]["pathWithEscapedSlashesAction"] = "UNESCAPE_AND_REDIRECT"
    piece = read(chain)
    assert first(piece).protocol is Protocol.REFUSE
    assert "UNESCAPE_AND_REDIRECT" in piece.warnings[0]
