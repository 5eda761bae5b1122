"""What the kernel does with TCP, counted in the kernel: how often, between whom, and how long connects take.

By bcc, which compiles a program for the tracepoints of this very kernel. Nothing is copied to user space per event, so
that a node under load can be watched; kernel_trace.py tells of single events instead.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nodeagent.dataplane.kernel_headers import VARIABLE, KernelHeaders, find_headers
from nodeagent.dataplane.kernel_trace import find_tracefs
from nodeagent.errors import CapabilityError
from nodeagent.snapshot.address import format_address

PAIRS: Final = 4096
"""Rows that are told apart; what comes beyond is counted in `missed`."""
BUCKETS: Final = 24
"""Of connect times: up to 1, 2, 4 ... 2^22 microseconds, and above."""

_EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "connect": ("sock/inet_sock_set_state",),
    "retransmit": ("tcp/tcp_retransmit_skb",),
    "reset": ("tcp/tcp_send_reset", "tcp/tcp_receive_reset"),
    "drop": ("skb/kfree_skb",),
}
_FIELD: Final = re.compile(
    r"field:.*?(?P<name>\w+)(?:\[\d+\])?;\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
)
_SYMBOL: Final = re.compile(r'\{ (\d+), "(\w+)" \}')
_WHAT: Final = ("connected", "failed", "retransmitted", "reset sent", "reset received", "dropped")

_HEAD: Final = """
struct row_key { u8 source[16]; u8 target[16]; u64 location; u32 reason; u16 source_port; u16 target_port; u32 what;
                 u32 unused; };
struct row { u64 count; u64 total_us; u64 slots[%(buckets)d]; };
BPF_TABLE("hash", struct row_key, struct row, rows, %(pairs)d);
BPF_TABLE("lru_hash", u64, u64, started, 16384);
BPF_ARRAY(missed, u64, 1);

static struct row *row_of(struct row_key *key) {
  struct row zero = {}, *row = rows.lookup_or_try_init(key, &zero);
  if (!row)
    missed.increment(0);
  else
    __sync_fetch_and_add(&row->count, 1);
  return row;
}

/* Of the two ports the lower one is taken for the server's; the other one would make a row of each connection. */
static void set_ports(struct row_key *key, u16 source, u16 target) {
  if (source < target)
    key->source_port = source;
  else
    key->target_port = target;
}

static void read_ends(struct row_key *key, void *source, void *target) {
  bpf_probe_read_kernel(key->source, 16, source);
  bpf_probe_read_kernel(key->target, 16, target);
}

