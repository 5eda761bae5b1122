"""`nodeagent status`: whether an agent, or the control plane, is connected, in sync and serving."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

import typer

from nodeagent.cli import status_controlplane
from nodeagent.cli.render import Output, OutputOption, document, duration, table, word
from nodeagent.cli.target import AdminOption, LabOption, NodeOption, ask, resolve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_LABEL_WIDTH: Final = 15


@app.command()
def status(
    admin: AdminOption = None,
    node: NodeOption = None,
    lab: LabOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show whether an agent is connected, in sync and serving; with `--node controlplane`, who is connected.

    Exit code 1 if it is not ready, or if the control plane has configuration errors.
    """
    target = resolve(admin, node, lab)
    answer = ask(target, "/status")
    of_controlplane = status_controlplane.is_controlplane(answer)
    if output in (Output.JSON, Output.YAML):
        document(answer, output)
    elif of_controlplane:
        status_controlplane.show(answer)
    else:
        show(answer)
    healthy = status_controlplane.is_healthy(answer) if of_controlplane else answer["ready"]
    raise typer.Exit(0 if healthy else 1)


def show(answer: dict[str, Any]) -> None:
    """Print an agent's status for people."""
    state = word("ready") if answer["ready"] else f"{word('not ready')}: {'; '.join(answer['not_ready'])}"
    print(f"{answer['node']}: {state}")
    for label, line in _lines(answer):
        print(f"  {label:<{_LABEL_WIDTH}}{line}")
    _streams(answer["control_plane"]["streams"])
    _workloads(answer["enrolment"]["workloads"])
    _warnings(answer)


def _lines(answer: dict[str, Any]) -> list[tuple[str, str]]:
    capture = answer["capture"]
    return [
        ("version", f"{answer['version']}, pid {answer['pid']}, up {duration(answer['uptime_seconds'])}"),
        ("control plane", _control_plane(answer["control_plane"])),
        ("capture", capture["mode"] + (f" ({capture['reason']})" if capture["reason"] else "")),
        *_bpf_maps(capture["maps"]),
        *_acceleration(answer["acceleration"]),
        ("bypass", _bypass(answer["bypass"])),
        ("UDP", _udp(answer["udp"])),
        ("engine", _engine(answer["engine"])),
        ("enrolment", _enrolment(answer["enrolment"])),
        ("configuration", _snapshot(answer["snapshot"])),
        ("certificates", _certificates(answer["certificates"])),
    ]


def _control_plane(plane: dict[str, Any]) -> str:
    if plane["connected"]:
        since = plane["connected_since"]
        return f"{plane['address']}, connected" + (f" for {duration(time.time() - since)}" if since else "")
    return f"{plane['address']}, not connected" + (f": {plane['last_error']}" if plane["last_error"] else "")


