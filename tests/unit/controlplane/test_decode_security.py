"""Strict decoding of security policies and MeshConfig: what is refused, with which words, and what is warned of."""

from __future__ import annotations

import json
import textwrap
from datetime import timedelta
from typing import Any

import pytest

from nodeagent.controlplane.istio.extension_providers import BodyInCheck, BrokenProvider, ExtensionProvider
from nodeagent.controlplane.istio.key_sets import NO_KEYS, KeySource, source_of
from nodeagent.controlplane.istio.security_values import (
    Action,
    Attribute,
    AuthorizationPolicy,
    Condition,
    JwtRule,
    MtlsMode,
    RequestAuthentication,
    Rule,
    TargetRef,
)
from nodeagent.controlplane.report import Severity

KEY_SET = NO_KEYS


def policy(spec: str, kind: str = "AuthorizationPolicy", annotations: str = "{}") -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
    meta = f"metadata: {{name: p, namespace: foo, annotations: {annotations}}}\n"
    return f"{head}{meta}spec: {spec}\n"


def source(text: str, action: str = "ALLOW") -> str:
    return policy(f"{{action: {action}, rules: [{{from: [{{source: {text}}}]}}]}}")


def operation(text: str) -> str:
    return policy(f"{{rules: [{{to: [{{operation: {text}}}]}}]}}")


def when(key: str, text: str = "values: [a]") -> str:
    return policy(f"{{rules: [{{when: [{{key: {json.dumps(key)}, {text}}}]}}]}}")


def peer(spec: str) -> str:
    return policy(spec, "PeerAuthentication")


def token(text: str) -> str:
    return policy(f"{{jwtRules: [{text}]}}", "RequestAuthentication")


