"""`nodeagent bench`: measure the data path beside other proxies on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nodeagent.bench.session import Session
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import ConfigError

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_INTERRUPTED = 130


@app.command()
def bench(
    scenarios: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="What to measure; none: all.")
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Whom to compare with: direct,envoy,haproxy,nginx,floor; none: all found.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; six or more give a 95 % interval.")] = 7,
    seconds: Annotated[float, typer.Option(help="Measured in each round.")] = 3.0,
    warm_up: Annotated[float, typer.Option(help="Before each measurement, in seconds.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Worker threads of every proxy, a core each.")] = 1,
    captured: Annotated[
        bool, typer.Option("--captured", help="Through a lab's capture, not an explicit proxy.")
    ] = False,
    capture_mode: Annotated[
        str, typer.Option(help="How agents capture where a scenario has any: nft, ebpf or auto.")
    ] = "auto",
    case: Annotated[str, typer.Option(help="Only cases with this in their names.")] = "",
    layout: Annotated[
        str, typer.Option(help="Scenario mtls: where load and back end are: loopback (near) or pods.")
    ] = "loopback",
    access_log: Annotated[
        bool, typer.Option(help="nodeagent writes an access log; the others never do.")
    ] = True,
    steal: Annotated[
        float, typer.Option(help="Drop measurements with more time stolen by the hypervisor, in percent.")
    ] = 1.0,
    services: Annotated[int, typer.Option(help="Scenario config: services of ten endpoints.")] = 10_000,
    connections: Annotated[int, typer.Option(help="Scenario idle: connections.")] = 5_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything measured.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Tell what could be measured, and end.")] = False,
) -> None:
    """Measure nodeagent beside other proxies: same work, same cores, interleaved rounds.

    Prints medians of what is measured, and for each peer the median over the rounds of nodeagent / peer, with an
    interval. Installs nothing. Ctrl-C prints what there is.
    """
    from nodeagent.cli import bench_tables

    if list_:
        bench_tables.print_scenarios()
        return
    for file in (json_file, html_file):
        _check_writable(file)
    config = BenchConfig(
        rounds=rounds,
        seconds=seconds,
        warm_up=warm_up,
        workers=workers,
        captured=captured,
        capture_mode=capture_mode,
        case=case,
        layout=layout,
        access_log=access_log,
        steal_percent=steal,
        services=services,
        connections=connections,
    )
    session = Session(scenarios or [], [name for name in peers.split(",") if name], config)
    bench_tables.print_participants(session.results)
    with bench_tables.progress() as progress:
        session.run(progress)
    _write(session, json_file, html_file)
    bench_tables.print_results(session.results)
    if session.results.interrupted:
        sys.exit(_INTERRUPTED)


def _check_writable(file: Path | None) -> None:
    """Better now than after half an hour."""
    if file is None:
        return
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


def _write(session: Session, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(session.results.as_json(), indent=1) + "\n")
    if html_file is not None:
        from nodeagent.bench.html import render

        html_file.write_text(render(session.results))
