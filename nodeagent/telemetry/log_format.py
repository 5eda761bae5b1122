"""Access log formats: Envoy's command operators, as far as this agent has what they stand for.

A format is parsed once into a list of functions. Text puts `-` where there is no value, JSON null, as Envoy
does.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from nodeagent.dataplane.report import AccessRecord, ResponseFlag, WireProtocol, format_flags
from nodeagent.errors import ConfigError
from nodeagent.snapshot.address import LENGTH, V4_PREFIX, format_address, format_endpoint
from nodeagent.telemetry.labels import INBOUND_PASSTHROUGH, PASSTHROUGH

Value = str | int | bool | None
Field = Callable[[AccessRecord], Value]

ISTIO_TEXT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% '
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% '
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% '
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% "
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
"""Istio's default (meshConfig.accessLogFormat)."""

ISTIO_JSON: Final[Mapping[str, str]] = {
    "authority": "%REQ(:AUTHORITY)%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "duration": "%DURATION%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "response_code": "%RESPONSE_CODE%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "response_flags": "%RESPONSE_FLAGS%",
    "route_name": "%ROUTE_NAME%",
    "start_time": "%START_TIME%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "user_agent": "%REQ(USER-AGENT)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
}
"""Istio's default with accessLogEncoding JSON; keys in Envoy's order."""

IDENTITY_TEXT: Final = (
    ISTIO_TEXT.removesuffix("\n") + ' "%DOWNSTREAM_PEER_URI_SAN%" "%UPSTREAM_PEER_URI_SAN%"\n'
)
"""The same where workloads have identities: who the peer has proved to be comes at the end."""
_PEERS: Final = {
    "downstream_peer_uri_san": "%DOWNSTREAM_PEER_URI_SAN%",
    "upstream_peer_uri_san": "%UPSTREAM_PEER_URI_SAN%",
}
IDENTITY_JSON: Final[Mapping[str, str]] = dict(sorted({**ISTIO_JSON, **_PEERS}.items()))


# -- what the operators stand for --


def _is_there(address: tuple[bytes, int]) -> bool:
    """With port 0 it is of a socket that has none yet."""
    return address[1] != 0 or address[0] not in (bytes(LENGTH), V4_PREFIX + bytes(4))


def _endpoint(address: tuple[bytes, int]) -> str | None:
    return format_endpoint(*address) if _is_there(address) else None


def _host(address: tuple[bytes, int]) -> str | None:
    return format_address(address[0]) if _is_there(address) else None


def _port(address: tuple[bytes, int]) -> int | None:
    return address[1] or None


def _protocol(record: AccessRecord) -> str | None:
    match record.protocol:
        case WireProtocol.HTTP1:
            return f"HTTP/1.{record.http_minor}"
        case WireProtocol.GRPC | WireProtocol.HTTP2:
            return "HTTP/2" if record.method else None
    return None


def upstream_cluster(record: AccessRecord) -> str | None:
    """The xDS name of the cluster, or of the catch-all that the traffic took."""
    if record.cluster is not None:
        return record.cluster.xds_name
    if record.inbound_port is not None:
        return record.inbound_port.xds_name or None
    if not record.upstream_remote[1] and not record.flags & ResponseFlag.UF:
        return None
    return INBOUND_PASSTHROUGH if record.inbound else PASSTHROUGH


def _is_connection(record: AccessRecord) -> bool:
    """Opaque, also when it is HTTP/2 that nobody looked at."""
    return record.protocol in {WireProtocol.TCP, WireProtocol.HTTP2}


def _service_time(record: AccessRecord) -> int | None:
    return record.upstream_us // 1000 if record.upstream_us else None


def _nothing(record: AccessRecord) -> None:
    return None


