"""What the admin API shows of an agent: the rows, and the Protocol through which it asks for them.

The composition root implements `AgentState`; the admin server and the CLI know only these values. Each row
is turned into JSON field by field, so a field's name here is its name in `nodeagent get -o json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nodeagent.admin.explain import AccessExplanation, Asked, RouteExplanation

# -- status ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """How far one xDS type of one stream is in sync."""

    type_url: str
    # SYNCED: the last response is in force. STALE: the last response was rejected, at least in part.
    # NOT SENT: subscribed, and nothing has come yet. Named as `istioctl proxy-status` names them.
    state: str
    resources: int = 0
    version: str = ""
    last_update: float = 0.0  # seconds since the epoch; 0: never
    nack: str = ""  # what the last rejected response was rejected for; kept until a later one is accepted
    nacks: int = 0


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One ADS stream: the workload types, or the L7 types of one view."""

    name: str
    connected: bool
    node_id: str = ""
    connected_since: float = 0.0  # seconds since the epoch; 0: not connected
    attempts: int = 0  # connection attempts since the last success
    last_error: str = ""
    types: tuple[TypeStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlPlaneStatus:
    """The agent's side of its control plane connection."""

    address: str
    connected: bool
    connected_since: float = 0.0
    last_error: str = ""
    streams: tuple[StreamStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class BpfMapStatus:
    """A BPF map of capture."""

    name: str
    memory: int  # bytes of kernel memory
    entries: int | None = None  # with `limit` None where nothing fills up
    limit: int | None = None
    full: int = 0  # entries refused since the start


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """How traffic of workloads is captured, and why so."""

    mode: str  # nft, ebpf or none
    reason: str = ""
    counters: Mapping[str, int] = field(default_factory=dict)
    maps: tuple[BpfMapStatus, ...] = ()  # none in mode nft


@dataclass(frozen=True, slots=True)
class BypassStatus:
    """What of the traffic within the node passes the engine."""

    state: str  # on, off, or suspended: nothing passes at present
    reason: str = ""
    services: int = 0
    endpoints: int = 0
    verdicts: int = 0
    clients: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # by BPF map that is full: the engine has them
    revoked: int = 0  # live connections ended by a change
    connections: int = 0  # that live


@dataclass(frozen=True, slots=True)
class DatagramStatus:
    """What is decided on UDP of workloads."""

    state: str  # on, off, or stale: the last change could not be put in force as a whole
    reason: str = ""
    services: int = 0
    endpoints: int = 0
    receivers: int = 0  # addresses of workloads of which policies ask something
    verdicts: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # for want of room
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine at a glance; `counters` holds those that are not zero."""

    workers: int
    connections: int
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnrolledWorkload:
    """A workload of this node, as the CNI side or the file of workloads told of it."""

    uid: str
    name: str
    namespace: str
    service_account: str
    state: str  # pending, enrolled, draining or failed
    view: str = ""
    error: str = ""
    fail_mode: str = "closed"  # or open: its connections pass while no agent runs


@dataclass(frozen=True, slots=True)
class EnrolmentStatus:
    """The ZDS connection, the file of workloads, and what came from both."""

    socket: str  # "": there is no CNI side
    connected: bool
    last_error: str = ""
    file: str = ""
    file_error: str = ""  # why the file as it is now is not in force
    workloads: tuple[EnrolledWorkload, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """The configuration in force."""

    version: str
    settled: bool  # in force on every worker
    commits: int = 0
    applied_at: float = 0.0  # seconds since the epoch
    from_disk: bool = False  # the last good configuration, not yet confirmed by a control plane
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A workload certificate that the agent holds."""

    identity: str
    state: str  # Available, Initializing, Unavailable or Expired
    not_before: float  # seconds since the epoch; 0: there is none in force
    not_after: float
    serial: str = ""
    workloads: int = 0  # of this node that have the identity
    next_request: float = 0.0  # seconds since the epoch: when it is renewed, or asked for again
    error: str = ""  # why the last request failed


@dataclass(frozen=True, slots=True)
class AcceleratedWorkload:
    """A workload of this node that asked for the acceleration `direct`."""

    name: str
    namespace: str
    state: str  # accelerated or refused
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What a probe of `direct` found on this kernel."""

    name: str
    verdict: str  # as TCP, differs or fails
    detail: str


@dataclass(frozen=True, slots=True)
class AccelerationStatus:
    """The acceleration `direct`; nothing is known of it before somebody has asked for it."""

    workloads: tuple[AcceleratedWorkload, ...] = ()
    probes: tuple[ProbeVerdict, ...] = ()
    sockets: int = 0
    queued: int = 0  # bytes that wait at them
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Everything that `nodeagent status` shows."""

    version: str
    node: str
    pid: int
    started: float  # seconds since the epoch
    uptime_seconds: float
    ready: bool
    not_ready: tuple[str, ...]  # why not, one reason each; empty when ready
    control_plane: ControlPlaneStatus
    capture: CaptureStatus
    bypass: BypassStatus
    engine: EngineStatus
    enrolment: EnrolmentStatus
    snapshot: SnapshotStatus
    certificates: tuple[CertificateRow, ...] = ()
    warnings: tuple[str, ...] = ()
    acceleration: AccelerationStatus = field(default_factory=AccelerationStatus)
    udp: DatagramStatus = field(default_factory=lambda: DatagramStatus("off"))


# -- lists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """A workload of the mesh that the agent knows (`istio.workload.Workload`)."""

    name: str
    namespace: str
    uid: str
    addresses: tuple[str, ...]
    node: str
    service_account: str
    protocol: str  # TCP, HBONE, or MTLS (a sidecar): how the agent reaches it
    status: str  # HEALTHY or UNHEALTHY
    services: tuple[str, ...] = ()  # namespace/hostname
    waypoint: str = ""
    workload_type: str = ""
    workload_name: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    cluster_id: str = ""
    network: str = ""
    locality: str = ""
    trust_domain: str = ""
    local: bool = False  # on this node and enrolled


@dataclass(frozen=True, slots=True)
class ServicePortRow:
    """One port of a service."""

    port: int
    target_port: int
    name: str = ""
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service of the mesh that the agent knows (`istio.workload.Service`)."""

    name: str
    namespace: str
    hostname: str
    addresses: tuple[str, ...]
    ports: tuple[ServicePortRow, ...]
    endpoints: int
    healthy: int
    waypoint: str = ""


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route of one virtual host, in the order in which they are tried."""

    view: str
    name: str  # of the route configuration
    virtual_host: str
    domains: tuple[str, ...]
    match: str  # for people, such as `/api* header(end-user)=jason`
    action: str  # for people, such as `outbound|9080|v1|reviews... 80%, outbound|9080|v2|reviews... 20%`
    route: str = ""  # the route's own name
    namespace: str = ""  # of the service that the virtual host stands for
    clusters: tuple[str, ...] = ()
    timeout_ms: int | None = None  # None: none


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """A cluster in force, by the parts of its name as `istioctl proxy-config clusters` shows them."""

    view: str
    name: str
    fqdn: str
    port: int  # 0: none
    subset: str
    direction: str  # outbound, inbound or empty
    type: str  # EDS, STATIC, ORIGINAL_DST
    namespace: str = ""
    lb: str = ""
    endpoints: int = 0
    healthy: int = 0


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint of a cluster in force."""

    view: str
    cluster: str
    address: str
    port: int
    status: str  # HEALTHY, UNHEALTHY, DRAINING, ...
    weight: int = 1
    priority: int = 0
    workload: str = ""
    namespace: str = ""
    locality: str = ""
    tunnel: tuple[str, ...] = ()  # SPIFFE IDs, one of which must answer; none: it is reached in plaintext
    via: str = ""  # address:port of the waypoint or network gateway that the tunnel leads to; empty: its own


@dataclass(frozen=True, slots=True)
class ListenerRow:
    """What the agent does with connections to address:port, of a view (outbound) or a workload (inbound)."""

    view: str
    address: str  # `*`: any
    port: int  # 0: any
    direction: str  # OUTBOUND or INBOUND
    protocol: str  # HTTP, TCP or DETECT
    destination: str  # `Route: 9080`, `Cluster: outbound|...`, `PassthroughCluster`
    name: str = ""  # of the xDS listener or of the workload
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy that says who may do what at workloads of this node."""

    name: str
    namespace: str
    kind: str  # AuthorizationPolicy, PeerAuthentication, RequestAuthentication, or filter
    action: str  # ALLOW, DENY, AUDIT, CUSTOM or JWT
    scope: str  # Global, Namespace or WorkloadSelector; empty: its listener's
    workloads: tuple[str, ...]  # of this node, namespace/name
    rules: int
    dry_run: bool
    source: str  # `Authorization`, or the listener whose filters hold it
    state: str  # in force, in its listener, no workload here, or closed: what it guards lets nothing pass
    error: str = ""  # why it is closed, or why the version received last is not the one in force


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A live downstream connection."""

    id: int
    name: str  # of the local workload
    namespace: str
    direction: str  # OUTBOUND or INBOUND
    protocol: str
    state: str  # detecting, waiting, idle, active, tcp, closing, or bypassed: past the engine
    remote: str  # address:port of the client
    local: str  # address:port that the client connected to
    age_ms: int
    bytes_in: int
    bytes_out: int
    cluster: str = ""
    worker: int = 0
    principal: str = ""  # SPIFFE ID of a client that came through a tunnel


Row = (
    WorkloadRow
    | ServiceRow
    | RouteRow
    | ClusterRow
    | EndpointRow
    | ListenerRow
    | ConnectionRow
    | CertificateRow
    | PolicyRow
)


class AgentState(Protocol):
    """What an agent must be able to tell. Called on the event loop; each call but that of a route returns at once.

    Lists may be lazy: the server takes rows in batches and yields to the loop between them, so an iterable
    must bear a change of the state meanwhile (iterate over a tuple taken at the call).
    """

    def status(self) -> AgentStatus:
        """Return the status as of now."""

    def not_ready(self) -> tuple[str, ...]:
        """Return why the agent does not serve yet, one reason each; empty when it does."""

    def unsettled(self) -> tuple[str, ...]:
        """Return what was received, or asked for, and is not in force yet; empty when the agent is in step."""

    def workloads(self) -> Iterable[WorkloadRow]:
        """Return the workloads known."""

    def services(self) -> Iterable[ServiceRow]:
        """Return the services known."""

    def routes(self) -> Iterable[RouteRow]:
        """Return the routes in force."""

    def clusters(self) -> Iterable[ClusterRow]:
        """Return the clusters in force."""

    def endpoints(self) -> Iterable[EndpointRow]:
        """Return the endpoints of the clusters in force."""

    def listeners(self) -> Iterable[ListenerRow]:
        """Return the destinations and inbound ports in force."""

    def policies(self) -> Iterable[PolicyRow]:
        """Return the policies received."""

    def authorizations(self) -> Iterable[Mapping[str, Any]]:
        """Return the L4 policies received, in the JSON of ztunnel's configuration dump."""

    async def explain_route(self, asked: Asked) -> RouteExplanation:
        """Return where a request would go; it may take a moment. QueryError if its workload is not here."""

    def explain_access(self, asked: Asked) -> AccessExplanation:
        """Return whether policies let a request in; QueryError if its workload is not here."""

    def connections(self) -> Iterable[ConnectionRow]:
        """Return the live downstream connections."""

    def config_dump(self) -> Iterable[tuple[str, Iterable[Mapping[str, Any]]]]:
        """Return the sections of `/config_dump` beside the lists above: xDS resources received, as JSON.

        A section is a name (such as `xdsListeners`) and its resources in proto3 JSON mapping.
        """

    def metrics(self) -> Iterable[bytes]:
        """Return all metrics in Prometheus' text format (0.0.4), in pieces that end with a line."""

    def quit(self) -> None:
        """Begin to drain and exit, as SIGTERM does."""
