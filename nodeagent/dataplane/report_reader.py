"""Reads statistics, access records, counters and connections out of the engine, and turns numbers into
values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.builder import ClusterTag, Tagged
from nodeagent.dataplane.counters import CounterTable
from nodeagent.dataplane.report import (
    AccessRecord,
    Connection,
    ConnectionState,
    Counter,
    Decision,
    LineFormat,
    Lines,
    Outcome,
    StatKind,
    StatRow,
    WireProtocol,
)
from nodeagent.dataplane.report_lines import BATCH, LineWriter
from nodeagent.dataplane.tags import TagTable
from nodeagent.errors import EngineError
from nodeagent.snapshot.values import Cluster, Endpoint, InboundPort


def _text(field: Any) -> str:
    """A C character array as text; bytes that are not UTF-8 stay visible as backslash escapes."""
    return str(ffi.string(field).decode(errors="backslashreplace"))


def _address(field: Any) -> bytes:
    return bytes(ffi.buffer(field))


def _principal(engine: Any, number: int) -> str:
    """A peer's SPIFFE ID; "" for none."""
    return _text(lib.na_engine_principal(engine, number)) if number else ""


def _policy(engine: Any, number: int) -> str:
    """A policy's name; "" for none, `overflow` for one that had no room among the names."""
    return (_text(lib.na_engine_policy(engine, number)) or "overflow") if number else ""