_PLAIN: Final[dict[str, Field]] = {
    "PROTOCOL": _protocol,
    "RESPONSE_CODE": lambda record: record.status,
    "RESPONSE_FLAGS": lambda record: format_flags(record.flags),
    "RESPONSE_CODE_DETAILS": lambda record: None if _is_connection(record) else record.detail or None,
    "CONNECTION_TERMINATION_DETAILS": lambda record: (
        record.detail or None if _is_connection(record) else None
    ),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": lambda record: record.upstream_failure or None,
    "BYTES_RECEIVED": lambda record: record.bytes_in,
    "BYTES_SENT": lambda record: record.bytes_out,
    "DURATION": lambda record: record.duration_us // 1000,
    "RESPONSE_DURATION": _service_time,
    "UPSTREAM_HOST": lambda record: _endpoint(record.upstream_remote),
    "UPSTREAM_CLUSTER": upstream_cluster,
    "UPSTREAM_CLUSTER_RAW": upstream_cluster,
    "REQUESTED_SERVER_NAME": _nothing,
    "DOWNSTREAM_PEER_URI_SAN": lambda record: (record.principal or None) if record.inbound else None,
    "UPSTREAM_PEER_URI_SAN": lambda record: None if record.inbound else (record.principal or None),
    "AUDITED_BY": lambda record: record.audited_by or None,
    "ROUTE_NAME": lambda record: record.route or None,
    "HOSTNAME": lambda record: socket.gethostname(),
}


def _add_address_operators() -> None:
    """NAME, NAME_WITHOUT_PORT and the port alone, for the four ends."""
    ends: dict[str, Callable[[AccessRecord], tuple[bytes, int]]] = {
        "DOWNSTREAM_REMOTE": lambda record: record.downstream_remote,
        "DOWNSTREAM_LOCAL": lambda record: record.downstream_local,
        "UPSTREAM_REMOTE": lambda record: record.upstream_remote,
        "UPSTREAM_LOCAL": lambda record: record.upstream_local,
    }
    for name, end in ends.items():
        _PLAIN[f"{name}_ADDRESS"] = lambda record, end=end: _endpoint(end(record))  # type: ignore[misc]
        _PLAIN[f"{name}_ADDRESS_WITHOUT_PORT"] = lambda record, end=end: _host(end(record))  # type: ignore[misc]
        _PLAIN[f"{name}_PORT"] = lambda record, end=end: _port(end(record))  # type: ignore[misc]


_add_address_operators()

_REQUEST_HEADERS: Final[dict[str, Field]] = {
    ":METHOD": lambda record: record.method or None,
    ":PATH": lambda record: record.path or None,
    # The record has the path as it was received, so that the original one and the path are the same.
    "X-ENVOY-ORIGINAL-PATH": lambda record: record.path or None,
    ":AUTHORITY": lambda record: record.authority or None,
    "USER-AGENT": lambda record: record.user_agent or None,
    "X-FORWARDED-FOR": lambda record: record.forwarded_for or None,
    "X-REQUEST-ID": lambda record: record.request_id or None,
}
_RESPONSE_HEADERS: Final[dict[str, Field]] = {"X-ENVOY-UPSTREAM-SERVICE-TIME": _service_time}

_METADATA: Final[dict[str, Field]] = {"envoy.common:access_log_hint": lambda record: bool(record.audited_by)}
"""What Envoy's RBAC filters tell of AUDIT policies (envoy.config.rbac.v3.RBAC, action LOG)."""

# -- parsing --

_OPERATOR: Final = re.compile(r"%(?:(?P<name>[A-Z_]+)(?:\((?P<argument>[^)]*)\))?(?::(?P<limit>\d+))?)?%")


def _header_field(headers: Mapping[str, Field], argument: str, operator: str) -> Field:
    """REQ and RESP: a header, with another one to take if it is missing (`NAME?OTHER`)."""
    fields = []
    for name in argument.split("?"):
        field = headers.get(name.upper())
        if field is None:
            raise ConfigError(
                f"access log format: {operator}: header {name!r} is not recorded; {_list(headers)}"
            )
        fields.append(field)

    def first(record: AccessRecord) -> Value:
        return next((value for field in fields if (value := field(record)) is not None), None)

    return fields[0] if len(fields) == 1 else first


