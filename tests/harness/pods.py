"""Commands in the pods of a lab as `nodeagent lab exec` runs them, without that program's own start each time: tests
run hundreds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nodeagent.lab import rpc, sandbox
from nodeagent.lab.names import LabNames

_BECOME = """
import ctypes, json, sys
sys.path.append(sys.argv[1])
import sandbox
sandbox.become(json.loads(sys.argv[2]))
"""


def in_pod(lab: str, pod: str, command: Sequence[str]) -> list[str]:
    """The command that runs `command` in a pod; LabError, as the verb has it, where that cannot be."""
    try:
        spec = rpc.call(LabNames(lab).supervisor_socket, "exec", pod=pod, argv=list(command))
    except ConnectionError as error:
        raise AssertionError(f"lab {lab} has no supervisor: {error}") from error
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(Path(sandbox.__file__).parent), json.dumps(spec)]
