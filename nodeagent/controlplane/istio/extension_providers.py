"""Extension providers of MeshConfig: services that proxies ask, here those that decide about requests (ext_authz)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio.fields import check_host
from nodeagent.controlplane.registry import Registry
from nodeagent.controlplane.report import Severity
from nodeagent.model.service import Service

_GRPC: Final = "envoyExtAuthzGrpc"
_HTTP: Final = "envoyExtAuthzHttp"
_OTHERS: Final = frozenset(
    {
        "datadog",
        "envoyFileAccessLog",
        "envoyHttpAls",
        "envoyOtelAls",
        "envoyTcpAls",
        "lightstep",
        "opencensus",
        "opentelemetry",
        "prometheus",
        "sds",
        "skywalking",
        "stackdriver",
        "zipkin",
    }
)
# It becomes a part of policy names and of metadata keys (Istio).
_NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_MAX_BODY: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class BodyInCheck:
    """EnvoyExternalAuthorizationRequestBody: how much of the request's body is sent along."""

    max_bytes: int
    partial: bool = False
    as_bytes: bool = False


@dataclass(frozen=True, slots=True)
class ExtensionProvider:
    """An external authorizer. Lists of headers are names, `prefix*` or `*suffix`."""

    name: str
    grpc: bool
    host: str
    port: int
    namespace: str = ""
    """Of the service; empty: any."""
    timeout: timedelta | None = None
    fail_open: bool = False
    status_on_error: int | None = None
    body: BodyInCheck | None = None
    clear_route_cache: bool = False
    path_prefix: str = ""
    headers_in_check: tuple[str, ...] = ()
    extra_headers: tuple[tuple[str, str], ...] = ()
    upstream_on_allow: tuple[str, ...] = ()
    downstream_on_deny: tuple[str, ...] = ()
    downstream_on_allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokenProvider:
    """A provider that cannot be used: policies that name it deny."""

    name: str
    reason: str


def read_providers(mesh: Fields) -> Mapping[str, ExtensionProvider | BrokenProvider]:
    """extensionProviders by name. One that is wrong takes none of the others down."""
    found: dict[str, ExtensionProvider | BrokenProvider] = {}
    for item in mesh.messages("extensionProviders"):
        part = Problems(mesh.problems.source, mesh.problems.resource)
        provider = _read_provider(Fields(item.data, item.path, part))
        if provider is not None and provider.name in found:
            part.error(f"{item.path}.name", f"{provider.name} is there twice; the first one counts")
        elif part.failed:
            name = str(item.data.get("name") or "")
            found[name] = BrokenProvider(name, str(part.issues[0].message))
        elif provider is not None:
            found[provider.name] = provider
        mesh.problems.contain(part)
    return found


def _read_provider(fields: Fields) -> ExtensionProvider | None:
    """An external authorizer; None for a provider of another sort."""
    with fields:
        name = fields.string("name", required=True)
        others = [other for other in _OTHERS if fields.has(other)]
        fields.ignore(*_OTHERS)
        if others:
            fields.ignore(_GRPC, _HTTP)
            message = f"{others[0]} has no effect here"
            fields.problems.add(Severity.INFO, "not-supported-yet", fields.path, message)
            return None
        if name and not _NAME.match(name):
            fields.error("name", f"{name!r}: use at most 63 lower case letters, digits and '-'")
        readers: Mapping[str, Callable[[str], ExtensionProvider | None]] = {
            kind: lambda kind: _authorizer(fields, kind, name) for kind in (_GRPC, _HTTP)
        }
        return fields.one_of(readers)


def _authorizer(fields: Fields, kind: str, name: str) -> ExtensionProvider | None:
    nested = fields.message(kind)
    if nested is None:
        return None
    with nested:
        namespace, host = _service(nested)
        http = kind == _HTTP
        headers = _HttpHeaders.read(nested) if http else _HttpHeaders()
        return ExtensionProvider(
            name=name,
            grpc=not http,
            host=host,
            port=nested.port("port", required=True) or 0,
            namespace=namespace,
            timeout=nested.duration("timeout", at_least=timedelta(milliseconds=1)),
            fail_open=nested.boolean("failOpen"),
            status_on_error=_status(nested),
            body=_body(nested),
            clear_route_cache=nested.boolean("clearRouteCache"),
            path_prefix=_path_prefix(nested) if http else "",
            headers_in_check=headers.in_check,
            extra_headers=headers.extra,
            upstream_on_allow=headers.upstream_on_allow,
            downstream_on_deny=headers.downstream_on_deny,
            downstream_on_allow=headers.downstream_on_allow,
        )


