"""Makes the planned namespaces, links, addresses and routes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from nodeagent.errors import CapabilityError, LabError
from nodeagent.lab import netns
from nodeagent.lab.plan import NamespacePlan


def build(plans: Iterable[NamespacePlan]) -> None:
    """Make all namespaces, then run the commands of each in order. Blocking; some milliseconds each."""
    plans = list(plans)
    for plan in plans:
        netns.create(plan.netns, plan.sysctls)
    for plan in plans:
        netns.run_in(plan.netns, lambda plan=plan: _ip_batch(plan))  # type: ignore[misc]


def _ip_batch(plan: NamespacePlan) -> None:
    """Run the commands of a namespace; the child inherits the namespace of the calling thread."""
    try:
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(plan.commands) + "\n",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError:
        raise CapabilityError("the `ip` command is missing; apt-get install iproute2") from None
    if done.returncode != 0:
        raise LabError(f"network namespace {plan.netns}: {_explain(done.stderr, plan)}")


def _explain(stderr: str, plan: NamespacePlan) -> str:
    """Put the failed command beside the reason: `ip` says only `Command failed -:LINE`."""
    reason = " ".join(line for line in stderr.splitlines() if not line.startswith("Command failed"))
    for line in stderr.splitlines():
        number = line.removeprefix("Command failed -:")
        if number.isdigit():
            return f"ip {plan.commands[int(number) - 1]}: {reason}"
    return reason or "ip -batch failed"
