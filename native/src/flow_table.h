/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections past the engine that live, by the cookies of their clients' sockets: what has been told of them, so that
 * bytes are counted once.
 */
#ifndef NODEAGENT_FLOW_TABLE_H
#define NODEAGENT_FLOW_TABLE_H

#include "bypass_abi.h"
#include "flow_names.h"

/* Payload, as the client's socket sees it. */
typedef struct na_flow_bytes {
  uint64_t sent;
  uint64_t received;
} na_flow_bytes;

/* How far a connection came. */
enum na_flow_fate {
  NA_FLOW_MET = 0,        /* established */
  NA_FLOW_UNANSWERED = 1, /* nobody has accepted it */
  NA_FLOW_REFUSED = 2,    /* connect() has failed by policy: nobody was asked */
};

typedef struct na_flow {
  struct na_flow *next; /* in its bucket */
  struct na_bypass_key ends;
  struct na_bypass facts;
  na_flow_labels labels;
  uint64_t opened_ns;    /* CLOCK_MONOTONIC; 0: by an earlier agent's account */
  na_flow_bytes carried; /* as the last sample says */
  na_flow_bytes told;    /* of that, in statistics */
  uint32_t srtt_us;
  uint32_t retransmits;
  uint32_t seen;  /* round of samples in which it was seen last */
  bool inherited; /* from an earlier agent, and not sampled yet: it has told of what was carried */
  char *detail;   /* why it was revoked; NULL: it was not */
  enum na_flow_fate fate;
} na_flow;

typedef struct na_flow_table {
  na_flow **buckets; /* a power of two of them */
  uint32_t size;
  uint32_t n;
  uint32_t max;
} na_flow_table;

void na_flow_table_init(na_flow_table *table, uint32_t max);
void na_flow_table_free(na_flow_table *table);
na_flow *na_flow_table_find(const na_flow_table *table, uint64_t cookie);
/* A zeroed flow of this cookie, which is not in the table yet. NULL: it is full, or for want of memory. */
na_flow *na_flow_table_add(na_flow_table *table, uint64_t cookie);
void na_flow_table_remove(na_flow_table *table, na_flow *flow);
/* Walk: the flow after `flow` (NULL: the first), or NULL at the end. Take the next one before removing one. */
na_flow *na_flow_table_next(const na_flow_table *table, const na_flow *flow);

#endif
