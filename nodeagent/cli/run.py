"""`nodeagent run`: run the node agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nodeagent.config import agent as settings

app = typer.Typer(add_completion=False)


def _option(name: str, text: str, metavar: str | None = None) -> typer.models.OptionInfo:
    """An option with its environment variable."""
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", envvar=f"NODEAGENT_{name.upper().replace('-', '_')}", help=text, metavar=metavar
    )
    return option


def _identity_option(name: str, text: str, istio: str, metavar: str) -> typer.models.OptionInfo:
    """An option about TLS and certificates; `istio` is the variable by which Istio's node proxy knows it."""
    own = f"NODEAGENT_{name.upper().replace('-', '_')}"
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}",
        envvar=[own, istio] if istio else own,
        help=text,
        metavar=metavar,
        rich_help_panel="TLS and certificates",
    )
    return option


@app.command()
def run(
    node: Annotated[str, _option("node", "Name of this node.")],
    xds: Annotated[
        str,
        _option("xds", "Control plane: TLS with https://, else plain text.", "[https://]HOST:PORT|unix:PATH"),
    ] = settings.DEFAULT_XDS,
    zds: Annotated[Path, _option("zds", "Socket on which the CNI side listens.")] = settings.DEFAULT_ZDS,
    admin: Annotated[Path, _option("admin", "Unix socket of the admin API.")] = settings.DEFAULT_ADMIN,
    state: Annotated[
        Path, _option("state", "Folder of the last good configuration.")
    ] = settings.DEFAULT_STATE,
    cluster_id: Annotated[str, _option("cluster-id", "Name of this cluster.")] = "Kubernetes",
    domain: Annotated[str, _option("domain", "DNS domain of services.")] = "cluster.local",
    trust_domain: Annotated[str, _option("trust-domain", "SPIFFE trust domain.")] = "cluster.local",
    workers: Annotated[int, _option("workers", "Threads of the engine.")] = 1,
    metrics: Annotated[
        str, _option("metrics", "Serve /metrics here; empty: nowhere.", "ADDRESS:PORT")
    ] = settings.DEFAULT_METRICS,
    ready: Annotated[
        str, _option("ready", "Serve /healthz/ready here; empty: nowhere.", "ADDRESS:PORT")
    ] = settings.DEFAULT_READY,
    access_log: Annotated[str, _option("access-log", "off, text or json.")] = "off",
    access_log_file: Annotated[str, _option("access-log-file", "Default: standard output.", "PATH")] = "",
    log_level: Annotated[str, _option("log-level", "debug, info, warning or error.")] = "info",
    drain: Annotated[float, _option("drain", "Seconds that connections may take to end.", "SECONDS")] = 5.0,
    xds_mode: Annotated[
        str,
        _option("xds-mode", "on-demand (only what is used), wildcard (all that a sidecar gets), or auto."),
    ] = "auto",
    on_demand_ttl: Annotated[
        float, _option("on-demand-ttl", "Seconds that unused configuration is kept.", "SECONDS")
    ] = 600.0,
    on_demand_limit: Annotated[
        int, _option("on-demand-limit", "Destinations and hosts held per group of workloads.")
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
    token: Annotated[
        str,
        _identity_option("token", "Authenticate by this token; over TLS only.", "AUTH_TOKEN", "PATH|TOKEN"),
    ] = settings.DEFAULT_TOKEN,
    cert_lifetime: Annotated[
        float, _identity_option("cert-lifetime", "Lifetime to ask for.", "", "SECONDS")
    ] = 86400.0,
    static: Annotated[
        Path | None,
        _option(
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
        admin=admin,
        state=state,
        cluster_id=cluster_id,
        domain=domain,
        trust_domain=trust_domain,
        workers=workers,
        metrics=metrics,
        ready=ready,
        access_log=access_log,
        access_log_file=access_log_file,
        log_level=log_level,
        drain=drain,
        xds_mode=xds_mode,
        on_demand_ttl=on_demand_ttl,
        on_demand_limit=on_demand_limit,
        ca=ca,
        ca_root=ca_root,
        ca_hostname=ca_hostname,
        xds_root=xds_root,
        xds_hostname=xds_hostname,
        token=token,
        cert_lifetime=cert_lifetime,
        static=static,
    )
    from nodeagent.app import agent

    agent.main(config)
