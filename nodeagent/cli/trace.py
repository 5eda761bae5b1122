"""`nodeagent trace`: what the kernel does with the connections of workloads."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nodeagent.cli.target import AdminOption, LabOption, NodeOption, Target, ask, resolve
from nodeagent.errors import AdminError, ConfigError

if TYPE_CHECKING:
    from nodeagent.dataplane.kernel_summary import SummaryRow
    from nodeagent.dataplane.kernel_trace import TraceEvent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_LOOK_SECONDS: Final = 0.2
_NAMES_SECONDS: Final = 5.0


class Kind(StrEnum):
    """What is traced (KINDS of dataplane.kernel_trace)."""

    CONNECT = "connect"
    RETRANSMIT = "retransmit"
    RESET = "reset"
    DROP = "drop"


class Form(StrEnum):
    """How events are printed."""

    TEXT = "text"
    JSON = "json"


@app.command()
def trace(
    kind: Annotated[Kind, typer.Argument(help="What to follow.")],
    pod: Annotated[
        str, typer.Option("--pod", metavar="POD", help="Only this one: NAME, or NAMESPACE/NAME.")
    ] = "",
    count: Annotated[int, typer.Option("--count", min=0, help="End after so many events; 0: never.")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="End after this time; 0: never.")] = 0,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Count in the kernel, and show it at the end. Needs bcc and headers."),
    ] = False,
    admin: AdminOption = None,
    node: NodeOption = None,
    lab: LabOption = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="json: an object per line.")] = Form.TEXT,
) -> None:
    """Follow what the kernel does with TCP, with the workloads' names beside the addresses.

    It sees all namespaces of this machine, from tracepoints. Names come from the agent, if one answers. `drop` tells
    why packets were dropped and where, but not whose they were. Ctrl-C ends it. With --summary nothing is told until
    then: how often what happened between whom, and how long connects took, for nodes where events are many.
    """
    from nodeagent.dataplane.kernel_trace import KernelTrace

    if summary and count:
        raise ConfigError("--count: a summary ends by --seconds or Ctrl-C")
    if pod and kind is Kind.DROP:
        raise ConfigError("--pod: the kernel does not tell whose packets it drops; leave it out for drop")
    names = Names(resolve(admin, node, lab), required=bool(pod))
    wanted = names.addresses_of(pod) if pod else frozenset()
    show = _show_json if output is Form.JSON else _show_text
    # Also where a shell has the background ignore SIGINT, and when a script ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if summary:
        _summarize(kind, names, wanted, seconds, output)
        return
    with KernelTrace(kind) as source:
        print(f"tracing {kind}; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            _follow(_until(source.events, seconds), wanted, count, lambda event: show(event, names))
        except KeyboardInterrupt:
            return


def _summarize(kind: Kind, names: Names, wanted: frozenset[str], seconds: float, output: Form) -> None:
    from nodeagent.dataplane.kernel_summary import KernelSummary

    with KernelSummary(kind) as counted:
        print(f"counting {kind}; Ctrl-C ends it", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait(seconds or None)
        rows = [row for row in counted.rows() if not wanted or row.source in wanted or row.target in wanted]
        missed = counted.missed()
    for row in rows:
        print(_summary_json(row, names) if output is Form.JSON else _summary_text(row, names))
    if missed:
        print(f"nodeagent: {missed} more events, between more pairs than are told apart", file=sys.stderr)


def _summary_text(row: SummaryRow, names: Names) -> str:
    ends = " -> ".join(
        _place(address, port, names.name(address))
        for address, port in ((row.source, row.source_port), (row.target, row.target_port))
        if address
    )
    times = ""
    if row.slots:
        half, most = row.quantile_us(0.5), row.quantile_us(0.99)
        times = f"average {row.average_us:.0f} us, half within {half}, 99 % within {most}"
    parts = (f"{row.count:>8}", f"{row.what:<14}", ends, row.reason, row.location, times)
    return "  ".join(part for part in parts if part)


def _summary_json(row: SummaryRow, names: Names) -> str:
    return json.dumps(
        asdict(row) | {"source_name": names.name(row.source), "target_name": names.name(row.target)}
    )


def _until(events: Callable[[float], Iterator[TraceEvent]], seconds: float) -> Iterator[TraceEvent]:
    deadline = time.monotonic() + seconds
    while not seconds or time.monotonic() < deadline:
        yield from events(_LOOK_SECONDS)


def _follow(
    events: Iterator[TraceEvent], wanted: frozenset[str], count: int, show: Callable[[TraceEvent], None]
) -> None:
    shown = 0
    for event in events:
        if not wanted or event.source in wanted or event.target in wanted:
            show(event)
            shown += 1
            if shown == count:
                return


class Names:
    """Who is at an address, as an agent knows it; asked again now and then."""

    def __init__(self, target: Target, *, required: bool) -> None:
        """AdminError if the agent does not answer and is `required`."""
        self._target = target
        self._by_address: dict[str, str] = {}
        self._asked = 0.0
        self._refresh(required=required)

    def _refresh(self, *, required: bool = False) -> None:
        self._asked = time.monotonic()
        try:
            workloads: list[dict[str, Any]] = ask(self._target, "/workloads")
            services: list[dict[str, Any]] = ask(self._target, "/services")
        except AdminError as error:
            if required:
                raise
            if not self._by_address:
                print(f"nodeagent: no names beside the addresses: {error}", file=sys.stderr)
            self._asked = float("inf")
            return
        rows = [(row["addresses"], row["hostname"]) for row in services]
        rows += [(row["addresses"], f"{row['namespace']}/{row['name']}") for row in workloads]
        # Addresses of services carry the network's name: `network/address`.
        self._by_address = {each.rpartition("/")[2]: name for addresses, name in rows for each in addresses}

    def name(self, address: str) -> str:
        """`namespace/name` of a workload, the host name of a service, or nothing."""
        if address not in self._by_address and time.monotonic() - self._asked > _NAMES_SECONDS:
            self._refresh()
        return self._by_address.get(address, "")

    def addresses_of(self, pod: str) -> frozenset[str]:
        """The addresses of a workload; ConfigError if there is none of the name."""
        wanted = pod if "/" in pod else f"default/{pod}"
        found = frozenset(address for address, name in self._by_address.items() if name == wanted)
        if not found:
            raise ConfigError(f"--pod {pod}: the agent knows no workload {wanted}")
        return found


def _show_text(event: TraceEvent, names: Names) -> None:
    ends = " -> ".join(
        _place(address, port, names.name(address))
        for address, port in ((event.source, event.source_port), (event.target, event.target_port))
        if address
    )
    details = " ".join(f"{name}={value}" for name, value in event.details.items())
    parts = (f"{event.seconds:.6f}", f"{event.what:<14}", ends, event.process, details)
    print("  ".join(part for part in parts if part), flush=True)


def _place(address: str, port: int, name: str) -> str:
    bracketed = f"[{address}]" if ":" in address else address
    return (f"{bracketed}:{port}" if port else bracketed) + (f" ({name})" if name else "")


def _show_json(event: TraceEvent, names: Names) -> None:
    row = asdict(event)
    row |= {"source_name": names.name(event.source), "target_name": names.name(event.target)}
    print(json.dumps(row), flush=True)
