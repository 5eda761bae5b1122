"""Follows connections past the engine: events of programs, samples of sockets, answers to what the library asks of them
(native/include/nodeagent/flows.h). What comes of it is among the engine's own statistics and access records."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.bypass_flows import LiveFlow
from nodeagent.dataplane.counters import CounterTable
from nodeagent.dataplane.flow_names import FlowNamer, FlowNames, FlowQuestion
from nodeagent.dataplane.report import Counter
from nodeagent.dataplane.sock_diag import TcpSocket
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError

logger = logging.getLogger(__name__)

_EVENTS: Final = 8192
"""Read at once; more than the ring buffer holds."""
_NAMESPACES: Final = 4096


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """na_flows_config."""

    life: int
    """Of this agent."""
    max_flows: int
    """Followed at once; others are told of when they have ended."""
    access_log: bool


class FlowReader:
    """Follows on behalf of one engine, from the thread that drains it. close() before the engine's."""

    def __init__(
        self, engine: Any, lock: threading.Lock, ring: int, limits: FlowLimits, namer: FlowNamer
    ) -> None:
        """`engine` is an na_engine, `lock` what guards it, `ring` the descriptor of `events`, which stays the caller's.
        EngineError if it cannot be read."""
        self._lock = lock
        self._namer = namer
        self._question = ffi.new("na_flow_question *")
        self._counters = CounterTable(lib.na_flows_counter_info)
        config = ffi.new("na_flows_config *", asdict(limits))
        slot = ffi.new("na_flows **")
        with lock:
            _check(lib.na_flows_new(engine, ring, config, slot), "follow connections past the engine")
        self._flows = slot[0]

    def close(self) -> None:
        """Follow no more; may be called again."""
        with self._lock:
            if self._flows is not None:
                lib.na_flows_free(self._flows)
                self._flows = None

    def fileno(self) -> int:
        """Readable when many events wait."""
        return int(lib.na_flows_fd(self._flows))

    def read(self) -> bool:
        """Read the events that wait; returns whether more are left, for want of room for access records."""
        while True:
            step = self._call(lib.na_flows_read, _EVENTS, self._question)
            if step != lib.NA_FLOWS_UNNAMED:
                return bool(step == lib.NA_FLOWS_MORE)
            self._answer()

    def adopt(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Follow the connections of an earlier agent among these entries of `bypassed`."""
        for key, value in entries:
            while self._call(lib.na_flows_adopt, key, value, self._question) == lib.NA_FLOWS_UNNAMED:
                self._answer()

    def _call(self, function: Any, *arguments: Any) -> int:
        with self._lock:
            return _check(function(self._flows, *arguments), "follow connections past the engine")

    def _answer(self) -> None:
        """What the namer has to say; a defect in it must not stop the rest."""
        question = _question(self._question)
        try:
            names = self._namer.answer(question)
        except Exception:
            logger.exception("cannot say what connection past the engine this is: %s", question)
            names = FlowNames()
        # Kept in names: a struct does not keep what its pointers lead to.
        texts = [
            ffi.new("char[]", c_string(text))
            for text in (names.source_principal, names.destination_principal, names.policy, names.detail)
        ]
        policies = [ffi.new("char[]", c_string(policy)) for policy in names.policies]
        array = ffi.new("char *[]", policies)
        answer = ffi.new(
            "na_flow_names *",
            {
                "source": names.source,
                "destination": names.destination,
                "asked_tag": names.asked_tag,
                "cluster_tag": names.cluster_tag,
                "endpoint_tag": names.endpoint_tag,
                "inbound_tag": names.inbound_tag,
                "source_principal": texts[0],
                "destination_principal": texts[1],
                "policies": array,
                "n_policies": len(policies),
                "policy": texts[2],
                "detail": texts[3],
            },
        )
        self._call(lib.na_flows_name, answer)

    def forget_names(self) -> None:
        """Ask anew: what is in force has changed."""
        with self._lock:
            lib.na_flows_forget_names(self._flows)

    # -- samples --

    def namespaces(self) -> list[int]:
        """Cookies of the clients' namespaces of connections that live."""
        cookies = ffi.new("uint64_t[]", _NAMESPACES)
        with self._lock:
            count = lib.na_flows_namespaces(self._flows, cookies, _NAMESPACES)
        return list(cookies[0:count])

    def note(self, sockets: Sequence[TcpSocket], looked_at: Sequence[int]) -> None:
        """Count what connections have carried until now. These are all that live in the namespaces `looked_at`: what is
        missing there twice is gone."""
        packed = ffi.new(
            "na_flow_sample[]",
            [(each.cookie, each.sent, each.received, each.rtt_us, each.retransmits) for each in sockets],
        )
        cookies = ffi.new("uint64_t[]", list(looked_at))
        with self._lock:
            lib.na_flows_round(self._flows, packed, len(sockets), cookies, len(looked_at))

    def note_revoked(self, live: LiveFlow) -> None:
        """A connection is about to be ended because it may not be any more: its record will say why."""
        detail = self._namer.denial(FlowQuestion.of(live.ends, live.flow))
        with self._lock:
            lib.na_flows_revoked(self._flows, live.flow.socket_cookie, c_string(detail))

    def counters(self) -> list[Counter]:
        """Counters and gauges; their names are without prefix."""
        with self._lock:
            return self._counters.read(lambda index: lib.na_flows_counter(self._flows, index))


def _check(code: int, what: str) -> int:
    if code < 0:
        raise EngineError(f"cannot {what}: error {-code}")
    return code


def _question(asked: Any) -> FlowQuestion:
    return FlowQuestion(
        source=bytes(ffi.buffer(asked.source)),
        destination=bytes(ffi.buffer(asked.destination)),
        asked=bytes(ffi.buffer(asked.asked)),
        netns_cookie=asked.netns_cookie,
        life=asked.life,
        source_workload=asked.source_workload,
        destination_workload=asked.destination_workload,
        service=asked.service,
        denied=bool(asked.denied),
        policy=asked.policy,
        destination_port=asked.destination_port,
        asked_port=asked.asked_port,
    )
