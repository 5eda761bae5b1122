"""`nodeagent doctor`: whether this machine can capture and accelerate, and what it lacks."""

from __future__ import annotations

from dataclasses import asdict

import typer

from nodeagent.cli.render import Output, OutputOption, document, table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def doctor(output: OutputOption = Output.TABLE) -> None:
    """Find whether this machine can capture, and what it lacks; and whether it can accelerate pods (`direct`).

    Everything that the agent does to a workload is tried on a namespace and a cgroup of the command's own. Exit code
    1 if neither mode of capture is possible.
    """
    from nodeagent.dataplane.direct_probes import probe_direct
    from nodeagent.dataplane.probes import possible_modes, probe_machine

    findings = probe_machine()
    modes = possible_modes(findings)
    verdicts = probe_direct() if "ebpf" in modes else []
    if output in (Output.JSON, Output.YAML):
        document(
            {
                "modes": modes,
                "findings": [asdict(finding) for finding in findings],
                "direct": [asdict(verdict) for verdict in verdicts],
            },
            output,
        )
    else:
        table(
            ("NEED", "OF", "THERE", "DETAIL"),
            (
                (each.name, ", ".join(each.modes), "yes" if each.ok else "no", " ".join(each.detail.split()))
                for each in findings
            ),
        )
        if verdicts:
            print()
            table(
                ("DIRECT", "VERDICT", "DETAIL"), ((each.name, each.verdict, each.detail) for each in verdicts)
            )
        print()
        print(f"--capture auto takes {modes[0]}" if modes else "this machine cannot capture")
        if verdicts:
            able = all(each.ok for each in verdicts)
            print(
                "acceleration `direct` is possible"
                if able
                else "acceleration `direct` is not safe on this kernel"
            )
    raise typer.Exit(0 if modes else 1)
