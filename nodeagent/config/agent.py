"""Settings of the agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError

DEFAULT_XDS: Final = "istiod.istio-system.svc:15010"
DEFAULT_ZDS: Final = Path("/var/run/ztunnel/ztunnel.sock")
NO_ZDS: Final = Path("none")
DEFAULT_ADMIN: Final = Path("/run/nodeagent/admin.sock")
DEFAULT_STATE: Final = Path("/var/lib/nodeagent")
DEFAULT_METRICS: Final = "0.0.0.0:15020"
DEFAULT_READY: Final = "0.0.0.0:15021"
DEFAULT_ROOT: Final = "/var/run/secrets/istio/root-cert.pem"
DEFAULT_TOKEN: Final = "/var/run/secrets/tokens/istio-token"  # noqa: S105  # where Kubernetes projects it
MAX_WORKERS: Final = 64
"""The engine's NA_MAX_WORKERS."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
XDS_MODES: Final = ("auto", "on-demand", "wildcard")
ACCESS_LOGS: Final = ("off", "text", "json")
CAPTURE_MODES: Final = ("auto", "ebpf", "nft")
DNS_CAPTURES: Final = ("on", "off")
DIRECT_MODES: Final = ("labelled", "off")
MIN_BYPASS_LIMIT, MAX_BYPASS_LIMIT = 16, 1 << 22
MIN_DIRECT_LIMIT, MAX_DIRECT_LIMIT = 1 << 14, 1 << 26
MAX_ENTRIES: Final = 1 << 20
"""Of tables whose size is a setting: the engine takes no more."""
SWITCH: Final = ("on", "off")
DEFAULT_PINS: Final = Path("/sys/fs/bpf/nodeagent")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What `nodeagent run` was told on its command line or by NODEAGENT_* variables. Times are seconds."""

    node: str
    xds: str = DEFAULT_XDS
    """`https://host:port` over TLS; `host:port` or `unix:PATH` in plain text."""
    zds: Path = DEFAULT_ZDS
    """Socket of the CNI side; `none`: there is no such side."""
    workloads: Path | None = None
    """File of workloads that are cgroups (config/workloads.py)."""
    admin: Path = DEFAULT_ADMIN
    state: Path = DEFAULT_STATE
    cluster_id: str = "Kubernetes"
    network: str = ""
    """Of this node (Istio's topology.istio.io/network): what is in others is reached through their gateways. Empty:
    that of the node's workloads."""
    domain: str = "cluster.local"
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    """Further trust domains whose members may connect besides those of MeshConfig, of which the control plane
    tells."""
    workers: int = 1
    metrics: str = DEFAULT_METRICS
    """`ADDRESS:PORT`; empty: no metrics port."""
    ready: str = DEFAULT_READY
    """`ADDRESS:PORT`; empty: no readiness port."""
    access_log: str = "off"
    access_log_format: str = ""
    """Envoy's operators instead of Istio's default (MeshConfig.accessLogFormat); for json an object of texts."""
    access_log_file: str = ""
    """Empty: standard output."""
    log_level: str = "info"
    drain: float = 5.0
    """How long connections may take to end, at shutdown and when a workload goes."""
    capture: str = "auto"
    """ebpf, nft, or auto: ebpf where the kernel can."""
    dns_capture: str = "on"
    """on: the agent answers what workloads ask name servers about the mesh, and passes the rest on; off."""
    bpf_pins: Path = DEFAULT_PINS
    """Folder on a bpf filesystem: what capture by eBPF pins there outlives the agent."""
    direct: str = "labelled"
    """Who is accelerated by `direct`: labelled (and those in `direct_workloads`), or off: nobody."""
    direct_workloads: tuple[str, ...] = ()
    """Workloads that are, without a label: NAMESPACE/SERVICE-ACCOUNT."""
    direct_limit: int = 1 << 20
    """Bytes that may wait at an accelerated receiver, beside TCP's own queue."""
    udp: str = "on"
    """on: services and policy for UDP of captured workloads (capture by eBPF only)."""
    bypass: str = "on"
    """on: with capture by eBPF, plain TCP between workloads of the node passes the engine where policy can be told
    beforehand."""
    bypass_services: int = 65_536
    """How many addresses of services, in each view, the kernel's tables for that have room for; what finds none goes to
    the engine."""
    bypass_endpoints: int = 131_072
    """The same, of endpoints of services."""
    bypass_verdicts: int = 65_536
    """The same, of verdicts on a client and a port."""
    bypass_connections: int = 65_536
    """The same, of live connections."""
    token_cache: int = 1024
    """Verified tokens (RequestAuthentication) that each of the engine's threads remembers."""
    token_cache_bytes: int = 4 << 20
    """The same, of their text."""
    callout_calls: int = 1024
    """Questions to authorization services (action CUSTOM) in progress, of each thread; above it is as without an
    answer."""
    callout_connections: int = 256
    """The same, of connections to authorization services."""
    key_sets: int = 500
    """Key sets (remote_jwks of inbound listeners) that are fetched; tokens of those above are refused."""
    xds_mode: str = "auto"
    """on-demand: only what is used; wildcard: everything a sidecar gets; auto: by what the server does."""
    on_demand_ttl: float = 600.0
    """How long configuration stays without being used."""
    on_demand_negative_ttl: float = 60.0
    """How long it is remembered that a host is not known."""
    on_demand_limit: int = 4096
    """Destinations, and hosts, that a view holds; over it the least recently used goes."""
    ca: str = ""
    """`host:port` of the CA, over TLS; empty: no certificates."""
    ca_root: str = DEFAULT_ROOT
    """Roots to know the control plane and the CA by: a path, PEM, or SYSTEM."""
    ca_hostname: str = ""
    """Name in the CA's certificate, if not that of its address (Istio's ALT_CA_HOSTNAME)."""
    xds_root: str = ""
    """As `ca_root`, for the control plane; empty: `ca_root`."""
    xds_hostname: str = ""
    xds_mtls: str = ""
    """`host:port` where the control plane knows workloads by their certificates. Streams in the name of a workload go
    there once it has one; empty: all of them by the node's token."""
    token: str = DEFAULT_TOKEN
    """What the agent is known by: a path (it begins with / or .) or the token. Sent over TLS only."""
    cert_lifetime: float = 86400.0
    """Lifetime that certificates are asked for with (Istio's SECRET_TTL)."""
    static: Path | None = None
    """Explicit listeners from this file, instead of a control plane and captured workloads."""

    @property
    def has_cni(self) -> bool:
        """Whether a CNI side tells of workloads."""
        return self.zds != NO_ZDS

    def __post_init__(self) -> None:
        if not self.has_cni and self.workloads is None and self.static is None:
            raise ConfigError("--zds none: without --workloads there would be no workloads")
        if not self.node:
            raise ConfigError("--node: the name of this node is needed (in Kubernetes: spec.nodeName)")
        if self.xds_mtls and not self.ca:
            raise ConfigError("--xds-mtls: needs --ca, from where workloads have their certificates")
        _one_of("--log-level", self.log_level, LOG_LEVELS)
        _one_of("--capture", self.capture, CAPTURE_MODES)
        _one_of("--dns-capture", self.dns_capture, DNS_CAPTURES)
        _one_of("--direct", self.direct, DIRECT_MODES)
        _at_least("--direct-limit", self.direct_limit, MIN_DIRECT_LIMIT)
        _at_most("--direct-limit", self.direct_limit, MAX_DIRECT_LIMIT)
        for name in self.direct_workloads:
            if not all(name.partition("/")) or name.count("/") > 1:
                raise ConfigError(f"--direct-workloads {name}: must be NAMESPACE/SERVICE-ACCOUNT")
        _one_of("--bypass", self.bypass, SWITCH)
        _one_of("--udp", self.udp, SWITCH)
        for kind in ("services", "endpoints", "verdicts", "connections"):
            entries = getattr(self, f"bypass_{kind}")
            _at_least(f"--bypass-{kind}", entries, MIN_BYPASS_LIMIT)
            _at_most(f"--bypass-{kind}", entries, MAX_BYPASS_LIMIT)
        for option, value, least, most in (
            ("--token-cache", self.token_cache, 1, MAX_ENTRIES),
            ("--token-cache-bytes", self.token_cache_bytes, 1 << 16, 1 << 30),
            ("--callout-calls", self.callout_calls, 1, MAX_ENTRIES),
            ("--callout-connections", self.callout_connections, 1, 1 << 16),
            ("--key-sets", self.key_sets, 1, MAX_ENTRIES),
        ):
            _at_least(option, value, least)
            _at_most(option, value, most)
        _one_of("--xds-mode", self.xds_mode, XDS_MODES)
        _one_of("--access-log", self.access_log, ACCESS_LOGS)
        _at_least("--workers", self.workers, 1)
        _at_most("--workers", self.workers, MAX_WORKERS)
        _at_least("--cert-lifetime", self.cert_lifetime, 1)
        _at_least("--drain", self.drain, 0)
        _at_least("--on-demand-ttl", self.on_demand_ttl, 1)
        _at_least("--on-demand-limit", self.on_demand_limit, 16)

    @property
    def captures_dns(self) -> bool:
        """Whether DNS of workloads is captured."""
        return self.dns_capture == "on" and self.static is None


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} {value}: not one of {', '.join(choices)}")


def _at_least(option: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{option} {value:g}: must be at least {least:g}")


def _at_most(option: str, value: float, most: float) -> None:
    if value > most:
        raise ConfigError(f"{option} {value:g}: must be at most {most:g}")
