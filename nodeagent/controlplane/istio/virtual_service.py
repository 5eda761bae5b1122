"""Decoding of VirtualService (networking.istio.io v1alpha3, v1beta1, v1), strict."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio import fields as read
from nodeagent.controlplane.istio.values import (
    MESH_GATEWAY,
    Destination,
    DirectResponse,
    HttpMatch,
    HttpRoute,
    Redirect,
    Rewrite,
    SourceMatch,
    TcpMatch,
    TcpRoute,
    VirtualService,
    WeightedDestination,
)
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.sources.base import RawObject

MAX_BODY: Final = 1 << 20
_MAX_WEIGHT: Final = 2**31 - 1
_MAX_TOTAL_WEIGHT: Final = 2**32 - 1
_REDIRECT_CODES: Final = (301, 302, 303, 307, 308)
_ROUTE_LATER: Final = (
    "corsPolicy",
    "fault",
    "mirror",
    "mirrorPercent",
    "mirrorPercentage",
    "mirrors",
    "retries",
)
_DERIVE_PORT: Final = ("FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT")


class _Reader:
    """Reads one VirtualService; holds what short host names are resolved with."""

    def __init__(self, raw: RawObject, problems: Problems, scope: MeshScope) -> None:
        self.raw = raw
        self.problems = problems
        self.namespace = raw.key.namespace
        self.domain = scope.domain

    def read(self) -> VirtualService | None:
        with Fields(self.raw.body, "", self.problems) as top:
            top.ignore("apiVersion", "kind", "status")
            read_metadata(top)
            spec = top.message("spec", required=True)
            if spec is None:
                return None
            with spec:
                return self._spec(spec)

    def _spec(self, spec: Fields) -> VirtualService:
        hosts = self._hosts(spec)
        gateways = self._gateways(spec, "gateways") or (MESH_GATEWAY,)
        if any(gateway != MESH_GATEWAY for gateway in gateways):
            self.problems.unsupported(spec.at("gateways"))
        http = tuple(self._http_route(item) for item in spec.messages("http"))
        tcp = tuple(self._tcp_route(item) for item in spec.messages("tcp"))
        spec.unsupported("tls")
        if not any(spec.has(name) for name in ("http", "tcp", "tls")):
            self.problems.error("spec", "one of http, tcp, tls must be set", "missing-field")
        return VirtualService(
            name=self.raw.key.name,
            namespace=self.namespace,
            hosts=hosts,
            gateways=gateways,
            http=http,
            tcp=tcp,
            export_to=read.export_to(spec),
            created=self.raw.created,
            source=self.raw.source,
        )

    def _hosts(self, spec: Fields) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for index, text in enumerate(spec.strings("hosts", required=True)):
            path = f"{spec.at('hosts')}[{index}]"
            if not read.check_host(spec, path, text, wildcard=True):
                continue
            host = read.full_host(text, self.namespace, self.domain)
            if host in found:
                self.problems.error(path, f"{text} is there twice", "duplicate-host")
            found[host] = None
        return tuple(found)

    def _gateways(self, fields: Fields, name: str) -> tuple[str, ...]:
        found = []
        for index, text in enumerate(fields.strings(name)):
            if not text or text.count("/") > 1:
                self.problems.error(
                    f"{fields.at(name)}[{index}]", f"{text!r} is neither mesh nor namespace/gateway"
                )
                continue
            qualified = text if text == MESH_GATEWAY or "/" in text else f"{self.namespace}/{text}"
            found.append(qualified)
        return tuple(found)

    # -- http -------------------------------------------------------------------------------------------------

    def _http_route(self, fields: Fields) -> HttpRoute:
        with fields:
            fields.unsupported(*_ROUTE_LATER, "delegate")
            found = HttpRoute(
                name=fields.string("name"),
                matches=tuple(self._http_match(item) for item in fields.messages("match")),
                destinations=self._destinations(fields, headers=True),
                redirect=self._redirect(fields),
                direct_response=self._direct_response(fields),
                rewrite=self._rewrite(fields),
                timeout=fields.duration("timeout"),
                headers=read.headers(fields),
            )
            self._check_actions(fields, found)
        return found

    def _check_actions(self, fields: Fields, route: HttpRoute) -> None:
        actions = [name for name in ("route", "redirect", "directResponse", "delegate") if fields.has(name)]
        if len(actions) > 1:
            self.problems.error(fields.path, f"only one of {', '.join(actions)} may be set")
        elif not actions:
            self.problems.error(
                fields.path, "one of route, redirect, directResponse must be set", "missing-field"
            )
        if fields.has("rewrite") and "route" not in actions:
            self.problems.error(fields.at("rewrite"), "only a route can be rewritten")
        if route.direct_response is not None and fields.has("timeout"):
            self.problems.error(fields.at("timeout"), "a direct response has no timeout")

    def _http_match(self, fields: Fields) -> HttpMatch:
        with fields:
            source = self._source(fields)
            return HttpMatch(
                name=fields.string("name"),
                uri=read.string_match_field(fields, "uri"),
                scheme=read.string_match_field(fields, "scheme"),
                method=read.string_match_field(fields, "method"),
                authority=read.string_match_field(fields, "authority"),
                headers=read.header_matches(fields, "headers"),
                without_headers=read.header_matches(fields, "withoutHeaders"),
                query=read.query_matches(fields, "queryParams"),
                ignore_uri_case=fields.boolean("ignoreUriCase"),
                stat_prefix=fields.string("statPrefix"),
                source=source,
            )

    def _source(self, fields: Fields) -> SourceMatch:
        return SourceMatch(
            port=fields.port("port"),
            labels=fields.string_map("sourceLabels"),
            namespace=fields.string("sourceNamespace"),
            gateways=self._gateways(fields, "gateways"),
        )

    def _redirect(self, fields: Fields) -> Redirect | None:
        nested = fields.message("redirect")
        if nested is None:
            return None
        with nested:
            port = nested.one_of(
                {
                    "port": lambda name: nested.port(name),
                    "derivePort": lambda name: (
                        0 if nested.choice(name, _DERIVE_PORT) == _DERIVE_PORT[0] else None
                    ),
                },
                required=False,
            )
            code = nested.integer("redirectCode", low=300, high=399) or 301
            if code not in _REDIRECT_CODES:
                allowed = ", ".join(map(str, _REDIRECT_CODES))
                nested.error("redirectCode", f"must be one of {allowed}, got {code}")
            found = Redirect(
                uri=read.uri_part(nested, "uri", fragment=True),
                prefix=read.uri_part(nested, "prefixRewrite", fragment=True),
                authority=read.authority(nested, "authority"),
                scheme=read.scheme(nested, "scheme"),
                port=port,
                code=code,
            )
            if found.uri and found.prefix:
                self.problems.error(nested.path, "only one of uri, prefixRewrite may be set")
            if found == Redirect(code=found.code):
                self.problems.error(
                    nested.path, "uri, authority, scheme or port must be set", "missing-field"
                )
        return found

    def _direct_response(self, fields: Fields) -> DirectResponse | None:
        nested = fields.message("directResponse")
        if nested is None:
            return None
        with nested:
            status = nested.integer("status", low=200, high=599, required=True)
            body = self._body(nested)
            if len(body) > MAX_BODY:
                nested.error("body", f"must be at most {MAX_BODY} bytes, is {len(body)}", "out-of-range")
        return DirectResponse(status or 500, body)

    def _body(self, fields: Fields) -> bytes:
        nested = fields.message("body")
        if nested is None:
            return b""
        with nested:
            found = nested.one_of(
                {
                    "string": lambda name: nested.string(name).encode(),
                    "bytes": lambda name: self._base64(nested, name),
                }
            )
        return found or b""

    def _base64(self, fields: Fields, name: str) -> bytes:
        try:
            return base64.b64decode(fields.string(name), validate=True)
        except (binascii.Error, ValueError):
            fields.error(name, "must be base64")
            return b""

    def _rewrite(self, fields: Fields) -> Rewrite | None:
        nested = fields.message("rewrite")
        if nested is None:
            return None
        with nested:
            found = Rewrite(
                uri=read.uri_part(nested, "uri"),
                authority=read.authority(nested, "authority"),
                regex=self._regex_rewrite(nested),
            )
            if found.uri and found.regex:
                self.problems.error(nested.path, "only one of uri, uriRegexRewrite may be set")
            if not any(nested.has(name) for name in ("uri", "authority", "uriRegexRewrite")):
                self.problems.error(
                    nested.path, "one of uri, authority, uriRegexRewrite must be set", "missing-field"
                )
        return found

    def _regex_rewrite(self, fields: Fields) -> tuple[str, str] | None:
        nested = fields.message("uriRegexRewrite")
        if nested is None:
            return None
        with nested:
            pattern = nested.regex("match")
            substitution = read.substitution(nested, "rewrite", pattern or "")
            if not pattern and not nested.has("match"):
                nested.error("match", "required, but missing", "missing-field")
            return (pattern, substitution) if pattern else None

    # -- destinations -----------------------------------------------------------------------------------------

    def _destinations(self, fields: Fields, *, headers: bool) -> tuple[WeightedDestination, ...]:
        found = []
        for item in fields.messages("route"):
            with item:
                destination = self._destination(item)
                weight = item.integer("weight", low=0, high=_MAX_WEIGHT) or 0
                changes = read.headers(item) if headers else None
                if destination is not None:
                    share = WeightedDestination(destination, weight)
                    found.append(WeightedDestination(destination, weight, changes) if changes else share)
        if fields.has("route") and not fields.data["route"]:
            fields.error("route", "required, but empty", "missing-field")
        if len(found) > 1 and not any(share.weight for share in found):
            fields.error("route", "the weights of several destinations must not all be 0", "no-weight")
        if sum(share.weight for share in found) > _MAX_TOTAL_WEIGHT:
            fields.error(
                "route", f"the weights must not add up to more than {_MAX_TOTAL_WEIGHT}", "out-of-range"
            )
        return tuple(found)

    def _destination(self, fields: Fields) -> Destination | None:
        nested = fields.message("destination", required=True)
        if nested is None:
            return None
        with nested:
            text = nested.string("host", required=True)
            valid = bool(text) and read.check_host(nested, nested.at("host"), text, wildcard=False)
            subset = nested.string("subset")
            port = self._port_selector(nested)
        return Destination(read.full_host(text, self.namespace, self.domain), subset, port) if valid else None

    def _port_selector(self, fields: Fields) -> int | None:
        nested = fields.message("port")
        if nested is None:
            return None
        with nested:
            return nested.port("number", required=True)

    # -- tcp --------------------------------------------------------------------------------------------------

    def _tcp_route(self, fields: Fields) -> TcpRoute:
        with fields:
            matches = tuple(self._tcp_match(item) for item in fields.messages("match"))
            destinations = self._destinations(fields, headers=False)
            if not fields.has("route"):
                fields.error("route", "required, but missing", "missing-field")
        return TcpRoute(matches, destinations)

    def _tcp_match(self, fields: Fields) -> TcpMatch:
        with fields:
            fields.unsupported("sourceSubnet")
            subnets = []
            for index, text in enumerate(fields.strings("destinationSubnets")):
                found = read.subnet(fields, f"{fields.at('destinationSubnets')}[{index}]", text)
                if found is not None:
                    subnets.append(found)
            return TcpMatch(tuple(subnets), self._source(fields))


def decode_virtual_service(raw: RawObject, problems: Problems, scope: MeshScope) -> VirtualService | None:
    """A VirtualService; what is wrong is in `problems`."""
    return _Reader(raw, problems, scope).read()
