"""Policies as people are shown them: L4 resources, and what the filters of inbound listeners stand for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nodeagent.admin.state import PolicyRow
from nodeagent.compiler.authorization import Authorization, PolicyScope
from nodeagent.compiler.pieces import InboundPiece
from nodeagent.compiler.report import set_fields
from nodeagent.snapshot.address import format_address, widen_address
from nodeagent.snapshot.policies import Rules, Tokens

IN_FORCE: Final = "in force"
UNUSED: Final = "no workload here"
BY_LISTENER: Final = "in its listener"
"""The filters of the workloads' listeners stand for it."""
CLOSED: Final = "closed"
"""It cannot be put in force: what it guards lets nothing pass."""
_NAME: Final = re.compile(r"(?P<provider>istio-ext-authz-.*-)?ns\[(?P<ns>[^]]*)\]-policy\[(?P<name>[^]]*)\]")
_ACTIONS: Final = {"LOG": "AUDIT"}
_SCOPES: Final = {
    PolicyScope.GLOBAL: "Global",
    PolicyScope.NAMESPACE: "Namespace",
    PolicyScope.WORKLOAD_SELECTOR: "WorkloadSelector",
}


def authorization_row(
    entry: Authorization, asked: Collection[str], meant: Collection[str], rejected: str
) -> PolicyRow:
    """An L4 policy, asked at some of the workloads that it is meant for; `rejected` is why the version received
    last is not the one in force."""
    state = CLOSED if entry.error else IN_FORCE if asked else BY_LISTENER if meant else UNUSED
    found = tuple(sorted(asked or meant))
    return PolicyRow(
        name=entry.name.rpartition("/")[2],
        namespace=entry.namespace,
        kind="PeerAuthentication" if entry.is_converted else "AuthorizationPolicy",
        action=entry.action.name,
        scope=_SCOPES[entry.scope],
        workloads=found,
        rules=len(entry.policies),
        dry_run=entry.dry_run,
        source="Authorization",
        state=state,
        error=entry.error or rejected,
    )


@dataclass(slots=True)
class _Filtered:
    """What the filters of a listener say of one policy."""

    kind: str
    action: str
    dry_run: bool
    rules: set[str] = field(default_factory=set)


def filter_rows(view: str, piece: InboundPiece, workloads: Iterable[str]) -> Iterator[PolicyRow]:
    """The policies that an inbound listener holds. Its filters are the same for all ports, or nearly."""
    names = tuple(sorted(workloads))
    closed = sorted({why for port in _ports(piece) for why in port.guarding.closed})
    for (namespace, name), found in sorted(_policies(piece).items()):
        yield PolicyRow(
            name=name,
            namespace=namespace,
            kind=found.kind,
            action=found.action,
            scope="",
            workloads=names,
            rules=len(found.rules),
            dry_run=found.dry_run,
            source=f"virtualInbound of {view}",
            state=IN_FORCE if names else UNUSED,
        )
    for reason in closed:
        yield PolicyRow(
            "", "", "filter", "", "", names, 0, False, f"virtualInbound of {view}", CLOSED, reason
        )


def _ports(piece: InboundPiece) -> Iterator[Any]:
    yield from piece.ports.values()
    yield piece.fallback


def _policies(piece: InboundPiece) -> Mapping[tuple[str, str], _Filtered]:
    found: dict[tuple[str, str], _Filtered] = {}
    for port in _ports(piece):
        for stage in (*port.guarding.connection, *port.guarding.request):
            if isinstance(stage, Rules):
                _add_rules(found, stage)
            elif isinstance(stage, Tokens):
                for provider in stage.providers:
                    found.setdefault(
                        ("", provider.name),
                        _Filtered("RequestAuthentication", "JWT", False, {provider.issuer}),
                    )
    return found


def _add_rules(found: dict[tuple[str, str], _Filtered], stage: Rules) -> None:
    for policy in stage.policies:
        match = _NAME.match(policy.name)
        key = (match["ns"], match["name"]) if match else ("", policy.name)
        custom = bool(match and match["provider"])
        action = "CUSTOM" if custom else _ACTIONS.get(stage.action.name, stage.action.name)
        row = found.setdefault(key, _Filtered("AuthorizationPolicy", action, stage.shadow and not custom))
        row.rules.add(policy.name)


# -- as ztunnel dumps them --


def dump_authorization(message: Any) -> dict[str, Any]:
    """An Authorization resource in the JSON of ztunnel's configuration dump, which istioctl reads."""
    return {
        "name": message.name,
        "namespace": message.namespace,
        "scope": _SCOPES.get(message.scope, str(message.scope)),
        "action": {0: "Allow", 1: "Deny"}.get(message.action, str(message.action)),
        "rules": [
            [[_dump_match(match) for match in clause.matches] for clause in rule.clauses]
            for rule in message.rules
        ],
        "dryRun": message.dry_run,
    }


def _dump_match(match: Any) -> dict[str, Any]:
    return {
        _camel(name): [_dump_value(value) for value in getattr(match, name)]
        for name in set_fields(match)
        if name != "extensions"
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _dump_value(value: Any) -> Any:
    if isinstance(value, int):
        return value
    kind = value.DESCRIPTOR.name
    if kind == "Address":
        return f"{_format(value.address)}/{value.length}"
    if kind == "ServiceAccountMatch":
        return {"namespace": value.namespace, "serviceAccount": value.serviceAccount}
    match = value.WhichOneof("match_type")
    if match is None:
        return {}
    return {match.capitalize(): [] if match == "presence" else getattr(value, match)}


def _format(raw: bytes) -> str:
    try:
        return format_address(widen_address(raw))
    except ValueError:
        return raw.hex()