/* From the kernel's struct sockaddr_in or sockaddr_in6. */
static u16 read_sockaddr(u8 *address, void *from) {
  u16 family = 0, port = 0;
  bpf_probe_read_kernel(&family, 2, from);
  bpf_probe_read_kernel(&port, 2, from + 2);
  if (family == 10)
    bpf_probe_read_kernel(address, 16, from + 8);
  else {
    address[10] = address[11] = 0xff;
    bpf_probe_read_kernel(address + 12, 4, from + 4);
  }
  return (port >> 8) | (port << 8);
}
"""

_CONNECT: Final = """
int on_inet_sock_set_state(void *ctx) {
  u64 socket = FIELD(u64, skaddr), now = bpf_ktime_get_ns(), *then, us, slot = 0;
  int oldstate = FIELD(int, oldstate), newstate = FIELD(int, newstate);
  struct row_key key = {};
  struct row *row;

  if (FIELD(u16, protocol) != 6)
    return 0;
  if (newstate == 2) {
    started.update(&socket, &now);
    return 0;
  }
  if (oldstate != 2 || !(then = started.lookup(&socket)))
    return 0;
  us = (now - *then) / 1000;
  started.delete(&socket);
  read_ends(&key, AT(saddr_v6), AT(daddr_v6));
  key.target_port = FIELD(u16, dport);
  key.what = newstate != 1;
  row = row_of(&key);
  if (!row)
    return 0;
  __sync_fetch_and_add(&row->total_us, us);
  if (us > 1)
    slot = bpf_log2l(us - 1);
  if (slot >= BUCKETS)
    slot = BUCKETS - 1;
  __sync_fetch_and_add(&row->slots[slot], 1);
  return 0;
}
"""

_RETRANSMIT: Final = """
int on_tcp_retransmit_skb(void *ctx) {
  struct row_key key = {.what = 2};
  read_ends(&key, AT(saddr_v6), AT(daddr_v6));
  set_ports(&key, FIELD(u16, sport), FIELD(u16, dport));
  row_of(&key);
  return 0;
}
"""

_RESET_BY_ADDRESSES: Final = """
int on_%(event)s(void *ctx) {
  struct row_key key = {.what = %(what)d};
  read_ends(&key, AT(saddr_v6), AT(daddr_v6));
  set_ports(&key, FIELD(u16, sport), FIELD(u16, dport));
  row_of(&key);
  return 0;
}
"""

_RESET_BY_SOCKADDR: Final = """
int on_%(event)s(void *ctx) {
  struct row_key key = {.what = %(what)d};
  u16 source = read_sockaddr(key.source, AT(saddr)), target = read_sockaddr(key.target, AT(daddr));
  set_ports(&key, source, target);
  row_of(&key);
  return 0;
}
"""

_DROP: Final = """
int on_kfree_skb(void *ctx) {
  struct row_key key = {.what = 5, .reason = FIELD(u32, reason), .location = FIELD(u64, location)};
  if (key.reason > 2) /* include/net/dropreason-core.h: up to 2 there is no reason */
    row_of(&key);
  return 0;
}
"""


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """How often something happened between two ends. A port is 0 where the rows are not told apart by it."""

    what: str
    count: int
    source: str = ""
    source_port: int = 0
    target: str = ""
    target_port: int = 0
    average_us: float = 0.0
    """Of connects: from the SYN until the connection was there, or had failed."""
    slots: tuple[int, ...] = ()
    """Of connects: how many took up to 1, 2, 4 ... us (BUCKETS of them)."""
    reason: str = ""
    location: str = ""
    """Of drops: the kernel's function."""

    def quantile_us(self, share: float) -> int:
        """At most so long did this share of the connects take, by the bounds of the slots."""
        wanted = share * sum(self.slots)
        seen = 0
        for index, count in enumerate(self.slots):
            seen += count
            if count and seen >= wanted:
                return 1 << index
        return 0


class TraceFormat:
    """Where the fields of a tracepoint are, from its events/*/format."""

    def __init__(self, event: str, text: str) -> None:
        self.event = event
        self.fields = {
            match["name"]: (int(match["offset"]), int(match["size"])) for match in _FIELD.finditer(text)
        }
        self.symbols = {int(number): name for number, name in _SYMBOL.findall(text)}

    def bind(self, program: str) -> str:
        """The program with FIELD(type, name) and AT(name) made accesses of this tracepoint's record."""
        program = re.sub(
            r"FIELD\((\w+), (\w+)\)", lambda m: f"(*({m[1]} *)(ctx + {self._offset(m[2])}))", program
        )
        return re.sub(r"AT\((\w+)\)", lambda m: f"(ctx + {self._offset(m[1])})", program)

    def _offset(self, name: str) -> int:
        if name not in self.fields:
            raise CapabilityError(
                f"this kernel ({os.uname().release}) does not tell `{name}` in tracepoint {self.event}"
            )
        return self.fields[name][0]


def make_program(kind: str, formats: dict[str, TraceFormat]) -> str:
    """The program of a kind, in bcc's C. CapabilityError if a tracepoint does not tell what is needed."""
    parts = [f"#define BUCKETS {BUCKETS}", _HEAD % {"buckets": BUCKETS, "pairs": PAIRS}]
    for event in _EVENTS[kind]:
        parts.append(formats[event].bind(_body(event, formats[event])))
    return "\n".join(parts)