@dataclass(frozen=True, slots=True)
class _HttpHeaders:
    """Which headers go where when the authorizer speaks HTTP."""

    in_check: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    upstream_on_allow: tuple[str, ...] = ()
    downstream_on_deny: tuple[str, ...] = ()
    downstream_on_allow: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> _HttpHeaders:
        """The fields of envoyExtAuthzHttp."""
        old = _patterns(fields, "includeHeadersInCheck")
        return cls(
            _patterns(fields, "includeRequestHeadersInCheck") or old,
            tuple(sorted(fields.string_map("includeAdditionalHeadersInCheck").items())),
            _patterns(fields, "headersToUpstreamOnAllow"),
            _patterns(fields, "headersToDownstreamOnDeny"),
            _patterns(fields, "headersToDownstreamOnAllow"),
        )


def _service(fields: Fields) -> tuple[str, str]:
    """Namespace (perhaps empty) and host of `[NAMESPACE/]HOST`."""
    text = fields.string("service", required=True)
    namespace, slash, host = text.rpartition("/")
    if text and check_host(fields, fields.at("service"), host, wildcard=False) and slash and not namespace:
        fields.error("service", f"{text!r} is neither HOST nor NAMESPACE/HOST")
    return namespace, host.lower()


def _status(fields: Fields) -> int | None:
    """statusOnError: an HTTP status as text."""
    text = fields.string("statusOnError")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and 100 <= int(text) <= 599):
        fields.error("statusOnError", f"{text!r} is not an HTTP status")
        return None
    return int(text)


def _body(fields: Fields) -> BodyInCheck | None:
    nested = fields.message("includeRequestBodyInCheck")
    if nested is None:
        return None
    with nested:
        size = nested.integer("maxRequestBytes", low=1, high=_MAX_BODY, required=True)
        return BodyInCheck(size or 1, nested.boolean("allowPartialMessage"), nested.boolean("packAsBytes"))


def _path_prefix(fields: Fields) -> str:
    prefix = fields.string("pathPrefix")
    if prefix and (not prefix.startswith("/") or not prefix.isascii() or not prefix.isprintable()):
        fields.error("pathPrefix", f"{prefix!r} is not a path that begins with '/'")
    return prefix


def _patterns(fields: Fields, name: str) -> tuple[str, ...]:
    values = fields.strings(name)
    for index, value in enumerate(values):
        if value in ("", "*"):
            fields.problems.error(
                f"{fields.at(name)}[{index}]", f"{value!r}: name a header, a prefix* or a *suffix"
            )
    return values


# -- look-ups --


class NoProvider(Exception):
    """A provider cannot be asked; says why."""


def provider_named(
    providers: Mapping[str, ExtensionProvider | BrokenProvider], name: str
) -> ExtensionProvider:
    """The provider of that name; NoProvider if it is not there or broken."""
    found = providers.get(name)
    if isinstance(found, BrokenProvider):
        raise NoProvider(f"extension provider {name} is wrong: {found.reason}")
    if found is None:
        known = ", ".join(sorted(filter(None, providers))) or "none"
        raise NoProvider(f"MeshConfig has no extension provider {name!r} that authorizes; there are: {known}")
    return found


def provider_service(provider: ExtensionProvider, registry: Registry) -> Service:
    """The service that a provider means; NoProvider if there is none with that port."""
    service = registry.services.get(provider.host)
    if service is None or provider.namespace not in ("", service.namespace):
        where = f" in namespace {provider.namespace}" if provider.namespace else ""
        raise NoProvider(f"extension provider {provider.name}: no service {provider.host}{where} is known")
    if service.port(provider.port) is None:
        raise NoProvider(f"extension provider {provider.name}: {service.host} has no port {provider.port}")
    return service