class ReportReader:
    """Reads from one engine. The caller holds the engine's lock."""

    def __init__(self, tags: TagTable[Tagged], uids: TagTable[str]) -> None:
        self._tags = tags
        self._uids = uids
        self._rows = ffi.new("na_stat_row[]", BATCH)
        self._decisions: dict[Decision, int] = {}
        self._records: Any = None
        self._writer: LineWriter | None = None
        self._counters = CounterTable(lib.na_engine_counter_info)

    def stats(self, engine: Any) -> list[StatRow]:
        """All rows since the last call, but for decisions of policies, which are kept for decisions()."""
        rows = _drain(
            lambda: lib.na_engine_drain_stats(engine, self._rows, BATCH),
            self._rows,
            lambda row: self._row_or_decision(engine, row),
        )
        return [row for row in rows if row is not None]

    def decisions(self) -> dict[Decision, int]:
        """How often policies decided, of the rows that stats() has read since the last call."""
        found, self._decisions = self._decisions, {}
        return found

    def _row_or_decision(self, engine: Any, row: Any) -> StatRow | None:
        if row.kind != lib.NA_STAT_POLICY:
            return self._row(engine, row)
        decision = Decision(
            workload=self._uids.resolve(row.workload) or "",
            policy=_policy(engine, row.cluster_tag),
            outcome=Outcome(row.flags),
            protocol=WireProtocol(row.protocol),
        )
        self._decisions[decision] = self._decisions.get(decision, 0) + row.count
        return None

    def access(self, engine: Any) -> list[AccessRecord]:
        """All records since the last call."""
        records = self._record_buffer()
        return _drain(
            lambda: lib.na_engine_drain_access(engine, records, BATCH),
            records,
            lambda record: self._record(engine, record),
        )

    def lines(self, engine: Any, form: LineFormat) -> list[Lines]:
        """All records since the last call, as lines."""
        if self._writer is None:
            self._writer = LineWriter(self._tags)
        records = self._record_buffer()
        found = []
        count = BATCH
        while count == BATCH:
            count = lib.na_engine_drain_access(engine, records, BATCH)
            if count < 0:
                raise EngineError(f"the engine cannot report: error {-count}")
            if count:
                found.append(self._writer.format(engine, records, count, form))
        return found

    def _record_buffer(self) -> Any:
        """0.4 MB, which an agent that keeps no access log does without."""
        if self._records is None:
            self._records = ffi.new("na_access_record[]", BATCH)
        return self._records

    def counters(self, engine: Any) -> list[Counter]:
        """All counters and gauges."""
        return self._counters.read(lambda index: lib.na_engine_counter(engine, index))

    def connections(self, engine: Any, limit: int) -> list[Connection]:
        """Up to `limit` live connections."""
        infos = ffi.new("na_connection_info[]", limit)
        count = lib.na_engine_connections(engine, infos, limit)
        if count < 0:
            raise EngineError(f"the engine cannot list its connections: error {-count}")
        return [self._connection(engine, infos[index]) for index in range(count)]

    # -- one by one --

    def _cluster_and_port(self, tag: int, inbound: int) -> tuple[Cluster | None, InboundPort | None]:
        """cluster_tag: the cluster chosen outbound, the port inbound."""
        value = self._tags.resolve(tag)
        if inbound:
            return None, value if isinstance(value, InboundPort) else None
        return (value.cluster if isinstance(value, ClusterTag) else None), None

    def _endpoint(self, tag: int) -> Endpoint | None:
        value = self._tags.resolve(tag)
        return value if isinstance(value, Endpoint) else None

    def _row(self, engine: Any, row: Any) -> StatRow:
        cluster, port = self._cluster_and_port(row.cluster_tag, row.inbound)
        return StatRow(
            kind=StatKind(row.kind),
            workload=self._uids.resolve(row.workload) or "",
            inbound=bool(row.inbound),
            protocol=WireProtocol(row.protocol),
            peer=_address(row.peer),
            cluster=cluster,
            endpoint=self._endpoint(row.endpoint_tag),
            inbound_port=port,
            flags=row.flags,
            status=row.status,
            count=row.count,
            bytes_in=row.bytes_in,
            bytes_out=row.bytes_out,
            duration_us=row.duration_us,
            duration=tuple(ffi.unpack(row.duration, lib.NA_DURATION_BUCKETS)),
            request_size=tuple(ffi.unpack(row.request_size, lib.NA_SIZE_BUCKETS)),
            response_size=tuple(ffi.unpack(row.response_size, lib.NA_SIZE_BUCKETS)),
            principal=_principal(engine, row.principal),
            mutual_tls=bool(row.mutual_tls),
        )

    def _record(self, engine: Any, record: Any) -> AccessRecord:
        cluster, port = self._cluster_and_port(record.cluster_tag, record.inbound)
        return AccessRecord(
            workload=self._uids.resolve(record.workload) or "",
            inbound=bool(record.inbound),
            protocol=WireProtocol(record.protocol),
            http_minor=record.http_minor,
            start_us=record.start_us,
            duration_us=record.duration_us,
            upstream_us=record.upstream_us,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            status=record.status,
            flags=record.flags,
            cluster=cluster,
            endpoint=self._endpoint(record.endpoint_tag),
            inbound_port=port,
            downstream_remote=(_address(record.downstream_remote), record.downstream_remote_port),
            downstream_local=(_address(record.downstream_local), record.downstream_local_port),
            upstream_remote=(_address(record.upstream_remote), record.upstream_remote_port),
            upstream_local=(_address(record.upstream_local), record.upstream_local_port),
            method=_text(record.method),
            authority=_text(record.authority),
            path=_text(record.path),
            user_agent=_text(record.user_agent),
            forwarded_for=_text(record.forwarded_for),
            request_id=_text(record.request_id),
            route=_text(record.route),
            cluster_name=_text(record.cluster),
            detail=_text(record.detail),
            upstream_failure=_text(record.upstream_failure),
            principal=_principal(engine, record.principal),
            mutual_tls=bool(record.mutual_tls),
            rtt_us=record.rtt_us if record.bypassed else None,
            retransmits=record.retransmits,
            audited_by=_policy(engine, record.audit),
        )

    def _connection(self, engine: Any, info: Any) -> Connection:
        return Connection(
            id=info.id,
            workload=self._uids.resolve(info.workload) or "",
            worker=info.worker,
            inbound=bool(info.inbound),
            protocol=WireProtocol(info.protocol),
            state=ConnectionState(info.state),
            age_ms=info.age_ms,
            bytes_in=info.bytes_in,
            bytes_out=info.bytes_out,
            remote=(_address(info.remote), info.remote_port),
            local=(_address(info.local), info.local_port),
            cluster=_text(info.cluster) or self._cluster_name(info.cluster_tag),
            principal=_principal(engine, info.principal),
        )

    def _cluster_name(self, tag: int) -> str:
        value = self._tags.resolve(tag)
        return value.cluster.name if isinstance(value, ClusterTag) else ""


def _drain(take: Callable[[], int], array: Any, convert: Callable[[Any], Any]) -> list[Any]:
    """Call `take` until it leaves room in the array; each element converted."""
    found: list[Any] = []
    while True:
        count = take()
        if count < 0:
            raise EngineError(f"the engine cannot report: error {-count}")
        found.extend(convert(array[index]) for index in range(count))
        if count < BATCH:
            return found
