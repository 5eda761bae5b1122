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


@app.command()
def run(
    node: Annotated[str, _option("node", "Name of this node.")],
    xds: Annotated[
        str, _option("xds", "Control plane, plain text gRPC.", "HOST:PORT|unix:PATH")
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
        static=static,
    )
    from nodeagent.app import agent

    agent.main(config)
