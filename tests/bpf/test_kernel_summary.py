"""Counting in the kernel by bcc: programs for this very kernel, and real connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.dataplane.kernel_headers import VARIABLE, KernelHeaders, find_headers
from nodeagent.dataplane.kernel_summary import KernelSummary, SummaryRow, TraceFormat
from nodeagent.errors import CapabilityError

STATE = "sock/inet_sock_set_state"


def _wait_for(summary: KernelSummary, wanted: Callable[[SummaryRow], bool]) -> SummaryRow:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for row in summary.rows():
            if wanted(row):
                return row
        time.sleep(0.01)
    raise AssertionError(summary.rows())


def test_connects_are_counted_by_server_with_their_times() -> None:
    with KernelSummary("connect") as summary, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for _ in range(7):
            socket.create_connection(("127.0.0.1", port)).close()
        row = _wait_for(summary, lambda row: row.target_port == port and row.count == 7)
    assert (row.what, row.source, row.target) == ("connected", "127.0.0.1", "127.0.0.1")
    assert sum(row.slots) == 7
    assert 0 < row.average_us < 1e6
    assert row.quantile_us(0.5) <= row.quantile_us(0.99)


def test_failed_connects_and_their_resets_are_told_apart() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
    with KernelSummary("connect") as connects, KernelSummary("reset") as resets:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", port))
        failed = _wait_for(connects, lambda row: row.target_port == port)
        # The server's end; whose port is the lower one is not for us to choose.
        sent = _wait_for(resets, lambda row: row.what == "reset sent" and row.source == "::1")
    assert (failed.what, failed.target) == ("failed", "::1")
    assert sent.target == "::1"


def test_drops_have_reasons_and_places() -> None:
    with KernelSummary("drop") as summary:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        row = _wait_for(summary, lambda row: row.reason == "NO_SOCKET")
    assert row.location.startswith("tcp_v4_rcv")


def test_a_field_that_a_kernel_does_not_have_is_named() -> None:
    form = TraceFormat(STATE, "\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n")
    assert form.bind("FIELD(u16, sport)") == "(*(u16 *)(ctx + 24))"
    with pytest.raises(CapabilityError, match="does not tell `dport` in tracepoint sock/inet_sock_set_state"):
        form.bind("FIELD(u16, dport)")


def test_headers_of_the_user_the_kernel_and_debian_are_found_in_this_order(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="apt-get install linux-headers"):
        find_headers({}, tmp_path, "9.9")
    for version in ("6.1.0-9", "6.1.0-10"):
        generated = tmp_path / f"usr/src/linux-headers-{version}-amd64"
        (generated / "include/generated").mkdir(parents=True)
        (generated / "include/generated/autoconf.h").touch()
        (generated / "arch/x86").mkdir(parents=True)
        (tmp_path / f"usr/src/linux-headers-{version}-common").mkdir()
    found = find_headers({}, tmp_path, "9.9")
    assert found.source.endswith("-common")
    assert any(flag.endswith("arch/x86/include/generated") for flag in found.flags)
    kernels = tmp_path / "lib/modules/9.9/build/include/linux"
    kernels.mkdir(parents=True)
    (kernels / "kconfig.h").touch()
    assert find_headers({}, tmp_path, "9.9") == KernelHeaders()
    assert find_headers({VARIABLE: "/my/tree"}, tmp_path, "9.9") == KernelHeaders("/my/tree")
