"""The `nodeagent` command: finds the command's module and imports only that one."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Final, NoReturn

from nodeagent import __version__
from nodeagent.errors import NodeagentError

# command -> (module, one line of help). A module has `app`, a typer.Typer.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("nodeagent.cli.run", "Run the node agent."),
    "controlplane": ("nodeagent.cli.controlplane", "Run the control plane."),
    "status": ("nodeagent.cli.status", "Show whether an agent is connected, in sync and serving."),
    "get": ("nodeagent.cli.get", "List what an agent knows: workloads, services, routes, clusters, ..."),
    "analyze": ("nodeagent.cli.analyze", "Find what is wrong with configuration before it is applied."),
    "doctor": ("nodeagent.cli.doctor", "Find whether this machine can capture, and what it lacks."),
    "trace": ("nodeagent.cli.trace", "Follow what the kernel does with the connections of workloads."),
    "explain": ("nodeagent.cli.explain", "Explain step by step what would become of a request."),
    "ca": ("nodeagent.cli.ca", "Make a control plane's CA, show it, and replace its root."),
    "lab": ("nodeagent.cli.lab", "Nodes and pods as network namespaces on this machine."),
    "bench": ("nodeagent.cli.bench", "Measure the data path beside other proxies."),
    "echo": ("nodeagent.cli.echo", "A test workload that answers with what it received."),
}

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
# 128 and the number of the signal that would have ended it, as shells say it.
EXIT_INTERRUPT: Final = 130
EXIT_PIPE: Final = 141


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("Usage: nodeagent COMMAND [ARGS]...\n\nA sidecarless service mesh for Linux nodes.\n\nCommands:")
    for name, (_, text) in COMMANDS.items():
        print(f"  {name:<{width}}  {text}")
    print("\n`nodeagent COMMAND --help` tells more. `nodeagent --version` prints the version.")


def _suggestion(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"


def _end_quietly() -> NoReturn:
    """End as a program does whose output nobody reads any more."""
    # The interpreter would flush standard output once more, fail again and say so.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_PIPE)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
        sys.exit(0 if arguments else EXIT_USAGE)
    if arguments[0] == "--version":
        print(f"nodeagent {__version__}")
        sys.exit(0)
    entry = COMMANDS.get(arguments[0])
    if entry is None:
        print(f"nodeagent: no command {arguments[0]!r}; {_suggestion(arguments[0])}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    module = importlib.import_module(entry[0])
    module.app(args=arguments[1:], prog_name=f"nodeagent {arguments[0]}")


def main() -> None:
    """Entry point; exits 0 on success, 1 on an error (one line on stderr), 2 on wrong usage."""
    try:
        try:
            _dispatch(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except NodeagentError as error:
        print(f"nodeagent: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPT)
    except BrokenPipeError:
        _end_quietly()


if __name__ == "__main__":
    main()