def _body(event: str, form: TraceFormat) -> str:
    if event == "sock/inet_sock_set_state":
        return _CONNECT
    if event == "tcp/tcp_retransmit_skb":
        return _RETRANSMIT
    if event == "skb/kfree_skb":
        return _DROP
    # Since Linux 6.9 tcp_send_reset has struct sockaddr_in6 in place of addresses and ports.
    template = _RESET_BY_ADDRESSES if "saddr_v6" in form.fields else _RESET_BY_SOCKADDR
    name = event.partition("/")[2]
    return template % {"event": name, "what": 3 if name == "tcp_send_reset" else 4}


def read_format(tracefs: Path, event: str) -> TraceFormat:
    """CapabilityError if this kernel has no such tracepoint, or it may not be read."""
    path = tracefs / "events" / event / "format"
    try:
        return TraceFormat(event, path.read_text())
    except FileNotFoundError as error:
        raise CapabilityError(f"this kernel ({os.uname().release}) has no tracepoint {event}") from error
    except OSError as error:
        raise CapabilityError(f"cannot read {path}: {error.strerror}; needs root") from error


class KernelSummary:
    """Counts of a kind (kernel_trace.KINDS) while the `with` block lasts."""

    def __init__(self, kind: str) -> None:
        """CapabilityError where bcc, headers or tracepoints are missing, with how to get them."""
        tracefs = find_tracefs(Path("/proc/mounts").read_text())
        self._formats = {event: read_format(tracefs, event) for event in _EVENTS[kind]}
        self._bpf = _compile(make_program(kind, self._formats), find_headers())
        for event in _EVENTS[kind]:
            function = f"on_{event.partition('/')[2]}"
            self._bpf.attach_tracepoint(tp=event.replace("/", ":").encode(), fn_name=function.encode())

    def rows(self) -> list[SummaryRow]:
        """What has been counted so far, the most frequent first."""
        found = [self._row(key, row) for key, row in self._bpf[b"rows"].items()]
        return sorted(found, key=lambda row: -row.count)

    def missed(self) -> int:
        """Events that no row had room for."""
        return int(self._bpf[b"missed"][0].value)

    def _row(self, key: Any, row: Any) -> SummaryRow:
        what = _WHAT[key.what]
        if what == "dropped":
            reason = self._formats["skb/kfree_skb"].symbols.get(key.reason, str(key.reason))
            where = self._bpf.ksym(key.location).decode(errors="replace")
            return SummaryRow(what, row.count, reason=reason, location=where)
        timed = any(row.slots)
        return SummaryRow(
            what,
            row.count,
            format_address(bytes(key.source)),
            key.source_port,
            format_address(bytes(key.target)),
            key.target_port,
            row.total_us / row.count if timed else 0.0,
            tuple(row.slots) if timed else (),
        )

    def close(self) -> None:
        """End counting; may be called again."""
        self._bpf.cleanup()

    def __enter__(self) -> KernelSummary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _compile(program: str, headers: KernelHeaders) -> Any:
    try:
        from bcc import BPF
    except ImportError as error:
        raise CapabilityError(
            "bcc is not there, which counts in the kernel; install it: apt-get install python3-bpfcc (for the "
            "interpreter that runs nodeagent); without --summary no bcc is needed"
        ) from error
    own = os.environ.get(VARIABLE)
    if headers.source:
        os.environ[VARIABLE] = headers.source
    try:
        return BPF(text=program.encode(), cflags=[*headers.flags, "-Wno-everything"])
    except Exception as error:  # bcc raises plain Exceptions
        raise CapabilityError(
            f"bcc cannot load its program: {str(error)[:200]}; it said more above"
        ) from error
    finally:
        if own is None:
            os.environ.pop(VARIABLE, None)
