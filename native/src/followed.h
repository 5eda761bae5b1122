/* SPDX-License-Identifier: Apache-2.0
 *
 * What na_flows is made of, and its part in the engine's answers.
 */
#ifndef NODEAGENT_FOLLOWED_H
#define NODEAGENT_FOLLOWED_H

#include "flow_report.h"

struct na_engine;
struct ring_buffer;

/* X(constant, name, gauge, help) */
#define NA_FLOW_COUNTER_LIST(X)                                                                                        \
  X(OPENED, "cx_total", 0, "Connections established past the engine")                                                  \
  X(ACTIVE, "cx_active", 1, "Connections past the engine that are followed")                                           \
  X(FAILED, "cx_failed_total", 0, "Connections past the engine that were not established")                             \
  X(DENIED, "cx_denied_total", 0, "Connections refused by policy at connect()")                                        \
  X(RESET, "cx_reset_total", 0, "Connections past the engine that ended by a reset, of either side or by the agent")   \
  X(UNFOLLOWED, "cx_unfollowed_total", 0, "Connections told of only at their end: max_flows reached")                  \
  X(LOST, "cx_lost_total", 0, "Connections whose end nothing told of")                                                 \
  X(UNNAMED, "cx_unnamed_total", 0, "Ends of connections at which no workload is enrolled any more")                   \
  X(MALFORMED, "events_malformed_total", 0, "Events that cannot be read")                                              \
  X(RETRANSMITS, "retransmits_total", 0, "Segments that clients sent again")                                           \
  X(RTT_COUNT, "rtt_count", 0, "Connections whose round trip time is in rtt_us_sum")                                   \
  X(RTT_SUM, "rtt_us_sum", 0, "Smoothed round trip times at the end of connections, in microseconds")

enum na_flow_counter {
#define X(constant, name, gauge, help) NA_FLOW_##constant,
  NA_FLOW_COUNTER_LIST(X)
#undef X
      NA_FLOW_COUNTER_COUNT
};

struct na_flows {
  struct na_engine *engine;
  struct ring_buffer *ring;
  na_flow_reporter reporter;
  na_flow_table table;
  na_flow_cache names;
  uint64_t counters[NA_FLOW_COUNTER_COUNT];
  uint32_t life;
  uint32_t round;
  uint32_t left;               /* events that na_flows_read() may still read */
  bool holding;                /* `held` waits for names */
  struct na_bypass_event held; /* the last one read */
  na_flow_question asked;      /* the last question */
  uint32_t *used;              /* tags for na_engine_usage, `used_n` of them, of which `used_told` have been told */
  size_t used_n;
  size_t used_told;
};

/* na_flows_new() without a ring buffer. */
int na_flows_create(struct na_engine *engine, const na_flows_config *config, na_flows **out);
/* Tell of an event, as read from the ring buffer; false: no other one now, for want of names (`holding`) or of room. */
bool na_flows_take(na_flows *flows, const void *event, size_t size);
/* The name of a connection; NULL: it has to be asked for, `flows->asked` says what. `denied`: the event of a denial. */
na_flow_name *na_flows_look_up(na_flows *flows, const struct na_bypass_key *ends, const struct na_bypass *facts,
                               const struct na_bypass_event *denied);
/* Count and report the end of a connection, which need not be in the table. */
void na_flows_end(na_flows *flows, na_flow *flow, const na_flow_end *end);

/* For the engine's calls of similar names. */
size_t na_flows_take_stats(na_flows *flows, na_stat_row *rows, size_t max);
size_t na_flows_take_access(na_flows *flows, na_access_record *records, size_t max);
size_t na_flows_usage(na_flows *flows, uint32_t *tags, size_t max);
size_t na_flows_list(const na_flows *flows, na_connection_info *out, size_t max);

#endif
