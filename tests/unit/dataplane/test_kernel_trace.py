"""Lines of trace_pipe as events, and tracing in the real kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest
from harness import require

from nodeagent.dataplane.kernel_trace import KernelTrace, TraceEvent, find_tracefs, parse_event
from nodeagent.errors import CapabilityError

STATE = (
    "  my app-42-2378    [001] ..s2. 16003.063616: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP "
    "sport=0 dport=8080 saddr=10.0.0.1 daddr=10.0.0.2 saddrv6=::ffff:10.0.0.1 daddrv6=::ffff:10.0.0.2 "
    "oldstate=TCP_CLOSE newstate=TCP_SYN_SENT"
)
RETRANSMIT_V6 = (
    "          <idle>-0       [000] ..s1. 5.5: tcp_retransmit_skb: skbaddr=0000 skaddr=0001 family=AF_INET6 sport=1 "
    "dport=2 saddr=0.0.0.0 daddr=0.0.0.0 saddrv6=fd00::1 daddrv6=fd00::2 state=TCP_ESTABLISHED err=0"
)
RESET = (
    "curl-7 [000] ..... 5.5: tcp_send_reset: skbaddr=0000 skaddr=0000 src=[fd00::1]:32014 dest=[fd00::2]:9000 "
    "state=TCP_CLOSE reason=TCP_ABORT_ON_CLOSE"
)
RECEIVED = (
    "curl-7 [000] ..... 5.5: tcp_receive_reset: family=AF_INET sport=32014 dport=9000 saddr=127.0.0.1 "
    "daddr=127.0.0.1 saddrv6=::ffff:127.0.0.1 daddrv6=::ffff:127.0.0.1 sock_cookie=12"
)
DROP = (
    "curl-7 [000] ..... 5.5: kfree_skb: skbaddr=0000 rx_sk=0000 protocol=2048 location=nf_hook_slow+0xa6/0xb0 "
    "reason: NETFILTER_DROP"
)


def test_a_connect_names_the_process() -> None:
    assert parse_event(STATE) == TraceEvent(
        16003.063616, "connecting", "my app-42-2378", "10.0.0.1", 0, "10.0.0.2", 8080
    )


def test_what_happens_elsewhere_names_none() -> None:
    event = parse_event(STATE.replace("TCP_SYN_SENT", "TCP_ESTABLISHED").replace("TCP_CLOSE", "TCP_SYN_RECV"))
    assert event is not None
    assert (event.what, event.process) == ("accepted", "")


def test_other_changes_of_state_are_passed_over() -> None:
    assert parse_event(STATE.replace("TCP_SYN_SENT", "TCP_LISTEN")) is None
    assert parse_event("CPU:0 [LOST 12 EVENTS]") is None
    assert parse_event("") is None


def test_each_form_of_addresses_is_read() -> None:
    again = parse_event(RETRANSMIT_V6)
    assert again == TraceEvent(
        5.5, "retransmitted", "", "fd00::1", 1, "fd00::2", 2, {"state": "TCP_ESTABLISHED", "err": "0"}
    )
    sent = parse_event(RESET)
    assert sent is not None
    assert (sent.source, sent.source_port, sent.target, sent.target_port) == (
        "fd00::1",
        32014,
        "fd00::2",
        9000,
    )
    assert sent.details["reason"] == "TCP_ABORT_ON_CLOSE"
    received = parse_event(RECEIVED)
    assert received is not None
    assert (received.source, received.source_port) == ("127.0.0.1", 32014)


def test_a_drop_tells_why_and_where() -> None:
    event = parse_event(DROP)
    assert event is not None
    assert (event.source, event.target) == ("", "")
    assert event.details == {"location": "nf_hook_slow+0xa6/0xb0", "reason": "NETFILTER_DROP"}


def test_without_tracefs_the_mend_is_named() -> None:
    with pytest.raises(CapabilityError, match="mount -t tracefs none /sys/kernel/tracing"):
        find_tracefs("proc /proc proc rw 0 0\n")
    assert find_tracefs("none /sys/kernel/tracing tracefs rw 0 0\n") == Path("/sys/kernel/tracing")


def _seen(trace: KernelTrace, what: str, port: int) -> TraceEvent:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for event in trace.events(0.1):
            if event.what == what and port in (event.source_port, event.target_port):
                return event
    raise AssertionError(f"no {what} with port {port}")


@pytest.mark.netns
def test_the_kernel_tells() -> None:
    require("root")
    find_tracefs(Path("/proc/mounts").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with KernelTrace("connect") as trace, socket.create_connection(("127.0.0.1", port)):
            assert _seen(trace, "connecting", port).process.endswith(f"-{os.getpid()}")
        with KernelTrace("connect") as trace, socket.create_connection(("127.0.0.1", port)):
            assert _seen(trace, "connected", port).target == "127.0.0.1"
    with KernelTrace("connect") as trace:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        _seen(trace, "failed", port)
    with KernelTrace("reset") as trace:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        _seen(trace, "reset received", port)
    for kind in ("retransmit", "drop"):
        with KernelTrace(kind):
            pass
    assert not list(Path("/sys/kernel/tracing/instances").glob(f"nodeagent-{os.getpid()}"))
