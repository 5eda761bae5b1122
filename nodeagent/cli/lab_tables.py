"""What `nodeagent lab` prints: tables, progress, and what became of applied objects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_ERROR: Final = "error"
_STYLES: Final = {"error": "red", "warning": "yellow", "info": "dim"}
_PLAIN_WIDTH: Final = 200


def _console() -> Console:
    """A console that does not wrap what a pipe reads."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH, soft_wrap=False)


@contextmanager
def progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show what is being waited for: one moving line on a terminal, a line a change elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("starting the lab") as spinner:
            yield lambda status: spinner.update(_waiting(status))
        return
    last = ""

    def show(status: dict[str, Any]) -> None:
        nonlocal last
        text = _waiting(status)
        if text != last:
            last = text
            print(text, file=sys.stderr)

    yield show


def _waiting(status: dict[str, Any]) -> str:
    pending = status.get("pending", [])
    if status["phase"] != "up" or not pending:
        return "making namespaces and starting processes"
    names = ", ".join(item["name"] for item in pending[:6])
    return f"waiting for {names}" + (f" and {len(pending) - 6} more" if len(pending) > 6 else "")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=True)
    return table


def print_pods(status: dict[str, Any]) -> None:
    """Print the pods of a lab."""
    table = _table("NAMESPACE", "POD", "NODE", "IPS", "MESH", "READY", "RESTARTS", "PID")
    for pod in status["pods"]:
        ready = "completed" if pod["completed"] else "yes" if pod["ready"] else f"no ({pod['state']})"
        table.add_row(
            pod["namespace"],
            pod["name"],
            pod["node"],
            " ".join(pod["ips"]),
            pod["mesh"],
            Text(ready, style="" if pod["ready"] else "yellow"),
            str(pod["restarts"]),
            str(pod["pid"] or "-"),
        )
    console = _console()
    console.print(table)
    for pod in status["pods"]:
        if pod["warning"]:
            console.print(Text(f"warning: {pod['namespace']}/{pod['name']} {pod['warning']}", style="yellow"))


def print_status(status: dict[str, Any]) -> None:
    """Print everything of a lab, and last what is not as it should be."""
    console = _console()
    table = _table("PROCESS", "STATE", "READY", "RESTARTS", "PID", "ADMIN")
    rows = [("controlplane", status["controlplane"])] if status["controlplane"] else []
    rows += [(f"agent {node['name']}", node["agent"]) for node in status["nodes"] if node["agent"]]
    for name, process in rows:
        ready = "yes" if process["ready"] else "no"
        pid = str(process["pid"] or "-")
        table.add_row(name, process["state"], ready, str(process["restarts"]), pid, process["admin"])
    if rows:
        console.print(table)
        console.print()
    print_pods(status)
    if status["services"]:
        console.print()
        console.print(_services(status))
    for item in status["pending"]:
        console.print(Text(f"not ready: {item['name']}: {item['reason']}", style="yellow"))
    if status["error"]:
        console.print(Text(status["error"], style="red"))


def _services(status: dict[str, Any]) -> Table:
    table = _table("NAMESPACE", "SERVICE", "VIRTUAL IPS", "PORT", "ENDPOINTS")
    for service in status["services"]:
        addresses = " ".join(service["virtualIPs"]) or ("headless" if service["headless"] else "-")
        for port in service["ports"] or [None]:
            label = f"{port['port']}/{port['protocol']}" if port else "-"
            count = _endpoints(port["endpoints"]) if port else "-"
            table.add_row(service["namespace"], service["name"], addresses, label, count)
    return table


def _endpoints(endpoints: list[str]) -> str:
    """Count endpoints, one with an address of each family as one."""
    ipv6 = sum(endpoint.startswith("[") for endpoint in endpoints)
    return str(max(ipv6, len(endpoints) - ipv6))


def print_issues(issues: list[dict[str, Any]]) -> None:
    """Print what the control plane has to say of the configuration, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for issue in issues:
        severity = str(issue.get("severity", _ERROR))
        place = [str(issue[field]) for field in ("source", "resource", "path") if issue.get(field)]
        text = f"{severity}: {': '.join([*place, str(issue.get('message', ''))])}"
        console.print(Text(text, style=_STYLES.get(severity, "")))


def print_results(answer: dict[str, Any]) -> bool:
    """Print what became of each object; False when one was refused, by whomever, or has an error."""
    good = True
    for result in answer["results"]:
        print(f"{result['object']} {result['action']}")
        for note in result["notes"]:
            print(f"warning: {note}", file=sys.stderr)
        if result["error"]:
            good = False
            print(f"error: {result['error']}", file=sys.stderr)
    print_issues(answer["issues"])
    for refusal in answer["refused"]:
        good = False
        print(f"error: {refusal}", file=sys.stderr)
    if answer["waiting"]:
        print(f"warning: {answer['waiting']}", file=sys.stderr)
    return good and not any(issue.get("severity") == _ERROR for issue in answer["issues"])
