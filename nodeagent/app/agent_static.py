"""Explicit listeners from a file: the agent as a plain proxy, without a control plane and without capture.

The file is what Envoy's bootstrap calls `static_resources`: listeners and clusters, with routes and endpoints
inline. They go through the same compiler and the same engine code as what comes by xDS.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from nodeagent.app.agent_configuration import Configuration
from nodeagent.app.agent_ports import Engine
from nodeagent.compiler.cluster import compile_cluster
from nodeagent.compiler.listener import compile_listener
from nodeagent.compiler.pieces import Scope
from nodeagent.compiler.view import Pieces, Wants, assemble
from nodeagent.config.yaml_fields import read_text, yaml_error
from nodeagent.errors import ResourceError
from nodeagent.snapshot.values import View, VirtualHost

logger = logging.getLogger(__name__)

NAME: Final = "static"
"""Name of the view, and uid of the workload whose listeners they are."""


@dataclass(frozen=True, slots=True)
class StaticResources:
    """What a file means."""

    view: View
    ports: tuple[int, ...]
    """Ports to listen on."""
    warnings: tuple[str, ...]


def serve(
    path: Path, engine: Engine, configuration: Configuration, check: Callable[[VirtualHost], None]
) -> None:
    """Put a file in force; ConfigError if it cannot be used, NetnsError if a port cannot be had."""
    resources = read(path, check)
    for warning in resources.warnings:
        logger.warning("%s: %s", path, warning)
    configuration.put_view(resources.view)
    configuration.publish()
    engine.add_proxy(NAME, NAME, resources.ports)
    logger.info("explicit proxy on ports %s", ", ".join(map(str, resources.ports)))


def read(path: Path, check: Callable[[VirtualHost], None] = lambda _: None) -> StaticResources:
    """Read and compile a file."""
    scope = Scope(NAME, check=check)
    pieces = Pieces(known=lambda _kind, _name: True)
    warnings: list[str] = []
    for place, message in _messages(path, "listeners", _listener_type()):
        listener = _compile(path, place, message, lambda it: compile_listener(it, scope))
        pieces.listeners[listener.name or place] = listener
        warnings += (f"{place}: {text}" for text in listener.warnings)
    for place, message in _messages(path, "clusters", _cluster_type()):
        cluster = _compile(path, place, message, lambda it: compile_cluster(it, scope))
        pieces.clusters[message.name] = cluster
        warnings += (f"{place}: {text}" for text in cluster.warnings)
    if not pieces.listeners:
        raise ResourceError("there are no listeners", source=str(path), path="static_resources.listeners")
    assembly = assemble(scope, pieces, Wants(everything=True), View(NAME))
    view = replace(assembly.view, refuse_unknown=True)
    return StaticResources(view, tuple(sorted({port for _, port in view.destinations})), tuple(warnings))


def _listener_type() -> Any:
    # ParseDict finds the types inside google.protobuf.Any only when their modules are loaded.
    from envoy.config.listener.v3 import listener_pb2
    from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
    from envoy.extensions.filters.network.http_connection_manager.v3 import (
        http_connection_manager_pb2,  # noqa: F401
    )
    from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401

    return listener_pb2.Listener


def _cluster_type() -> Any:
    from envoy.config.cluster.v3 import cluster_pb2
    from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401

    return cluster_pb2.Cluster


def _messages(path: Path, kind: str, message_type: Any) -> Iterator[tuple[str, Any]]:
    """(place, message) of each resource of a kind."""
    from google.protobuf import json_format

    document = _load(path)
    resources = document.get("static_resources", {}) if isinstance(document, dict) else {}
    items = resources.get(kind, []) if isinstance(resources, dict) else []
    if not isinstance(items, list):
        raise ResourceError("not a list", source=str(path), path=f"static_resources.{kind}")
    for index, item in enumerate(items):
        place = f"static_resources.{kind}[{index}]"
        try:
            yield place, json_format.ParseDict(item, message_type())
        except json_format.ParseError as error:
            raise ResourceError(str(error), source=str(path), path=place) from None


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from None


def _compile(path: Path, place: str, message: Any, compile_it: Callable[[Any], Any]) -> Any:
    try:
        return compile_it(message)
    except ValueError as error:
        raise ResourceError(str(error), source=str(path), resource=message.name, path=place) from None