SOURCE, OPERATION, WHEN = (
    f"spec.rules[0].{part}" for part in ("from[0].source", "to[0].operation", "when[0]")
)
ERRORS = {
    policy("{action: REFUSE}"): "spec.action: must be one of ALLOW, DENY, AUDIT, CUSTOM, got 'REFUSE'",
    policy("{action: DENY}"): (
        "spec.rules: DENY without rules matches nothing; write `rules: [{}]` to match everything"
    ),
    policy("{rulez: []}"): "spec.rulez: unknown field; did you mean rules?",
    policy("{rules: [null]}"): "spec.rules[0]: expected an object, got null",
    policy("{rules: [{from: []}]}"): "spec.rules[0].from: required, but empty; leave it out to match any",
    policy("{rules: [{from: [{}]}]}"): "spec.rules[0].from[0].source: required, but missing",
    source("{}"): f"{SOURCE}: required, but empty; leave it out to match any",
    source("{principal: [a]}"): f"{SOURCE}.principal: unknown field; did you mean principals?",
    source('{principals: [""]}'): f"{SOURCE}.principals[0]: must not be empty",
    source('{principals: ["spiffe://a/ns/b/sa/c"]}'): (
        f"{SOURCE}.principals[0]: 'spiffe://a/ns/b/sa/c': write it without spiffe://"
    ),
    source("{ipBlocks: [10.0.0.0/33]}"): (
        f"{SOURCE}.ipBlocks[0]: '10.0.0.0/33' is neither an IP address nor a subnet such as 10.1.0.0/16"
    ),
    source("{notRemoteIpBlocks: [x]}"): (
        f"{SOURCE}.notRemoteIpBlocks[0]: 'x' is neither an IP address nor a subnet such as 10.1.0.0/16"
    ),
    source("{serviceAccounts: [a/b/c]}"): (
        f"{SOURCE}.serviceAccounts[0]: 'a/b/c' is neither NAME nor NAMESPACE/NAME"
    ),
    source('{serviceAccounts: ["a*"]}'): (
        f"{SOURCE}.serviceAccounts[0]: 'a*': a wildcard is not allowed here; use principals"
    ),
    source("{serviceAccounts: [a], namespaces: [b]}"): (
        f"{SOURCE}: serviceAccounts cannot be set together with principals or namespaces"
    ),
    source(f"{{serviceAccounts: {[f'a{i}' for i in range(17)]}}}"): (
        f"{SOURCE}.serviceAccounts: there are 17; at most 16 are allowed"
    ),
    source("{trustDomains: [a/b]}"): f"{SOURCE}.trustDomains[0]: 'a/b': a trust domain has no '/'",
    source('{trustDomains: ["a*b"]}'): (
        f"{SOURCE}.trustDomains[0]: 'a*b': one wildcard is allowed, at the beginning or the end"
    ),
    operation("{ports: [80]}"): f"{OPERATION}.ports[0]: expected a string, got a number",
    operation('{ports: ["65536"]}'): (
        f"{OPERATION}.ports[0]: '65536' is not a port; write a number up to 65535 in quotes"
    ),
    operation("{ports: [http]}"): (
        f"{OPERATION}.ports[0]: 'http' is not a port; write a number up to 65535 in quotes"
    ),
    operation('{paths: ["/a/{b}"]}'): (
        f"{OPERATION}.paths[0]: '/a/{{b}}': a template is a whole segment, {{*}} or {{**}}"
    ),
    operation('{paths: ["/a{*}"]}'): (
        f"{OPERATION}.paths[0]: '/a{{*}}': a template is a whole segment, {{*}} or {{**}}"
    ),
    operation('{notPaths: ["/{**}/a/{*}"]}'): (
        f"{OPERATION}.notPaths[0]: '/{{**}}/a/{{*}}': {{**}} must be the last of its templates"
    ),
    operation('{paths: ["/{*}/a*"]}'): (
        f"{OPERATION}.paths[0]: '/{{*}}/a*': segment 'a*' has a character that a path with templates cannot have"
    ),
    operation('{paths: ["a/{*}"]}'): f"{OPERATION}.paths[0]: 'a/{{*}}': a path begins with '/'",
    operation('{methods: ["GET\\r\\n"]}'): f"{OPERATION}.methods[0]: cannot hold line breaks or NUL",
    when(""): f"{WHEN}.key: required, but empty",
    when("source.name"): (
        f"{WHEN}.key: 'source.name' is not known; there are: connection.sni, destination.ip, destination.port, "
        "remote.ip, request.auth.audiences, request.auth.presenter, request.auth.principal, source.ip, "
        "source.namespace, source.principal, source.serviceAccount, source.trustDomain, "
        "request.headers[NAME], request.auth.claims[NAME]"
    ),
    when("request.headers"): f"{WHEN}.key: 'request.headers': write it as request.headers[NAME]",
    when("request.headers[]"): f"{WHEN}.key: 'request.headers[]': write it as request.headers[NAME]",
    when("request.headers[a b]"): f"{WHEN}.key: 'request.headers[a b]': write it as request.headers[NAME]",
    when("destination.labels[app]"): (
        f"{WHEN}.key: destination.labels[app] is not supported; use spec.selector"
    ),
    when("source.ip", "values: []"): f"{WHEN}: one of values, notValues must be set",
    when("source.ip"): f"{WHEN}.values[0]: 'a' is neither an IP address nor a subnet such as 10.1.0.0/16",
    policy("{action: CUSTOM, rules: [{}]}"): "spec.provider: required, but missing",
    policy("{action: CUSTOM, provider: {name: a}}"): (
        "spec.rules: CUSTOM without rules matches nothing; write `rules: [{}]` to match everything"
    ),
    policy("{provider: {name: a}}"): "spec.provider: only an action CUSTOM has a provider, this one is ALLOW",
    policy("{action: CUSTOM, provider: {name: a}, rules: [{from: [{source: {principals: [b]}}]}]}"): (
        "spec.rules[0]: source.principal cannot be used with CUSTOM: it is not known yet by then"
    ),
    policy('{selector: {matchLabels: {app: "*"}}}'): (
        "spec.selector.matchLabels[app]: labels are compared as they are: no empty key, no wildcard"
    ),
    policy("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}"): (
        "spec: only one of selector, targetRefs may be set"
    ),
    policy("{targetRefs: [{kind: Pod, name: a}]}"): (
        "spec.targetRefs[0].kind: Pod of group '' cannot have a policy; there are: Gateway "
        "(gateway.networking.k8s.io), GatewayClass (gateway.networking.k8s.io), Service (core), ServiceEntry "
        "(networking.istio.io)"
    ),
    policy("{targetRef: {kind: Service, name: a, namespace: bar}}"): (
        "spec.targetRef.namespace: must be the policy's own namespace foo, or left out"
    ),
    policy("{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: a}]}"): (
        "spec.targetRefs[0].kind: a policy for a GatewayClass must be in the root namespace istio-system"
    ),
    policy("{}", annotations="{istio.io/dry-run: maybe}"): (
        "metadata.annotations[istio.io/dry-run]: must be true or false, got 'maybe'"
    ),
    peer("{mtls: {mode: ON}}"): "spec.mtls.mode: expected a string, got a boolean",
    peer("{mtls: {mode: MUTUAL}}"): (
        "spec.mtls.mode: must be one of UNSET, DISABLE, PERMISSIVE, STRICT, got 'MUTUAL'"
    ),
    peer("{portLevelMtls: {80: {mode: STRICT}}}"): (
        "spec.portLevelMtls: ports are those of certain pods: give a selector, too"
    ),
    peer("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}"): (
        "spec.portLevelMtls[http]: 'http' is not a port; it must be between 1 and 65535"
    ),
    token("{}"): "spec.jwtRules[0].issuer: required, but missing (or give jwksUri)",
    token("{issuer: a, jwksUri: ftp://b}"): (
        "spec.jwtRules[0].jwksUri: 'ftp://b' is not an http or https URL"
    ),
    token("{issuer: a, jwks: '{}'}"): (
        "spec.jwtRules[0].jwks: not a JSON Web Key Set: it has no list `keys` of objects"
    ),
    token('{issuer: a, jwks: \'{"keys":[{"kty":"oct","k":"AAAA"}]}\'}'): (
        "spec.jwtRules[0].jwks: no RSA, elliptic curve or Edwards curve key in it"
    ),
    token("{issuer: http://a, fromHeaders: [{prefix: b}]}"): (
        "spec.jwtRules[0].fromHeaders[0].name: required, but missing"
    ),
    token("{issuer: http://a, outputClaimToHeaders: [{header: 'a b', claim: c}]}"): (
        "spec.jwtRules[0].outputClaimToHeaders[0].header: 'a b' is not a header name"
    ),
    token("{issuer: http://a, audiences: ['']}"): "spec.jwtRules[0].audiences[0]: must not be empty",
    token("{issuer: http://a, timeout: 0s}"): (
        "spec.jwtRules[0].timeout: must be between 0.001s and 365 days, got 0s"
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.items(), ids=list(ERRORS.values()))
def test_errors(configured: Any, text: str, message: str) -> None:
    configured.put(text)
    assert [found.partition(": ")[2] for found in configured.messages()] == [message]
    assert not configured.world.security.by_key


WARNINGS = {
    policy("{selector: {}}"): (
        "spec.selector: selects nothing in particular: the policy is for every pod of the namespace"
    ),
    policy("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"): (
        "spec.rules[0]: has HTTP fields only: on TCP ports it denies everything; name ports to mean some only"
    ),
    policy("{selector: {matchLabels: {a: b}}}"): "spec.selector: no pod has the labels a=b",
    source("{namespaces: [gone, any*]}"): (
        "spec.rules[0]: no namespace gone is known: it has neither services nor pods"
    ),
    policy("{targetRefs: [{kind: Service, name: a}]}"): (
        "spec.targetRefs: is for the waypoint or gateway of Service a, which is not configured here: "
        "no effect on pods"
    ),
    token("{issuer: me}"): (
        "spec.jwtRules[0].issuer: 'me' is no URL whose keys could be discovered; give jwks or jwksUri. "
        "Until then its tokens are refused"
    ),
    peer("{mtls: {mode: STRICT}}"): (
        "spec: STRICT refuses everybody: this control plane issues no certificates (see --listen-tls)"
    ),
}


@pytest.mark.parametrize(("text", "message"), WARNINGS.items(), ids=list(WARNINGS.values()))
def test_warnings(configured: Any, text: str, message: str) -> None:
    configured.put(text)
    assert [found.partition(": ")[2] for found in configured.messages()] == [message]
    assert {issue.severity for issue in configured.report} == {Severity.WARNING}
    assert len(configured.world.security.by_key) == 1


def taken(configured: Any, text: str) -> Any:
    configured.put(textwrap.dedent(text))
    (found,) = configured.world.security.by_key.values()
    return found


def test_an_authorization_policy(configured: Any) -> None:
    text = policy(
        "{action: AUDIT, targetRefs: [{group: core, kind: Service, name: a}],"
        " rules: [{from: [{source: {principals: [a], notPrincipals: [b], serviceAccounts: []}}],"
        ' to: [{operation: {paths: ["/{*}"]}}], when: [{key: "request.auth.claims[a][b]", values: [c]},'
        ' {key: "request.headers[X-Y]", notValues: [d]}, {key: "experimental.envoy.filters.a.b[c]", values: [e]}]}]}',
        annotations='{istio.io/dry-run: "True"}',
    )
    found = taken(configured, text)
    assert isinstance(found, AuthorizationPolicy)
    assert (found.action, found.dry_run, found.targets) == (
        Action.AUDIT,
        True,
        (TargetRef("", "Service", "a"),),
    )
    rule = Rule(
        sources=((Condition(Attribute.PRINCIPAL, ("a",), ("b",)),),),
        operations=((Condition(Attribute.PATH, ("/{*}",)),),),
        when=(
            Condition(Attribute.CLAIMS, ("c",), path=("a", "b")),
            Condition(Attribute.HEADERS, (), ("d",), path=("x-y",)),
            Condition(Attribute.ENVOY_METADATA, ("e",), path=("envoy.filters.a.b", "c")),
        ),
    )
    assert found.rules == (rule,)


def test_service_accounts_without_a_namespace_are_of_the_policys(configured: Any) -> None:
    found = taken(configured, source("{serviceAccounts: [a, b/c]}"))
    assert found.rules[0].sources == ((Condition(Attribute.SERVICE_ACCOUNT, ("foo/a", "b/c")),),)


def test_a_peer_authentication(configured: Any) -> None:
    text = peer(
        "{selector: {matchLabels: {a: b}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}, 81: {}}}"
    )
    found = taken(configured, text)
    assert (found.mode, found.ports) == (None, {80: MtlsMode.DISABLE, 81: None})


def test_a_request_authentication(configured: Any) -> None:
    found = taken(
        configured,
        token(
            f"{{issuer: http://a, audiences: [b], jwks: '{KEY_SET}', fromHeaders: [{{name: h, prefix: p}}],"
            " fromParams: [q], fromCookies: [c], outputPayloadToHeader: o, forwardOriginalToken: true,"
            " outputClaimToHeaders: [{header: x, claim: y.z}], timeout: 3s, spaceDelimitedClaims: [roles]}"
        ),
    )
    assert isinstance(found, RequestAuthentication)
    assert found.rules == (
        JwtRule(
            issuer="http://a",
            audiences=("b",),
            keys=KEY_SET,
            from_headers=(("h", "p"),),
            from_params=("q",),
            from_cookies=("c",),
            payload_header="o",
            claim_headers=(("x", "y.z"),),
            forward=True,
            timeout=timedelta(seconds=3),
            space_delimited=("roles",),
        ),
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (JwtRule("https://a", keys=KEY_SET), None),
        (JwtRule("https://a", keys_uri="https://b"), KeySource("https://b")),
        (JwtRule("https://a"), KeySource("https://a", discovered=True)),
        (JwtRule("someone"), None),
    ],
)
def test_where_keys_come_from(rule: JwtRule, expected: KeySource | None) -> None:
    assert source_of(rule) == expected


