"""Owner of the `inet nodeagent` table of a namespace: applies it in one transaction, reads it back, removes
it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.ruleset import TABLE, CaptureRules, chains_of, render, render_removal
from nodeagent.errors import CapabilityError, NftError

_CLONE_FILES: Final = 0x400  # linux/sched.h
_NR_OPEN: Final = 1 << 20
"""fs.nr_open's default: there are no descriptors beyond."""
_libc = ctypes.CDLL(None, use_errno=True)
# libnftables is not documented as safe for several threads, even with a context each.
_library: Final = threading.Lock()


def _command(namespace: NetworkNamespace, text: str, *, as_json: bool = False) -> tuple[int, str, str]:
    """Run nft commands in a namespace: return code, output, error text. Blocks."""
    with _library, _nothing_collected():
        return namespace.run(lambda: _command_here(text, as_json=as_json))


def _command_here(text: str, *, as_json: bool) -> tuple[int, str, str]:
    """The same in the calling thread's namespace. The thread must end after that: it has lost the process's
    descriptors."""
    try:
        import nftables
    except ImportError as error:
        raise CapabilityError(
            "Python's nftables module is missing; install python3-nftables, and use Debian's Python "
            "(/usr/bin/python3, or a venv of it with system site packages)"
        ) from error
    _leave_descriptors()
    # Its netlink socket belongs to the namespace in which the context is made.
    context = nftables.Nftables()
    try:
        context.set_json_output(as_json)
        code, output, error_text = context.cmd(text)
    finally:
        del context  # here: a traceback would take it to a thread where its descriptor is another one's
    return code, output, error_text


def _leave_descriptors() -> None:
    """Give the calling thread a table of descriptors of its own, with the standard ones only.

    libnftables waits for answers by select(2), which ends the process when a descriptor is beyond FD_SETSIZE, 1024:
    an agent with a thousand connections could take on no workload any more.
    """
    if _libc.unshare(_CLONE_FILES) != 0:
        raise NftError(f"cannot leave the process's descriptors: {os.strerror(ctypes.get_errno())}")
    os.closerange(3, _NR_OPEN)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Collect no garbage until a thread without the process's descriptors has ended. What it collected would stay open
    in the other threads; and gRPC's calls, when they end, write to a descriptor, and end the process if it is not
    there."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _explain(error_text: str) -> str:
    """What nftables said, with the mend of the likely cause."""
    text = " ".join(error_text.split()) or "no reason given"
    if "cgroupv2" in text:
        return f"{text} (the agent's cgroup must exist below /sys/fs/cgroup)"
    if "Operation not supported" in text or "No such file or directory" in text:
        return f"{text} (the kernel needs nf_tables with nat, fib, socket and reject for inet)"
    return text


def _transact(namespace: NetworkNamespace, batch: str) -> None:
    code, _, error_text = _command(namespace, batch)
    if code != 0:
        raise NftError(f"nftables refused the capture ruleset: {_explain(error_text)}")


def read_rules(namespace: NetworkNamespace) -> list[tuple[str, str]] | None:
    """What is in force: (chain, comment) of each rule in order; None if the table is not there. Blocks."""
    code, output, error_text = _command(namespace, f"list table inet {TABLE}", as_json=True)
    if code != 0:
        if "No such file or directory" in error_text:
            return None
        raise NftError(f"cannot read the capture ruleset back: {_explain(error_text)}")
    entries: list[dict[str, Any]] = json.loads(output)["nftables"]
    rules = (entry["rule"] for entry in entries if "rule" in entry)
    return [(rule["chain"], rule.get("comment", "")) for rule in rules]


def is_in_force(namespace: NetworkNamespace, rules: CaptureRules) -> bool:
    """Whether the table is there with all its rules in order, as far as it can be told from outside.
    Blocks."""
    expected = [(chain.name, rule.comment) for chain in chains_of(rules) for rule in chain.rules]
    return read_rules(namespace) == expected


def apply_ruleset(namespace: NetworkNamespace, rules: CaptureRules) -> None:
    """Put the ruleset in force, replacing what the table held, and check that it is. Blocks.

    NftError if the kernel refuses it; then what was in force stays.
    """
    _transact(namespace, render(rules))
    if not is_in_force(namespace, rules):
        raise NftError(
            "the capture ruleset is not in force after it was applied; another program in the namespace "
            f"changes table inet {TABLE}"
        )


def remove_ruleset(namespace: NetworkNamespace) -> None:
    """Remove the table; nothing happens if it is not there. Blocks."""
    _transact(namespace, render_removal())
