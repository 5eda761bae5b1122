"""The control plane's status for people: clients as `istioctl proxy-status` shows them, and issues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from nodeagent.cli.render import duration, table, word

# Columns as istioctl names them; types of ours and of newer xDS follow.
_COLUMNS: Final = {
    "Cluster": "CDS",
    "Listener": "LDS",
    "ClusterLoadAssignment": "EDS",
    "RouteConfiguration": "RDS",
    "VirtualHost": "VHDS",
    "Address": "WORKLOADS",
    "Authorization": "POLICIES",
}


def is_controlplane(answer: dict[str, Any]) -> bool:
    """Whether this is the status of a control plane and not of an agent."""
    return "clients" in answer


def is_healthy(answer: dict[str, Any]) -> bool:
    """Whether it is ready, its configuration has no error and no client has rejected what it was sent."""
    return bool(answer["ready"]) and not answer["issues"]["error"] and not any(_rejections(answer))


def _rejections(answer: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (client, type, reason)."""
    for client in answer["clients"]:
        for type_url, kind in client["types"].items():
            if kind["nack"]:
                yield client["node"], _short(type_url), kind["nack"]


def show(answer: dict[str, Any]) -> None:
    """Print it."""
    issues = answer["issues"]
    print(f"control plane: {word('ready' if answer['ready'] else 'not ready')}")
    print(f"  version        {answer['version']}, up {duration(answer['uptime_seconds'])}")
    print(f"  configuration  generation {answer['generation']}: {_counts(answer['resources'])}")
    print(f"  issues         {_counts(issues)}")
    print(f"  CA             {_authority(answer.get('ca'))}")
    print()
    _clients(answer["clients"])
    for client, kind, reason in _rejections(answer):
        print(f"{word('error')}: {client} rejected {kind}: {reason}")
    if answer["config_errors"]:
        print()
    for issue in answer["config_errors"]:
        print(f"{word(issue['severity'])} [{issue['code']}]: {issue['text']}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def _authority(authority: dict[str, Any] | None) -> str:
    """Who signs, for how long, and how many roots are trusted: more than one while one is being replaced."""
    if authority is None:
        return "none"
    signer = authority["signer"]
    left = duration(signer["not_after"] - time.time())
    line = f"{signer['subject']}, ends in {left}; {len(authority['roots'])} trusted root(s)"
    return line + (f"; {word('error')}: {authority['last_error']}" if authority["last_error"] else "")


def _short(type_url: str) -> str:
    name = type_url.rpartition(".")[2]
    return _COLUMNS.get(name, name)


def _clients(clients: list[dict[str, Any]]) -> None:
    if not clients:
        print("no client is connected")
        return
    present = {_short(type_url) for client in clients for type_url in client["types"]}
    columns = [name for name in _COLUMNS.values() if name in present]
    columns += sorted(present - set(columns))
    rows = []
    for client in clients:
        states = {_short(type_url): kind["state"] for type_url, kind in client["types"].items()}
        rows.append([client["node"], client["type"], *(states.get(name, "") for name in columns)])
    table(["NODE", "TYPE", *columns], sorted(rows))
