"""`nodeagent explain`: what would become of a request, step by step, with no packet sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from nodeagent.cli.render import Output, OutputOption, document
from nodeagent.cli.target import DEFAULT_ADMIN, LabOption, Target, ask, lab_agents
from nodeagent.errors import AdminError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_WIDTH: Final = 10
_INDENT: Final = {"stage": "  ", "policy": "    ", "tokens": "    ", "callout": "    "}


@dataclass(frozen=True, slots=True)
class Destination:
    """TO, taken apart."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Destination:
        """HOST[:PORT][/PATH], also with http:// before it; BadParameter if it is neither."""
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            port = parts.port or 80
        except ValueError as error:
            raise typer.BadParameter(f"{text}: {error}") from error
        if parts.scheme not in ("", "http") or not parts.hostname:
            raise typer.BadParameter(f"{text}: not HOST[:PORT][/PATH]")
        return cls(parts.hostname, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


@app.command()
def explain(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A pod of the mesh: [NAMESPACE/]NAME.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="HOST[:PORT][/PATH]; port 80 if not given.")],
    method: Annotated[str, typer.Option("--method", "-X", help="Of the request.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="May be repeated.")
    ] = None,
    tcp: Annotated[
        bool, typer.Option("--tcp", help="Not a request, but a connection of another protocol.")
    ] = False,
    agent: Annotated[
        list[Path] | None,
        typer.Option("--agent", metavar="PATH", help="Admin socket of an agent; may be repeated."),
    ] = None,
    lab: LabOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain what would become of a request from one pod to a host: the decisions of the data path, by its own code.

    FROM's agent tells where it would go, the destination's agent whether it may. Agents are those of a lab, or those
    named by --agent. Exit code 1 if it would not be let through.
    """
    destination = Destination.parse(to)
    agents = _agents(agent, lab)
    name = source if "/" in source else f"default/{source}"
    asked = {"port": str(destination.port), "host": destination.host, "path": destination.path}
    if not tcp:
        asked["method"] = method
    headers = tuple(header or ())
    route = ask(_agent_of(agents, name), "/explain/route", {**asked, "workload": name}, headers=headers)
    answer: dict[str, Any] = {"from": name, "to": to, "tcp": tcp, "route": route}
    allowed = not route["error"]
    if allowed:
        answer |= _access(agents, route, asked, headers)
        allowed = answer["access"] is None or answer["access"]["allowed"]
    if output in (Output.JSON, Output.YAML):
        document(answer, output)
    else:
        _show(answer)
    raise typer.Exit(0 if allowed else 1)


def _agents(sockets: list[Path] | None, lab: str | None) -> list[Target]:
    if sockets:
        return [Target(path, f"agent at {path}") for path in sockets]
    found = lab_agents(lab)
    return found or [Target(DEFAULT_ADMIN, "agent")]


def _agent_of(agents: Iterable[Target], workload: str) -> Target:
    """The agent that serves a workload."""
    agents = list(agents)
    for target in agents:
        if _serves(target, workload):
            return target
    asked = ", ".join(target.description for target in agents)
    raise AdminError(
        f"no agent serves {workload}; asked: {asked}. Is it in the mesh, and is its agent among these?"
    )


def _serves(target: Target, workload: str) -> bool:
    namespace, _, name = workload.partition("/")
    enrolled = ask(target, "/status")["enrolment"]["workloads"]
    return any(
        (row["namespace"], row["name"], row["state"]) == (namespace, name, "enrolled") for row in enrolled
    )


def _access(
    agents: list[Target], route: dict[str, Any], asked: dict[str, str], headers: tuple[str, ...]
) -> dict[str, Any]:
    """What the policies of the first endpoint that would serve say; None where nobody here can tell."""
    target = next((each for each in route["targets"] if each["healthy"]), route["targets"][0])
    found: dict[str, Any] = {"target": target, "access": None, "agent": ""}
    agent = next((each for each in agents if target["workload"] and _serves(each, target["workload"])), None)
    if agent is None:
        return found
    query = {
        "workload": target["workload"],
        "port": str(target["port"]),
        "source": route["source"],
        "destination": target["address"],
        "principal": route["principal"] if target["identities"] else "",
        "host": route["authority"],
        "path": route["path"],
    }
    if "method" in asked:
        query["method"] = asked["method"]
    others = [header for header in headers if header.partition(":")[0].strip().lower() != "host"]
    return found | {
        "access": ask(agent, "/explain/access", query, headers=others),
        "agent": agent.description,
    }


def _show(answer: dict[str, Any]) -> None:
    route = answer["route"]
    print(f"{answer['from']} -> {answer['to']}")
    for line in route["lines"]:
        _line(line["step"], line["text"])
    if route["error"]:
        print(f"goes nowhere: {route['error']}")
        return
    target = answer["target"]
    if target["identities"]:
        _line("identity", route["principal"] or "none: no tunnel can be made")
    access = answer["access"]
    if access is None:
        who = target["workload"] or target["address"]
        print(f"whether {who} lets it in cannot be told: none of the agents asked serves it")
        return
    print(f"policies of {target['workload']}, by the {answer['agent']}:")
    for line in access["lines"]:
        if line["step"] != "verdict":
            _line(_INDENT.get(line["step"], "") + line["step"], line["text"])
    if not any(line["step"] in ("stage", "policy") for line in access["lines"]):
        _line("policies", "none")
    print(_verdict(access, is_request=not answer["tcp"]))


def _line(step: str, text: str) -> None:
    print(f"  {step:<{_WIDTH}}  {text}")


def _verdict(access: dict[str, Any], *, is_request: bool) -> str:
    if access["allowed"]:
        return "allowed"
    how = f"answered {access['status']}" if is_request else "reset"
    return f"denied, {how}: {access['detail']}"