def _bpf_maps(maps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    if not maps:
        return []
    filling = ", ".join(
        f"{each['name']} {each['entries']} of {each['limit']}" for each in maps if each["limit"] is not None
    )
    full = "".join(f"; {each['name']} was full {each['full']} times" for each in maps if each["full"])
    return [("bpf maps", f"{sum(each['memory'] for each in maps) / 1e6:.1f} MB; {filling}{full}")]


def _acceleration(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found["workloads"] and not found["sockets"]:
        return []
    states = Counter(row["state"] for row in found["workloads"])
    counters = found["counters"]
    line = f"direct: {', '.join(f'{count} {state}' for state, count in sorted(states.items())) or 'ending'}"
    if counters:
        line += f"; {found['sockets']} sockets, {counters['redirected']} messages past TCP"
        passed = {name: count for name, count in counters.items() if name.startswith("pass_") and count}
        line += "".join(f", {count} {name.removeprefix('pass_')}" for name, count in passed.items())
    return [("acceleration", line)]


def _bypass(bypass: dict[str, Any]) -> str:
    reason = f" ({bypass['reason']})" if bypass["reason"] else ""
    if bypass["state"] == "off":
        return f"off{reason}"
    names = ("services", "endpoints", "verdicts", "clients", "connections")
    counts = ", ".join(f"{bypass[name]} {name}" for name in names)
    refused = "".join(f"; {count} for want of room in {name}" for name, count in bypass["refused"].items())
    revoked = f"; {bypass['revoked']} connections revoked" if bypass["revoked"] else ""
    return f"{bypass['state']}{reason}: {counts}{refused}{revoked}"


def _udp(udp: dict[str, Any]) -> str:
    reason = f" ({udp['reason']})" if udp["reason"] else ""
    if udp["state"] == "off":
        return f"off{reason}"
    counts = ", ".join(f"{udp[name]} {name}" for name in ("services", "endpoints", "receivers", "verdicts"))
    refused = "".join(f"; {count} {name} without room" for name, count in udp["refused"].items())
    decided = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in udp["counters"].items() if count
    )
    return f"{udp['state']}{reason}: {counts}{refused}" + (f"; {decided}" if decided else "")


def _engine(engine: dict[str, Any]) -> str:
    workers = "1 worker" if engine["workers"] == 1 else f"{engine['workers']} workers"
    below = f"\n{'':<{_LABEL_WIDTH + 2}}"
    counters = "".join(f"{below}{name} {count}" for name, count in engine["counters"].items())
    return f"{workers}, {engine['connections']} connections{counters}"


def _enrolment(enrolment: dict[str, Any]) -> str:
    places = []
    if enrolment["socket"]:
        state = (
            "connected"
            if enrolment["connected"]
            else f"not connected: {enrolment['last_error'] or 'waiting'}"
        )
        places.append(f"{enrolment['socket']} {state}")
    if enrolment.get("file"):
        error = enrolment["file_error"]
        places.append(enrolment["file"] + (f" not in force: {error}" if error else ""))
    counts = Counter(workload["state"] for workload in enrolment["workloads"])
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no workloads"
    return "; ".join((*places, summary))


def _certificates(rows: list[dict[str, Any]]) -> str:
    counts = Counter(row["state"] for row in rows)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"


def _snapshot(snapshot: dict[str, Any]) -> str:
    line = f"version {snapshot['version'] or 'none'}, " + ("in force" if snapshot["settled"] else "settling")
    if snapshot["from_disk"]:
        line += ", last good one from disk"
    return line + (f"; last error: {snapshot['last_error']}" if snapshot["last_error"] else "")


def _streams(streams: list[dict[str, Any]]) -> None:
    rows = [
        (
            stream["name"],
            kind["type_url"].rpartition(".")[2],
            kind["state"],
            str(kind["resources"]),
            kind["version"],
        )
        for stream in streams
        for kind in stream["types"]
    ]
    if rows:
        print()
        table(("STREAM", "TYPE", "STATE", "RESOURCES", "VERSION"), rows)
    for stream in streams:
        if not stream["connected"] and stream["last_error"]:
            print(f"{word('error')}: stream {stream['name']}: {stream['last_error']}")
        for kind in stream["types"]:
            if kind["nack"]:
                print(f"{word('error')}: stream {stream['name']}: rejected: {kind['nack']}")


def _workloads(workloads: list[dict[str, Any]]) -> None:
    if workloads:
        print()
        table(
            ("NAMESPACE", "WORKLOAD", "STATE", "VIEW", "ERROR"),
            ((row["namespace"], row["name"], _state(row), row["view"], row["error"]) for row in workloads),
        )


def _state(row: dict[str, Any]) -> str:
    return f"{row['state']}, fail-open" if row.get("fail_mode") == "open" else str(row["state"])


def _warnings(answer: dict[str, Any]) -> None:
    if answer["warnings"]:
        print()
    for warning in answer["warnings"]:
        print(f"{word('warning')}: {warning}")
