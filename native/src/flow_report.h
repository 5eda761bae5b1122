/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections past the engine in statistics and access records: on both sides what the engine would tell of a
 * connection between workloads of its own (neighbours.h, report.c).
 */
#ifndef NODEAGENT_FLOW_REPORT_H
#define NODEAGENT_FLOW_REPORT_H

#include "access.h"
#include "flow_table.h"
#include "stats.h"

typedef struct na_flow_reporter {
  na_stats stats;
  na_access_ring access;
  na_counters losses; /* what had no room, as a worker counts it */
  uint64_t wall_us;   /* CLOCK_REALTIME at CLOCK_MONOTONIC 0 */
} na_flow_reporter;

/* How a connection ended. Flags are a set of enum na_flag, as each side has them. */
typedef struct na_flow_end {
  uint64_t at_ns;
  uint32_t source_flags;
  uint32_t destination_flags;
  const char *detail;  /* of the destination, "" none */
  const char *failure; /* of the upstream, as who tried to reach it sees it; NULL: none */
} na_flow_end;

/* -ENOMEM. Nothing to free then. */
int na_flow_reporter_init(na_flow_reporter *reporter, const na_flows_config *config);
void na_flow_reporter_free(na_flow_reporter *reporter);
/* Now and then: the wall clock may be set. */
void na_flow_reporter_set_clock(na_flow_reporter *reporter);
/* Whether another connection's records have room. */
bool na_flow_reporter_has_room(const na_flow_reporter *reporter);

void na_flow_report_opened(na_flow_reporter *reporter, const na_flow *flow);
/* What was carried since the last time. */
void na_flow_report_bytes(na_flow_reporter *reporter, na_flow *flow);
void na_flow_report_closed(na_flow_reporter *reporter, const na_flow *flow, const na_flow_end *end);
/* Policies that have allowed a connection. */
void na_flow_report_allowed(na_flow_reporter *reporter, const na_flow_name *name);
/* The one that has not; in `name`. */
void na_flow_report_denied(na_flow_reporter *reporter, const na_flow_name *name);

#endif
