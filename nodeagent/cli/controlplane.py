"""`nodeagent controlplane`: run the control plane."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer

from nodeagent.config import controlplane as settings

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: Annotated[
        list[Path],
        typer.Option(
            "--config",
            envvar="NODEAGENT_CONFIG",
            help="File or folder of Kubernetes and Istio YAML. Repeatable.",
        ),
    ],
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", envvar="NODEAGENT_LISTEN", metavar="HOST:PORT", help="Serve xDS here. Repeatable."
        ),
    ] = None,
    unix: Annotated[
        Path | None, typer.Option(envvar="NODEAGENT_UNIX", help="Serve xDS on a unix socket too.")
    ] = None,
    admin: Annotated[
        Path, typer.Option(envvar="NODEAGENT_ADMIN", help="Unix socket of the admin API.")
    ] = settings.DEFAULT_ADMIN,
    cluster_id: Annotated[
        str, typer.Option(envvar="NODEAGENT_CLUSTER_ID", help="Name of this cluster.")
    ] = "Kubernetes",
    domain: Annotated[
        str, typer.Option(envvar="NODEAGENT_DOMAIN", help="DNS domain of services.")
    ] = "cluster.local",
    trust_domain: Annotated[
        str, typer.Option(envvar="NODEAGENT_TRUST_DOMAIN", help="SPIFFE trust domain.")
    ] = "cluster.local",
    root_namespace: Annotated[
        str,
        typer.Option(envvar="NODEAGENT_ROOT_NAMESPACE", help="Namespace whose resources apply mesh-wide."),
    ] = "istio-system",
    log_level: Annotated[
        str, typer.Option(envvar="NODEAGENT_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Serve xDS from configuration files: to node agents, Envoy and gRPC clients.

    Files are watched: a change is in force well under a second. Wrong configuration is reported (log, admin API
    /config_errors) and never takes the rest down.
    """
    if log_level not in settings.LOG_LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(settings.LOG_LEVELS)}", param_hint="--log-level")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from nodeagent.app import controlplane

    asyncio.run(
        controlplane.run(
            settings.ControlPlaneConfig(
                config=tuple(config),
                listen=tuple(listen or (settings.DEFAULT_LISTEN,)),
                unix=unix,
                admin=admin,
                cluster_id=cluster_id,
                domain=domain,
                trust_domain=trust_domain,
                root_namespace=root_namespace,
                log_level=log_level,
            )
        )
    )