def test_private_keys_are_not_passed_on(configured: Any) -> None:
    secret = json.loads(KEY_SET)
    secret["keys"][0]["d"] = "c2VjcmV0"
    secret["keys"].append({"kty": "oct", "k": "c2VjcmV0"})
    found = taken(configured, token(f"{{issuer: http://a, jwks: '{json.dumps(secret)}'}}"))
    assert json.loads(found.rules[0].keys) == json.loads(KEY_SET)


def test_a_bad_version_leaves_the_last_good_one(configured: Any) -> None:
    configured.put(policy("{}"))
    configured.put(policy("{action: NO}"))
    assert len(configured.world.security.by_key) == 1
    assert any("its last good version stays in force" in message for message in configured.messages())


# -- MeshConfig --


def mesh(text: str, name: str = "istio") -> str:
    body = textwrap.indent(textwrap.dedent(text), "    ")
    return (
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\n"
        f"data:\n  mesh: |\n{body}\n"
    )


def provider(text: str, kind: str = "envoyExtAuthzHttp") -> str:
    return mesh(f"extensionProviders: [{{name: a, {kind}: {text}}}]")


AT = "data.mesh.extensionProviders[0]"
MESH_ERRORS = {
    mesh("a: b: c"): "data.mesh: line 1: not valid YAML: mapping values are not allowed in this context",
    mesh("trustDomain: a/b"): (
        "data.mesh.trustDomain: trust domain 'a/b': use at most 255 lower case letters, digits, '.', '-' and '_'"
    ),
    mesh("trustDomainAliases: a"): "data.mesh.trustDomainAliases: expected a list, got a string",
    mesh("trustDomainAlias: [a]"): (
        "data.mesh.trustDomainAlias: unknown field; did you mean trustDomainAliases?"
    ),
    provider("{service: a.b}"): f"{AT}.envoyExtAuthzHttp.port: required, but missing",
    provider("{port: 1}"): f"{AT}.envoyExtAuthzHttp.service: required, but missing",
    provider("{service: a.b, port: 1, statusOnError: teapot}"): (
        f"{AT}.envoyExtAuthzHttp.statusOnError: 'teapot' is not an HTTP status"
    ),
    provider("{service: a.b, port: 1, pathPrefix: x}"): (
        f"{AT}.envoyExtAuthzHttp.pathPrefix: 'x' is not a path that begins with '/'"
    ),
    provider('{service: a.b, port: 1, headersToUpstreamOnAllow: ["*"]}'): (
        f"{AT}.envoyExtAuthzHttp.headersToUpstreamOnAllow[0]: '*': name a header, a prefix* or a *suffix"
    ),
    provider("{service: a.b, port: 1, pathPrefix: /x}", "envoyExtAuthzGrpc"): (
        f"{AT}.envoyExtAuthzGrpc.pathPrefix: unknown field"
    ),
    mesh("extensionProviders: [{name: A, prometheus: {}}]"): f"{AT}: prometheus has no effect here",
    mesh("extensionProviders: [{name: A_b, envoyExtAuthzGrpc: {service: a.b, port: 1}}]"): (
        f"{AT}.name: 'A_b': use at most 63 lower case letters, digits and '-'"
    ),
    mesh("extensionProviders: [{name: a}]"): (
        f"{AT}: one of envoyExtAuthzGrpc, envoyExtAuthzHttp must be set"
    ),
    mesh("rootNamespace: other"): (
        "data.mesh.rootNamespace: other is not in force, istio-system is; "
        "start the control plane with --root-namespace other"
    ),
    mesh("accessLogFile: /dev/stdout\nenableTracing: true"): (
        "data.mesh: have no effect here: accessLogFile, enableTracing"
    ),
    mesh("trustDomain: a/b", "other"): None,
    mesh("pathNormalization: {normalization: BASE}"): None,
    mesh("pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}"): None,
    mesh("pathNormalization: {normalization: NONE}"): (
        "data.mesh.pathNormalization.normalization: NONE is not supported: paths are normalised as BASE says"
    ),
    mesh("pathNormalization: {normalization: MERGE}"): (
        "data.mesh.pathNormalization.normalization: must be one of DEFAULT, NONE, BASE, MERGE_SLASHES, "
        "DECODE_AND_MERGE_SLASHES, got 'MERGE'"
    ),
}


