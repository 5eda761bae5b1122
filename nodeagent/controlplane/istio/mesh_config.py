"""MeshConfig: settings of the whole mesh, from the ConfigMap `istio` that istiod reads, or a file of its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio.extension_providers import (
    BrokenProvider,
    ExtensionProvider,
    read_providers,
)
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject
from nodeagent.controlplane.sources.documents import DocumentError, read_yaml
from nodeagent.controlplane.sources.mesh_file import CONFIG_MAP, MESH_KEY, MeshFile
from nodeagent.model.identity import check_trust_domain

_READ: Final = (
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "extensionProviders",
    "pathNormalization",
)


_NORMALIZATIONS: Final = ("DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES")


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """The parts of MeshConfig that have an effect."""

    trust_domain: str = ""
    """Empty: not set."""
    trust_domain_aliases: tuple[str, ...] = ()
    root_namespace: str = ""
    providers: Mapping[str, ExtensionProvider | BrokenProvider] = field(default_factory=dict)
    merge_slashes: bool = False
    """Several slashes in a row are one in paths."""
    decode_slashes: bool = False
    """`%2F` and `%5C` are slashes in paths."""


def decode_config_map(raw: RawObject, problems: Problems, scope: MeshScope) -> MeshConfig | None:
    """The MeshConfig in a ConfigMap; None for any other ConfigMap."""
    if raw.key.name != CONFIG_MAP or raw.key.namespace != scope.root_namespace:
        return None
    with Fields(raw.body, "", problems) as top:
        top.ignore_rest()
        data = top.message("data", required=True)
        if data is None:
            return None
        data.ignore_rest()
        text = data.string(MESH_KEY, required=True)
    return read_mesh_config(text, problems, f"data.{MESH_KEY}")


def read_mesh_config(text: str, problems: Problems, path: str) -> MeshConfig | None:
    """MeshConfig from its YAML; `path` is where it stands."""
    try:
        documents = read_yaml(text)
    except DocumentError as error:
        problems.error(path, f"line {error.line}: {error}")
        return None
    if len(documents) > 1:
        problems.error(path, f"there are {len(documents)} documents; one is expected")
        return None
    fields = Fields(documents[0].body if documents else {}, path, problems)
    _note_others(fields)
    normalization = _normalization(fields)
    return MeshConfig(
        trust_domain=_trust_domain(fields, "trustDomain", fields.string("trustDomain")),
        trust_domain_aliases=tuple(
            _trust_domain(fields, f"trustDomainAliases[{index}]", alias)
            for index, alias in enumerate(fields.strings("trustDomainAliases"))
        ),
        root_namespace=fields.string("rootNamespace"),
        providers=read_providers(fields),
        merge_slashes=normalization in ("MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"),
        decode_slashes=normalization == "DECODE_AND_MERGE_SLASHES",
    )


def read_mesh_file(file: MeshFile, text: str, problems: Problems) -> MeshConfig | None:
    """The MeshConfig in a file of its own."""
    try:
        documents = file.documents(text)
    except DocumentError as error:
        problems.error("", f"line {error.line}: {error}")
        return None
    data = [document.body.get("data") for document in documents]
    texts = [
        item[MESH_KEY] for item in data if isinstance(item, dict) and isinstance(item.get(MESH_KEY), str)
    ]
    return read_mesh_config(texts[0], problems, "") if texts else MeshConfig()


def _trust_domain(fields: Fields, name: str, text: str) -> str:
    if text:
        try:
            return check_trust_domain(text)
        except ValueError as error:
            fields.error(name, str(error))
    return ""


def _normalization(fields: Fields) -> str:
    """How paths are read before they are judged; NONE is not to be had."""
    nested = fields.message("pathNormalization")
    if nested is None:
        return "DEFAULT"
    with nested:
        kind = nested.choice("normalization", _NORMALIZATIONS, "DEFAULT")
    if kind == "NONE":
        message = "NONE is not supported: paths are normalised as BASE says"
        fields.problems.add(Severity.WARNING, "not-supported-yet", nested.at("normalization"), message)
    return kind


def _note_others(fields: Fields) -> None:
    """Fields of MeshConfig that have no effect here are named, once; likely misspellings warned of."""
    others = [str(name) for name in fields.data if name not in _READ]
    for name in list(others):
        close = difflib.get_close_matches(name, _READ, n=1, cutoff=0.85)
        if close:
            others.remove(name)
            fields.problems.add(
                Severity.WARNING, "unknown-field", fields.at(name), f"unknown field; did you mean {close[0]}?"
            )
    if others:
        message = f"have no effect here: {', '.join(sorted(others))}"
        fields.problems.add(Severity.INFO, "not-supported-yet", fields.path, message)
