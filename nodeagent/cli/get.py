"""`nodeagent get`: lists what an agent knows."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from nodeagent.cli.render import Output, OutputOption, document, duration, size, some, table
from nodeagent.cli.target import CONTROL_PLANE, AdminOption, LabOption, NodeOption, ask, resolve
from nodeagent.errors import AdminError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Cell = Callable[[dict[str, Any], bool], str]  # of a row; True: for a wide table


@dataclass(frozen=True, slots=True)
class Listing:
    """How one resource is shown: columns, columns that only `wide` has, and what rows are sorted by."""

    columns: dict[str, Cell]
    wide: dict[str, Cell]
    sort: tuple[str, ...]


def _field(name: str) -> Cell:
    return lambda row, wide: str(row[name])


def _number(name: str) -> Cell:
    return lambda row, wide: str(row[name] or "-")


def _list(name: str) -> Cell:
    return lambda row, wide: some(row[name], wide=wide)


def _ports(row: dict[str, Any], wide: bool) -> str:
    ports = [f"{port['port']}/{port['protocol'] or port['name'] or 'TCP'}" for port in row["ports"]]
    return some(ports, wide=wide)


def _healthy(row: dict[str, Any], wide: bool) -> str:
    return f"{row['healthy']}/{row['endpoints']}"


def _timeout(row: dict[str, Any], wide: bool) -> str:
    return "-" if row["timeout_ms"] is None else duration(row["timeout_ms"] / 1000)


def _endpoint(row: dict[str, Any], wide: bool) -> str:
    address = f"[{row['address']}]" if ":" in row["address"] else row["address"]
    return f"{address}:{row['port']}"


def _owner(row: dict[str, Any], wide: bool) -> str:
    return f"{row['namespace']}/{row['name']}"


def _until(name: str) -> Cell:
    return lambda row, wide: duration(row[name] - time.time()) if row[name] else "-"


def _moment(name: str) -> Cell:
    def cell(row: dict[str, Any], wide: bool) -> str:
        if not row[name]:
            return "-"
        return datetime.datetime.fromtimestamp(row[name], datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    return cell


SHORT_NAMES: Final = {"certs": "certificates", "policys": "policies"}
_VIEW: Final = {"VIEW": _field("view")}
LISTINGS: Final = {
    "workloads": Listing(
        {
            "NAMESPACE": _field("namespace"),
            "NAME": _field("name"),
            "ADDRESS": _list("addresses"),
            "NODE": _field("node"),
            "PROTOCOL": _field("protocol"),
            "STATUS": _field("status"),
        },
        {
            "SERVICE ACCOUNT": _field("service_account"),
            "LOCAL": lambda row, wide: "yes" if row["local"] else "no",
            "WAYPOINT": _field("waypoint"),
            "LOCALITY": _field("locality"),
            "SERVICES": _list("services"),
            "UID": _field("uid"),
        },
        ("namespace", "name", "uid"),
    ),
    "services": Listing(
        {
            "NAMESPACE": _field("namespace"),
            "NAME": _field("name"),
            "VIP": _list("addresses"),
            "PORTS": _ports,
            "ENDPOINTS": _healthy,
        },
        {"HOSTNAME": _field("hostname"), "WAYPOINT": _field("waypoint")},
        ("namespace", "name", "hostname"),
    ),
    "routes": Listing(
        {
            "NAME": _field("name"),
            "VIRTUAL HOST": _field("virtual_host"),
            "DOMAINS": _list("domains"),
            "MATCH": _field("match"),
            "ACTION": _field("action"),
            **_VIEW,
        },
        {"ROUTE": _field("route"), "TIMEOUT": _timeout},
        # The sort is stable: routes of one virtual host stay in the order in which they are tried.
        ("view", "name", "virtual_host"),
    ),
    "clusters": Listing(
        {
            "FQDN": _field("fqdn"),
            "PORT": _number("port"),
            "SUBSET": _field("subset"),
            "DIRECTION": _field("direction"),
            "TYPE": _field("type"),
            **_VIEW,
        },
        {"ENDPOINTS": _healthy, "LB": _field("lb"), "NAME": _field("name")},
        ("fqdn", "port", "subset", "view"),
    ),
    "endpoints": Listing(
        {
            "ENDPOINT": _endpoint,
            "STATUS": _field("status"),
            "WORKLOAD": _field("workload"),
            "CLUSTER": _field("cluster"),
            **_VIEW,
        },
        {
            "WEIGHT": _field("weight"),
            "PRIORITY": _field("priority"),
            "LOCALITY": _field("locality"),
            "VIA": _field("via"),
        },
        ("cluster", "view", "address", "port"),
    ),
    "listeners": Listing(
        {
            "ADDRESS": _field("address"),
            "PORT": lambda row, wide: str(row["port"] or "*"),
            "DIRECTION": _field("direction"),
            "PROTOCOL": _field("protocol"),
            "DESTINATION": _field("destination"),
            **_VIEW,
        },
        {"NAME": _field("name")},
        ("view", "direction", "port", "address"),
    ),
    "policies": Listing(
        {
            "NAMESPACE": _field("namespace"),
            "NAME": _field("name"),
            "ACTION": lambda row, wide: row["action"] + (" (dry run)" if row["dry_run"] else ""),
            "SCOPE": _field("scope"),
            "WORKLOADS": _list("workloads"),
            "STATE": _field("state"),
            "ERROR": _field("error"),
        },
        {"KIND": _field("kind"), "RULES": _field("rules"), "SOURCE": _field("source")},
        ("namespace", "name", "source"),
    ),
    "connections": Listing(
        {
            "WORKLOAD": _owner,
            "DIRECTION": _field("direction"),
            "PROTOCOL": _field("protocol"),
            "STATE": _field("state"),
            "REMOTE": _field("remote"),
            "LOCAL": _field("local"),
            "AGE": lambda row, wide: duration(row["age_ms"] / 1000),
            "IN": lambda row, wide: size(row["bytes_in"]),
            "OUT": lambda row, wide: size(row["bytes_out"]),
        },
        {"CLUSTER": _field("cluster"), "WORKER": _field("worker"), "ID": _field("id")},
        ("namespace", "name", "id"),
    ),
    "certificates": Listing(
        {
            "IDENTITY": _field("identity"),
            "STATE": _field("state"),
            "WORKLOADS": _number("workloads"),
            "EXPIRES IN": _until("not_after"),
            "RENEWED IN": _until("next_request"),
            "ERROR": _field("error"),
        },
        {
            "VALID FROM": _moment("not_before"),
            "VALID UNTIL": _moment("not_after"),
            "SERIAL": _field("serial"),
        },
        ("identity",),
    ),
}


def _resource(text: str) -> str:
    plural = text.lower() if text.lower().endswith("s") else f"{text.lower()}s"
    plural = SHORT_NAMES.get(plural, plural)
    if plural not in LISTINGS:
        raise typer.BadParameter(f"no resource {text!r}; there are: {', '.join(LISTINGS)}")
    return plural


@app.command()
def get(
    resource: Annotated[
        str, typer.Argument(metavar="RESOURCE", help=f"One of {', '.join(LISTINGS)}.", callback=_resource)
    ],
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only what has this name, host name, address or cluster."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only what is of this namespace.")
    ] = None,
    admin: AdminOption = None,
    node: NodeOption = None,
    lab: LabOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what an agent knows and has in force.

    Exit code 1 if a NAME was given and nothing has it.
    """
    if node == CONTROL_PLANE:
        raise AdminError(
            f"`get` asks agents; `nodeagent status --node {CONTROL_PLANE}` asks the control plane"
        )
    target = resolve(admin, node, lab)
    query = {key: value for key, value in (("name", name), ("namespace", namespace)) if value is not None}
    listing = LISTINGS[resource]
    rows: list[dict[str, Any]] = ask(target, f"/{resource}", query)
    rows.sort(key=lambda row: [row[field] for field in listing.sort])
    if not rows and name is not None:
        where = f" in namespace {namespace!r}" if namespace is not None else ""
        raise AdminError(f"the {target.description} has no {resource} named {name!r}{where}")
    if output in (Output.JSON, Output.YAML):
        document(rows, output)
    elif not rows:
        typer.echo(f"no {resource}", err=True)
    else:
        wide = output is Output.WIDE
        columns = listing.columns | listing.wide if wide else listing.columns
        table(list(columns), ([cell(row, wide) for cell in columns.values()] for row in rows))
