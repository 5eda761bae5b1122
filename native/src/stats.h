/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's statistics: a bounded hash table from key to na_stat_row, in two copies. The worker fills one; draining
 * swaps them (in the worker, O(1)) and then reads the other at leisure on the control thread.
 */
#ifndef NODEAGENT_STATS_H
#define NODEAGENT_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nodeagent/engine.h>

#include "counters.h"

typedef struct na_stat_table {
  na_stat_row *rows;
  uint32_t *index; /* row + 1, 0 empty; twice as many as rows, a power of two */
  uint32_t mask;
  uint32_t size;
  uint32_t n;
} na_stat_table;

typedef struct na_stats {
  na_stat_table tables[2];
  uint32_t filling; /* worker's */
  uint32_t drained; /* control thread: next row of the other table to hand out */
  na_counters *counters;
} na_stats;

/* The identity of a row. */
typedef struct na_stat_key {
  uint32_t kind;
  uint32_t workload;
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t flags;
  uint16_t status;
  uint8_t inbound;
  uint8_t protocol;
  uint8_t peer[16];
  uint32_t principal;
  uint32_t mutual_tls;
} na_stat_key;

int na_stats_init(na_stats *stats, uint32_t rows, na_counters *counters);
void na_stats_free(na_stats *stats);
/* Worker: the row to add to; NULL (and counted) when the table is full. The caller adds to `count` and the rest. */
na_stat_row *na_stats_row(na_stats *stats, const na_stat_key *key);
/* Add one observation to the histograms of a row: a finished request. */
void na_stats_request(na_stat_row *row, uint64_t duration_us, uint64_t request_bytes, uint64_t response_bytes);
/* Worker: fill the other table from now on. The control thread must have emptied it (na_stats_take). */
void na_stats_swap(na_stats *stats);
/* Control thread: rows of the table that is not being filled, from where the last call ended; it is empty and ready
 * for the next swap when fewer than max come back. */
size_t na_stats_take(na_stats *stats, na_stat_row *out, size_t max);
/* Control thread: whether rows are left from the last swap. */
bool na_stats_left(const na_stats *stats);

#endif
