"""What the engine reports of traffic, with its numbers turned back into the snapshot values that they stand
for.

A value is None where the engine had none (a request that found no route has no cluster), and where what the
number stood for has been gone for too long (tags.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from nodeagent.snapshot.values import Cluster, Endpoint, InboundPort


class StatKind(IntEnum):
    """enum na_stat_kind."""

    HTTP = 1
    TCP_OPENED = 2
    TCP_CLOSED = 3
    TCP_BYTES = 4


class Outcome(IntEnum):
    """enum na_outcome: what a policy decided."""

    ALLOWED = 0
    DENIED = 1
    SHADOW_ALLOWED = 2
    SHADOW_DENIED = 3
    LOGGED = 4


class WireProtocol(IntEnum):
    """What a connection turned out to speak, in rows and records."""

    TCP = 0
    HTTP1 = 1
    GRPC = 2
    HTTP2 = 3


class ResponseFlag(IntFlag):
    """enum na_flag: Envoy's response flags."""

    UH = 1 << 0
    UF = 1 << 1
    UO = 1 << 2
    NR = 1 << 3
    URX = 1 << 4
    DC = 1 << 5
    UC = 1 << 6
    UT = 1 << 7
    LR = 1 << 8
    IH = 1 << 9
    DPE = 1 << 10
    UPE = 1 << 11
    NC = 1 << 12
    SI = 1 << 13
    DT = 1 << 14
    OM = 1 << 15
    NFCF = 1 << 16
    UAEX = 1 << 17


FLAG_NAMES = tuple((int(flag), flag.name or "") for flag in ResponseFlag)


def format_flags(flags: int) -> str:
    """The flags as Envoy writes them: names joined by commas, `-` for none."""
    if not flags:
        return "-"
    return ",".join(name for bit, name in FLAG_NAMES if flags & bit) or "-"


class ConnectionState(IntEnum):
    """na_connection_info.state."""

    DETECTING = 0
    WAITING = 1
    IDLE = 2
    ACTIVE = 3
    TCP = 4
    CLOSING = 5
    BYPASSED = 6
    """Past the engine (flow_reader.py)."""


@dataclass(frozen=True, slots=True)
class StatRow:
    """na_stat_row. `workload` is the uid of the local one; `peer` the client's address (inbound) or the one
    connected to (outbound). Bucket counts are per bucket, not cumulative; `duration_us` is a sum.

    `principal` is the peer's authenticated SPIFFE ID, "" if it has proved none."""

    kind: StatKind
    workload: str
    inbound: bool
    protocol: WireProtocol
    peer: bytes
    cluster: Cluster | None
    endpoint: Endpoint | None
    inbound_port: InboundPort | None
    flags: int
    status: int
    count: int
    bytes_in: int
    bytes_out: int
    duration_us: int
    duration: tuple[int, ...]
    request_size: tuple[int, ...]
    response_size: tuple[int, ...]
    principal: str = ""
    mutual_tls: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What is counted of policies that decided alike (NA_STAT_POLICY). `workload` is the uid of the one that was to be
    reached; `policy` is "" where ALLOW rules had none that matched."""

    workload: str
    policy: str
    outcome: Outcome
    protocol: WireProtocol


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """na_access_record: one finished request or TCP connection. Empty strings and zeros: there was none.

    `principal` is the peer's authenticated SPIFFE ID: the client's inbound, the endpoint's outbound."""

    workload: str
    inbound: bool
    protocol: WireProtocol
    http_minor: int
    start_us: int
    duration_us: int
    upstream_us: int
    bytes_in: int
    bytes_out: int
    status: int
    flags: int
    cluster: Cluster | None
    endpoint: Endpoint | None
    inbound_port: InboundPort | None
    downstream_remote: tuple[bytes, int]
    downstream_local: tuple[bytes, int]
    upstream_remote: tuple[bytes, int]
    upstream_local: tuple[bytes, int]
    method: str
    authority: str
    path: str
    user_agent: str
    forwarded_for: str
    request_id: str
    route: str
    cluster_name: str
    detail: str
    upstream_failure: str
    principal: str = ""
    mutual_tls: bool = False
    rtt_us: int | None = None
    """Of a connection past the engine: its smoothed round trip time; None: the engine carried it."""
    retransmits: int = 0
    """The same: segments."""
    audited_by: str = ""
    """The AUDIT policy that matched first."""


class LineFormat(IntEnum):
    """enum na_access_format: Istio's default access log formats, and the same with the identities of peers."""

    TEXT = 1
    JSON = 2
    IDENTITY_TEXT = 3
    IDENTITY_JSON = 4


@dataclass(frozen=True, slots=True)
class Lines:
    """Access records as they go into a log; `count` is how many."""

    data: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Counter:
    """An engine-wide counter or gauge; `name` is in Prometheus style, without prefix."""

    name: str
    help: str
    gauge: bool
    value: int


@dataclass(frozen=True, slots=True)
class Connection:
    """na_connection_info: a live downstream connection; `local` is its original destination."""

    id: int
    workload: str
    worker: int
    inbound: bool
    protocol: WireProtocol
    state: ConnectionState
    age_ms: int
    bytes_in: int
    bytes_out: int
    remote: tuple[bytes, int]
    local: tuple[bytes, int]
    cluster: str
    principal: str = ""
    """Of a client that came through a tunnel."""
