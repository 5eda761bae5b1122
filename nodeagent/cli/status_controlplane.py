"""The control plane's status for people: clients as `istioctl proxy-status` shows them, and issues."""

from __future__ import annotations

from typing import Any, Final

from nodeagent.cli.render import table, word

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
_NOT_SUBSCRIBED: Final = "-"


def is_controlplane(answer: dict[str, Any]) -> bool:
    """Whether this is the status of a control plane and not of an agent."""
    return "clients" in answer


def _errors(answer: dict[str, Any]) -> list[dict[str, Any]]:
    issues: list[dict[str, Any]] = answer.get("config_errors", [])
    return issues


def is_healthy(answer: dict[str, Any]) -> bool:
    """Whether the configuration has no errors and no client has rejected what it was sent."""
    if any(issue.get("severity", "error") == "error" for issue in _errors(answer)):
        return False
    return not any(kind.get("nack") for client in answer["clients"] for kind in _types(client))


def _types(client: dict[str, Any]) -> list[dict[str, Any]]:
    types: list[dict[str, Any]] = client["types"]
    return types


def show(answer: dict[str, Any]) -> None:
    """Print it."""
    state = word("ready") if is_healthy(answer) else word("error")
    print(f"control plane: {state}")
    for label in ("version", "uptime_seconds", "resources"):
        if label in answer:
            print(f"  {label.removesuffix('_seconds'):<15}{_value(answer[label])}")
    _clients(answer["clients"])
    for client in answer["clients"]:
        for kind in _types(client):
            if kind.get("nack"):
                print(
                    f"{word('error')}: {client['node']} rejected {_short(kind['type_url'])}: {kind['nack']}"
                )
    _issues(_errors(answer))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count) or "none"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _short(type_url: str) -> str:
    name = type_url.rpartition(".")[2]
    return _COLUMNS.get(name, name)


def _clients(clients: list[dict[str, Any]]) -> None:
    print()
    if not clients:
        print("no client is connected")
        return
    present = {_short(kind["type_url"]) for client in clients for kind in _types(client)}
    columns = [name for name in _COLUMNS.values() if name in present] + sorted(
        present - set(_COLUMNS.values())
    )
    rows = []
    for client in clients:
        states = {_short(kind["type_url"]): str(kind["state"]) for kind in _types(client)}
        rows.append(
            [client["node"], client.get("type", ""), *(states.get(name, _NOT_SUBSCRIBED) for name in columns)]
        )
    table(["NODE", "TYPE", *columns], sorted(rows))


def _issues(issues: list[dict[str, Any]]) -> None:
    if issues:
        print()
    for issue in issues:
        place = ": ".join(issue[part] for part in ("source", "resource", "path") if issue.get(part))
        code = f" [{issue['code']}]" if issue.get("code") else ""
        text = f"{place}: {issue['message']}" if place else issue["message"]
        print(f"{word(issue.get('severity', 'error'))}{code}: {text}")