def _start_time(argument: str | None) -> Field:
    if argument:
        pattern = re.sub(
            r"%([369])f", lambda match: {"3": "%3f", "6": "%f", "9": "%f000"}[match[1]], argument
        )

        def formatted(record: AccessRecord) -> str:
            when = datetime.fromtimestamp(record.start_us / 1e6, UTC)
            return when.strftime(pattern.replace("%3f", f"{when.microsecond // 1000:03d}"))

        return formatted

    def standard(record: AccessRecord) -> str:
        seconds, micros = divmod(record.start_us, 1_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros // 1000:03d}Z"

    return standard


def _field(match: re.Match[str]) -> Field:
    """The function of one operator; ConfigError naming one that is not known."""
    name, argument, operator = match["name"], match["argument"], match[0]
    if name in ("REQ", "RESP") and argument:
        field = _header_field(_REQUEST_HEADERS if name == "REQ" else _RESPONSE_HEADERS, argument, operator)
    elif name == "DYNAMIC_METADATA" and argument in _METADATA:
        field = _METADATA[argument]
    elif name == "START_TIME":
        field = _start_time(argument)
    elif name in _PLAIN and argument is None:
        field = _PLAIN[name]
    else:
        raise ConfigError(
            f"access log format: {operator} is not supported; {_list(_PLAIN)}, START_TIME, REQ, RESP, "
            f"DYNAMIC_METADATA({', '.join(_METADATA)})"
        )
    limit = match["limit"]
    return field if limit is None else _cut(field, int(limit))


def _cut(field: Field, limit: int) -> Field:
    def cut(record: AccessRecord) -> Value:
        value = field(record)
        return value[:limit] if isinstance(value, str) else value

    return cut


def _list(known: Mapping[str, Field]) -> str:
    return "there are " + ", ".join(sorted(known))


def _parse(template: str) -> list[str | Field]:
    """Literal text and fields, in order."""
    parts: list[str | Field] = []
    end = 0
    for match in _OPERATOR.finditer(template):
        parts.append(template[end : match.start()])
        parts.append("%" if match["name"] is None else _field(match))
        end = match.end()
    parts.append(template[end:])
    if any("%" in part for part in parts[::2] if isinstance(part, str)):
        raise ConfigError(f"access log format: a lone % in {template!r}; write %% for a percent sign")
    return [part for part in parts if part != ""]


# Control characters, and those that break lines, are invisible or turn the direction of writing;
# native/src/access_text.c has the same list.
_HIDDEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def _clean(text: str) -> str:
    """Without hidden characters, so that nobody writes lines of their own into the log."""
    return _HIDDEN.sub(_escape, text)


def _text(value: Value) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def text_format(template: str = ISTIO_TEXT) -> Callable[[AccessRecord], str]:
    """A function that formats a record by a format string; ConfigError naming what is wrong with it."""
    parts = _parse(template if template.endswith("\n") else template + "\n")

    def format_record(record: AccessRecord) -> str:
        pieces = []
        for part in parts:
            value = part if isinstance(part, str) else part(record)
            if not isinstance(part, str):
                value = _clean(_text(value))
            pieces.append(str(value))
        return "".join(pieces)

    return format_record


def json_format(template: Mapping[str, str] = ISTIO_JSON) -> Callable[[AccessRecord], str]:
    """A function that formats a record as one line of JSON. A value that is one operator keeps its type. In the default
    formats there is also which AUDIT policy matched, if one did, and what the kernel knows of connections past the
    engine."""
    members: dict[str, Field] = {}
    for key, text in template.items():
        match = _OPERATOR.fullmatch(text)
        members[key] = _field(match) if match and match["name"] else _joined(text)

    is_ours = template in (ISTIO_JSON, IDENTITY_JSON)

    def format_record(record: AccessRecord) -> str:
        values = {key: field(record) for key, field in members.items()}
        if is_ours and record.audited_by:
            values["audited_by"] = record.audited_by
        if is_ours and record.rtt_us is not None:
            values |= {"tcp_rtt_us": record.rtt_us, "tcp_retransmits": record.retransmits}
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n"

    return format_record


def parse_json_template(text: str) -> dict[str, str]:
    """The members of a JSON format; ConfigError unless it is an object of texts."""
    try:
        template = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"access log format: {text!r} is no JSON: {error}") from error
    if not isinstance(template, dict) or not all(isinstance(value, str) for value in template.values()):
        raise ConfigError(f"access log format: {text!r} must be an object whose members are texts")
    return template


def _joined(text: str) -> Field:
    """A member made of several operators or plain text."""
    inner = text_format(text)
    return lambda record: inner(record)[:-1]
