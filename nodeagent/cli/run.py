"""`nodeagent run`: run the node agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nodeagent.cli.options import Command, Option
from nodeagent.config import agent as settings


def _identity_option(name: str, text: str, istio: str, metavar: str) -> Option:
    """An option about TLS and certificates; `istio` is the variable by which Istio's node proxy knows it."""
    return Option(name, text, metavar, istio, "TLS and certificates")


def _names(text: str) -> tuple[str, ...]:
    """The members of a list with commas."""
    return tuple(filter(None, text.replace(" ", "").split(",")))


def run(
    node: Annotated[str, Option("node", "Name of this node.")],
    xds: Annotated[
        str,
        Option("xds", "Control plane: TLS with https://, else plain text.", "[https://]HOST:PORT|unix:PATH"),
    ] = settings.DEFAULT_XDS,
    zds: Annotated[
        Path, Option("zds", "Socket on which the CNI side listens, or `none`.")
    ] = settings.DEFAULT_ZDS,
    workloads: Annotated[
        Path | None,
        Option("workloads", "Workloads that are cgroups, such as services of a virtual machine.", "FILE"),
    ] = None,
    admin: Annotated[Path, Option("admin", "Unix socket of the admin API.")] = settings.DEFAULT_ADMIN,
    state: Annotated[
        Path, Option("state", "Folder of the last good configuration.")
    ] = settings.DEFAULT_STATE,
    cluster_id: Annotated[str, Option("cluster-id", "Name of this cluster.")] = "Kubernetes",
    network: Annotated[
        str, Option("network", "Network of this node; default: that of its workloads.", variable="NETWORK")
    ] = "",
    domain: Annotated[str, Option("domain", "DNS domain of services.")] = "cluster.local",
    trust_domain: Annotated[str, Option("trust-domain", "SPIFFE trust domain.")] = "cluster.local",
    trust_domain_aliases: Annotated[
        str, Option("trust-domain-aliases", "Further trust domains whose members may connect.", "LIST")
    ] = "",
    workers: Annotated[int, Option("workers", "Threads of the engine.")] = 1,
    metrics: Annotated[
        str, Option("metrics", "Serve /metrics here; empty: nowhere.", "ADDRESS:PORT")
    ] = settings.DEFAULT_METRICS,
    ready: Annotated[
        str, Option("ready", "Serve /healthz/ready here; empty: nowhere.", "ADDRESS:PORT")
    ] = settings.DEFAULT_READY,
    access_log: Annotated[str, Option("access-log", "off, text or json.")] = "off",
    access_log_format: Annotated[
        str,
        Option("access-log-format", "With Envoy's operators (%AUDITED_BY% too); json: an object of them."),
    ] = "",
    access_log_file: Annotated[str, Option("access-log-file", "Default: standard output.", "PATH")] = "",
    log_level: Annotated[str, Option("log-level", "debug, info, warning or error.")] = "info",
    drain: Annotated[float, Option("drain", "Seconds that connections may take to end.", "SECONDS")] = 5.0,
    capture: Annotated[
        str, Option("capture", "How workloads are captured: ebpf, nft, or auto (ebpf where the kernel can).")
    ] = "auto",
    bpf_pins: Annotated[
        Path, Option("bpf-pins", "Folder on a bpf filesystem, for capture by eBPF.")
    ] = settings.DEFAULT_PINS,
    dns_capture: Annotated[
        str, Option("dns-capture", "Whether DNS of workloads is captured: on or off.")
    ] = "on",
    direct: Annotated[
        str,
        Option(
            "direct",
            "Accelerate TCP between pods here that ask for it: labelled (nodeagent.io/acceleration: direct), or off.",
        ),
    ] = "labelled",
    direct_workloads: Annotated[
        str, Option("direct-workloads", "Accelerate these without a label.", "NAMESPACE/ACCOUNT,...")
    ] = "",
    direct_limit: Annotated[
        int, Option("direct-limit", "What may wait at an accelerated receiver.", "BYTES")
    ] = 1 << 20,
    udp: Annotated[
        str,
        Option(
            "udp",
            "on: with capture by eBPF, services' addresses mean their endpoints for UDP, too, and policies are asked "
            "at connect() and for each datagram; off.",
        ),
    ] = "on",
    bypass: Annotated[
        str,
        Option(
            "bypass",
            "on: with capture by eBPF, plain TCP between workloads of this node goes straight there, checked in the "
            "kernel; off.",
        ),
    ] = "on",
    bypass_services: Annotated[
        int, Option("bypass-services", "Room of the kernel's tables for that: addresses of services.")
    ] = 65_536,
    bypass_endpoints: Annotated[int, Option("bypass-endpoints", "Endpoints of services.")] = 131_072,
    bypass_verdicts: Annotated[int, Option("bypass-verdicts", "Verdicts on a client and a port.")] = 65_536,
    bypass_connections: Annotated[int, Option("bypass-connections", "Live connections.")] = 65_536,
    token_cache: Annotated[int, Option("token-cache", "Verified tokens that a thread remembers.")] = 1024,
    token_cache_bytes: Annotated[int, Option("token-cache-bytes", "The same, of their text.")] = 4 << 20,
    callout_calls: Annotated[
        int, Option("callout-calls", "Questions of a thread to authorization services at once.")
    ] = 1024,
    callout_connections: Annotated[
        int, Option("callout-connections", "Connections of a thread to authorization services.")
    ] = 256,
    key_sets: Annotated[
        int, Option("key-sets", "Key sets of token issuers that are fetched; of others tokens are refused.")
    ] = 500,
    xds_mode: Annotated[
        str,
        Option("xds-mode", "on-demand (only what is used), wildcard (all that a sidecar gets), or auto."),
    ] = "auto",
    on_demand_ttl: Annotated[
        float, Option("on-demand-ttl", "Seconds that unused configuration is kept.", "SECONDS")
    ] = 600.0,
    on_demand_limit: Annotated[
        int, Option("on-demand-limit", "Destinations and hosts held per group of workloads.")
    ] = 4096,
    ca: Annotated[
        str, _identity_option("ca", "Obtain certificates for the workloads here.", "CA_ADDRESS", "HOST:PORT")
    ] = "",
    ca_root: Annotated[
        str,
        _identity_option(
            "ca-root", "Know CA and control plane by these roots.", "CA_ROOT_CA", "PATH|PEM|SYSTEM"
        ),
    ] = settings.DEFAULT_ROOT,
    ca_hostname: Annotated[
        str, _identity_option("ca-hostname", "Name in the CA's certificate.", "ALT_CA_HOSTNAME", "NAME")
    ] = "",
    xds_root: Annotated[
        str,
        _identity_option(
            "xds-root", "Roots of the control plane, if others.", "XDS_ROOT_CA", "PATH|PEM|SYSTEM"
        ),
    ] = "",
    xds_hostname: Annotated[
        str,
        _identity_option(
            "xds-hostname", "Name in the control plane's certificate.", "ALT_XDS_HOSTNAME", "NAME"
        ),
    ] = "",
    xds_mtls: Annotated[
        str,
        _identity_option(
            "xds-mtls",
            "Where the control plane knows workloads by their certificates (its --listen-mtls).",
            "",
            "HOST:PORT",
        ),
    ] = "",
    token: Annotated[
        str,
        _identity_option("token", "Authenticate by this token; over TLS only.", "AUTH_TOKEN", "PATH|TOKEN"),
    ] = settings.DEFAULT_TOKEN,
    cert_lifetime: Annotated[
        float, _identity_option("cert-lifetime", "Lifetime to ask for.", "", "SECONDS")
    ] = 86400.0,
    static: Annotated[
        Path | None,
        Option(
            "static",
            "Be a plain proxy with the listeners and clusters of this file (static_resources of an Envoy "
            "bootstrap), with no control plane and no capture.",
            "FILE",
        ),
    ] = None,
) -> None:
    """Capture, route and observe the traffic of this node's workloads.

    Workloads come from the CNI side (ZDS), configuration from the control plane (xDS). The last good
    configuration is kept on disk and used until the control plane answers. SIGTERM drains; capture stays in
    place until workloads are let go, so that nothing gets past while no agent runs.
    """
    config = settings.AgentConfig(
        node=node,
        xds=xds,
        zds=zds,
        workloads=workloads,
        admin=admin,
        state=state,
        cluster_id=cluster_id,
        network=network,
        domain=domain,
        trust_domain=trust_domain,
        trust_domain_aliases=_names(trust_domain_aliases),
        workers=workers,
        metrics=metrics,
        ready=ready,
        access_log=access_log,
        access_log_format=access_log_format,
        access_log_file=access_log_file,
        log_level=log_level,
        drain=drain,
        capture=capture,
        dns_capture=dns_capture,
        bpf_pins=bpf_pins,
        direct=direct,
        direct_workloads=_names(direct_workloads),
        direct_limit=direct_limit,
        udp=udp,
        bypass=bypass,
        bypass_services=bypass_services,
        bypass_endpoints=bypass_endpoints,
        bypass_verdicts=bypass_verdicts,
        bypass_connections=bypass_connections,
        token_cache=token_cache,
        token_cache_bytes=token_cache_bytes,
        callout_calls=callout_calls,
        callout_connections=callout_connections,
        key_sets=key_sets,
        xds_mode=xds_mode,
        on_demand_ttl=on_demand_ttl,
        on_demand_limit=on_demand_limit,
        ca=ca,
        ca_root=ca_root,
        ca_hostname=ca_hostname,
        xds_root=xds_root,
        xds_hostname=xds_hostname,
        xds_mtls=xds_mtls,
        token=token,
        cert_lifetime=cert_lifetime,
        static=static,
    )
    from nodeagent.app import agent

    agent.main(config)


app = Command(run)