@pytest.mark.parametrize(("text", "message"), MESH_ERRORS.items(), ids=str)
def test_findings_of_mesh_config(configured: Any, text: str, message: str | None) -> None:
    configured.put(text)
    assert [found.partition(": ")[2] for found in configured.messages()] == ([message] if message else [])


def test_a_wrong_provider_leaves_the_others(configured: Any) -> None:
    configured.put(
        mesh(
            """
            trustDomainAliases: [old]
            extensionProviders:
            - {name: bad, envoyExtAuthzGrpc: {service: a.b, port: 0}}
            - name: good
              envoyExtAuthzHttp:
                {service: foo/a.b, port: 80, timeout: 1s, failOpen: true, statusOnError: "503",
                 includeRequestBodyInCheck: {maxRequestBytes: 10, packAsBytes: true}, includeHeadersInCheck: [x]}
            """
        )
    )
    found = configured.world.mesh
    assert found.trust_domain_aliases == ("old",)
    assert isinstance(found.providers["bad"], BrokenProvider)
    assert found.providers["good"] == ExtensionProvider(
        name="good",
        grpc=False,
        host="a.b",
        port=80,
        namespace="foo",
        timeout=timedelta(seconds=1),
        fail_open=True,
        status_on_error=503,
        body=BodyInCheck(10, as_bytes=True),
        headers_in_check=("x",),
    )
