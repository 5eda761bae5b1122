"""Python and C agree on the layouts of bypass: a C program writes each struct, its bytes are what pack() makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness import require
from harness.bpf_source import INCLUDE

from nodeagent.dataplane import bypass_layout as layout

ADDRESS, OTHER = bytes(range(1, 17)), bytes(range(101, 117))
FLOW = layout.Flow(ADDRESS, 80, 1 << 40, 1 << 41, 1 << 42, 7, 8, 9, 10)
ENDS = layout.Ends(ADDRESS, OTHER, 40_000, 8080)
EVENT = layout.Event(
    ENDS, FLOW, 1 << 43, 1 << 44, 1 << 45, layout.EventKind.CLOSED, layout.End.RESET, 11, 12, 13, 14
)

PROGRAM = """
#include <stdio.h>
#include <string.h>
#include "direct_abi.h"
#include "nodeagent_abi.h"
static void show(const char *name, const void *value, size_t size) {
  printf("%s ", name);
  for (size_t i = 0; i < size; i++)
    printf("%02x", ((const unsigned char *)value)[i]);
  printf("\\n");
}
#define SHOW(type, ...) { struct type it; memset(&it, 0, sizeof(it)); __VA_ARGS__; show(#type, &it, sizeof(it)); }
static void address(struct na_address *out, int first) {
  for (int i = 0; i < 16; i++)
    ((unsigned char *)out)[i] = (unsigned char)(first + i);
}
static void fill_ends(struct na_bypass_key *ends) {
  address(&ends->source, 1), address(&ends->destination, 101);
  ends->source_port = 40000, ends->destination_port = 8080;
}
static void fill_flow(struct na_bypass *flow) {
  address(&flow->asked.address, 1), flow->asked.port = 80;
  flow->netns_cookie = 1ULL << 40, flow->socket_cookie = 1ULL << 41, flow->started_ns = 1ULL << 42;
  flow->life = 7, flow->source = 8, flow->destination = 9, flow->service = 10;
}
int main(void) {
  SHOW(na_life, it.number = 5)
  SHOW(na_source, it.workload = 5, it.view = 6)
  SHOW(na_service_key, address(&it.address, 1), it.view = 5, it.port = 80, it.protocol = 6)
  SHOW(na_service, it.id = 5, it.slots = 6)
  SHOW(na_backend_key, it.service = 5, it.slot = 6)
  SHOW(na_backend, address(&it.address, 1), it.workload = 5, it.port = 8080)
  SHOW(na_access_key, it.source = 5, it.destination = 6, it.port = 8080, it.protocol = 6)
  SHOW(na_access_entry, it.access = NA_ACCESS_DENY, it.policy = 6)
  SHOW(na_here, it.life = 5, it.workload = 6)
  SHOW(na_redirected, it.cookie = 1ULL << 42, it.sent = 1ULL << 40, it.received = 1ULL << 41)
  SHOW(na_bypass_key, fill_ends(&it))
  SHOW(na_bypass, fill_flow(&it))
  SHOW(na_bypass_event, fill_ends(&it.ends), fill_flow(&it.flow), it.at_ns = 1ULL << 43, it.sent = 1ULL << 44,
       it.received = 1ULL << 45, it.kind = NA_BYPASS_CLOSED, it.end = NA_BYPASS_END_RESET, it.policy = 11,
       it.srtt_us = 12, it.retransmits = 13, it.error = 14)
}
"""

PACKED = {
    "na_life": layout.Life(5).pack(),
    "na_source": layout.Source(5, 6).pack(),
    "na_service_key": layout.ServiceKey(ADDRESS, 5, 80, 6).pack(),
    "na_service": layout.Service(5, 6).pack(),
    "na_backend_key": layout.BackendKey(5, 6).pack(),
    "na_backend": layout.Backend(ADDRESS, 5, 8080).pack(),
    "na_access_key": layout.AccessKey(5, 6, 8080, 6).pack(),
    "na_access_entry": layout.AccessEntry(layout.Access.DENY, 6).pack(),
    "na_here": layout.Here(5, 6).pack(),
    "na_redirected": layout.Redirected(1 << 42, 1 << 40, 1 << 41).pack(),
    "na_bypass_key": ENDS.pack(),
    "na_bypass": FLOW.pack(),
}


def test_python_and_c_agree(tmp_path: Path) -> None:
    require("cc")
    source, program = tmp_path / "layouts.c", tmp_path / "layouts"
    source.write_text(PROGRAM)
    subprocess.run(["cc", f"-I{INCLUDE}", str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name: bytes.fromhex(text) for name, text in map(str.split, lines)}
    event = found.pop("na_bypass_event")
    assert found == PACKED
    assert layout.Event.unpack(event) == EVENT


def test_what_is_read_is_what_was_written() -> None:
    assert layout.Ends.unpack(ENDS.pack()) == ENDS
    assert layout.Flow.unpack(FLOW.pack()) == FLOW
    assert layout.Redirected.unpack(layout.Redirected(4, 5, 6).pack()) == layout.Redirected(4, 5, 6)
    assert layout.Life.unpack(layout.Life(5).pack()) == layout.Life(5)
