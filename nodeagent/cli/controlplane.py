"""`nodeagent controlplane`: run the control plane."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated

from nodeagent.cli.options import Command, Option
from nodeagent.config import ca as ca_settings
from nodeagent.config import controlplane as settings


def _ca_option(name: str, text: str, metavar: str | None = None) -> Option:
    """An option of the CA."""
    return Option(name, text, metavar, panel="TLS and certificates")


def run(
    config: Annotated[
        list[Path],
        Option("config", "File or folder of Kubernetes and Istio YAML. Repeatable."),
    ],
    listen: Annotated[
        list[str] | None,
        Option("listen", "Serve xDS here. Repeatable.", "HOST:PORT"),
    ] = None,
    unix: Annotated[Path | None, Option("unix", "Serve xDS on a unix socket too.")] = None,
    admin: Annotated[Path, Option("admin", "Unix socket of the admin API.")] = settings.DEFAULT_ADMIN,
    cluster_id: Annotated[str, Option("cluster-id", "Name of this cluster.")] = "Kubernetes",
    domain: Annotated[str, Option("domain", "DNS domain of services.")] = "cluster.local",
    trust_domain: Annotated[
        str,
        Option(
            "trust-domain",
            f"SPIFFE trust domain. Default: --mesh-config's, else {settings.DEFAULT_TRUST_DOMAIN}.",
        ),
    ] = "",
    root_namespace: Annotated[
        str,
        Option(
            "root-namespace",
            "Namespace whose resources apply mesh-wide. Default: --mesh-config's, else "
            f"{settings.DEFAULT_ROOT_NAMESPACE}.",
        ),
    ] = "",
    mesh_config: Annotated[
        Path | None,
        Option("mesh-config", "File with Istio's MeshConfig. The ConfigMap istio in --config does as well."),
    ] = None,
    key_sets: Annotated[
        int, Option("key-sets", "Key sets of RequestAuthentications that are fetched.")
    ] = 500,
    token_keys_root: Annotated[
        Path | None,
        Option(
            "token-keys-root", "Trust the servers of RequestAuthentications' jwksUri by these roots, too."
        ),
    ] = None,
    log_level: Annotated[
        str, Option("log-level", "debug, info, warning or error.", choices=settings.LOG_LEVELS)
    ] = "info",
    listen_tls: Annotated[
        list[str] | None,
        _ca_option(
            "listen-tls", "Serve xDS and the CA over TLS here (usually :15012). Repeatable.", "HOST:PORT"
        ),
    ] = None,
    listen_mtls: Annotated[
        list[str] | None,
        _ca_option(
            "listen-mtls",
            "Serve xDS to workloads with a certificate of this CA here (usually :15013). Repeatable.",
            "HOST:PORT",
        ),
    ] = None,
    ca_dir: Annotated[
        Path, _ca_option("ca-dir", "Folder of the self-made root; made at the first start.")
    ] = ca_settings.DEFAULT_FOLDER,
    cacerts: Annotated[
        Path | None,
        _ca_option(
            "cacerts",
            "Use the CA in this folder instead: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem.",
        ),
    ] = None,
    root_cert_out: Annotated[
        Path | None, _ca_option("root-cert-out", "Publish the trust bundle in this file, for agents.")
    ] = None,
    tls_name: Annotated[
        list[str] | None,
        _ca_option(
            "tls-name",
            f"Name or address of the control plane. Repeatable. Default: {' '.join(ca_settings.DEFAULT_SERVER_NAMES)}",
        ),
    ] = None,
    cert_lifetime: Annotated[
        float, _ca_option("cert-lifetime", "Lifetime of certificates whose request names none.", "SECONDS")
    ] = ca_settings.DEFAULT_LIFETIME,
    max_cert_lifetime: Annotated[
        float, _ca_option("max-cert-lifetime", "The longest lifetime that may be asked for.", "SECONDS")
    ] = ca_settings.DEFAULT_MAX_LIFETIME,
    trust_domain_alias: Annotated[
        list[str] | None,
        _ca_option("trust-domain-alias", "Issue identities of this trust domain too. Repeatable."),
    ] = None,
    jwks: Annotated[
        str, _ca_option("jwks", "Accept service account tokens signed by these keys.", "FILE|https://URL")
    ] = "",
    jwks_root: Annotated[
        Path | None,
        _ca_option("jwks-root", "Know the server of --jwks by these roots. Default: the machine's."),
    ] = None,
    jwks_token: Annotated[
        Path | None, _ca_option("jwks-token", "File with a bearer token for the server of --jwks.")
    ] = None,
    jwt_issuer: Annotated[str, _ca_option("jwt-issuer", "The issuer of service account tokens.")] = "",
    jwt_audience: Annotated[
        str, _ca_option("jwt-audience", "The audience of service account tokens.")
    ] = ca_settings.DEFAULT_AUDIENCE,
    node_account: Annotated[
        list[str] | None,
        _ca_option(
            "node-account",
            "Service account of node agents, which may ask for identities of their node's workloads. Repeatable. "
            f"Default: {' '.join(ca_settings.DEFAULT_NODE_ACCOUNTS)}",
            "NAMESPACE/NAME",
        ),
    ] = None,
    node_tokens: Annotated[
        Path | None,
        _ca_option("node-tokens", "Accept the tokens in this folder: one file per node, named as it is."),
    ] = None,
) -> None:
    """Serve xDS from configuration files: to node agents, Envoy and gRPC clients.

    Files are watched: a change is in force well under a second. Wrong configuration is reported (log, admin API
    /config_errors) and never takes the rest down.

    With --listen-tls it is also a certificate authority that speaks Istio's protocol. Its root is made at the first
    start, or given by --cacerts; `nodeagent ca rotate` replaces it.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what a change means is logged by us
    from nodeagent.app import controlplane

    authority = None
    if listen_tls:
        authority = ca_settings.CaConfig(
            folder=ca_dir,
            plugged_in=cacerts,
            root_out=root_cert_out,
            server_names=tuple(tls_name or ca_settings.DEFAULT_SERVER_NAMES),
            lifetime=cert_lifetime,
            max_lifetime=max_cert_lifetime,
            trust_domain_aliases=tuple(trust_domain_alias or ()),
            node_tokens=node_tokens,
            jwks=jwks,
            jwks_root=jwks_root,
            jwks_token=jwks_token,
            jwt_issuer=jwt_issuer,
            jwt_audience=jwt_audience,
            node_accounts=tuple(node_account or ca_settings.DEFAULT_NODE_ACCOUNTS),
        )
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
                mesh_config=mesh_config,
                key_sets=key_sets,
                token_keys_root=token_keys_root,
                log_level=log_level,
                listen_tls=tuple(listen_tls or ()),
                listen_mtls=tuple(listen_mtls or ()),
                ca=authority,
            )
        )
    )


app = Command(run)
