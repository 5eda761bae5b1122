/* SPDX-License-Identifier: Apache-2.0
 *
 * What is looked at now and then of connections past the engine: samples of those that live, tags in use, listings,
 * counters.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "followed.h"

/* Rounds in which a connection's socket may be missing: one that has ended a moment ago is told of by an event. */
#define ROUNDS_MISSED 2

/* ---- namespaces ---- */

static bool is_among(uint64_t cookie, const uint64_t *cookies, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (cookies[i] == cookie)
      return true;
  return false;
}

size_t na_flows_namespaces(const na_flows *flows, uint64_t *cookies, size_t max) {
  size_t n = 0;
  const na_flow *flow = NULL;
  while (n < max && (flow = na_flow_table_next(&flows->table, flow)))
    if (!is_among(flow->facts.netns_cookie, cookies, n))
      cookies[n++] = flow->facts.netns_cookie;
  return n;
}

/* ---- samples ---- */

static void take_sample(na_flows *flows, const na_flow_sample *sample) {
  na_flow *flow = na_flow_table_find(&flows->table, sample->socket_cookie);
  if (!flow)
    return;
  flow->seen = flows->round;
  flow->srtt_us = sample->srtt_us;
  flow->retransmits = sample->retransmits;
  if (sample->sent < flow->told.sent || sample->received < flow->told.received)
    return; /* they never get less */
  flow->carried = (na_flow_bytes){sample->sent, sample->received};
  if (flow->inherited)
    flow->told = flow->carried;
  flow->inherited = false;
  /* One of an earlier life may not be known well enough yet (na_flows_adopt). */
  if (flow->labels.cluster_tag || flow->facts.life == flows->life)
    na_flow_report_bytes(&flows->reporter, flow);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void give_up(na_flows *flows, na_flow *flow) {
  const na_flow_end end = {.at_ns = now_ns(), .detail = flow->detail ? flow->detail : ""};
  flows->counters[NA_FLOW_LOST]++;
  na_flows_end(flows, flow, &end);
  na_flow_table_remove(&flows->table, flow);
}

void na_flows_round(na_flows *flows, const na_flow_sample *samples, size_t n, const uint64_t *looked_at,
                    size_t n_namespaces) {
  flows->round++;
  for (size_t i = 0; i < n; i++)
    take_sample(flows, &samples[i]);
  na_flow *flow = na_flow_table_next(&flows->table, NULL), *next;
  for (; flow; flow = next) {
    next = na_flow_table_next(&flows->table, flow);
    if (flows->round - flow->seen >= ROUNDS_MISSED && is_among(flow->facts.netns_cookie, looked_at, n_namespaces))
      give_up(flows, flow);
  }
}

void na_flows_revoked(na_flows *flows, uint64_t socket_cookie, const char *detail) {
  na_flow *flow = na_flow_table_find(&flows->table, socket_cookie);
  if (!flow)
    return;
  free(flow->detail);
  flow->detail = strdup(detail);
}

/* ---- tags in use ---- */

static int compare_tags(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static void note_tag(na_flows *flows, uint32_t tag) {
  if (tag)
    flows->used[flows->used_n++] = tag;
}

static void drop_repeated(na_flows *flows) {
  qsort(flows->used, flows->used_n, sizeof *flows->used, compare_tags);
  size_t kept = 0;
  for (size_t i = 0; i < flows->used_n; i++)
    if (i == 0 || flows->used[i] != flows->used[i - 1])
      flows->used[kept++] = flows->used[i];
  flows->used_n = kept;
}

/* Of the connections that live, and of those that began since the last time. */
static void gather_tags(na_flows *flows) {
  flows->used_n = flows->used_told = 0;
  flows->used = malloc(2 * ((size_t)flows->table.n + flows->names.n + 1) * sizeof *flows->used);
  if (!flows->used)
    return;
  for (const na_flow *flow = NULL; (flow = na_flow_table_next(&flows->table, flow));) {
    note_tag(flows, flow->labels.asked_tag);
    note_tag(flows, flow->labels.cluster_tag);
  }
  for (uint32_t i = 0; i < flows->names.size; i++) {
    na_flow_name *name = flows->names.slots[i];
    if (!name || !name->used)
      continue;
    note_tag(flows, name->labels.asked_tag);
    note_tag(flows, name->labels.cluster_tag);
    name->used = false;
  }
  drop_repeated(flows);
}

size_t na_flows_usage(na_flows *flows, uint32_t *tags, size_t max) {
  if (!flows->used)
    gather_tags(flows);
  size_t n = flows->used_n - flows->used_told;
  if (n > max)
    n = max;
  if (n)
    memcpy(tags, flows->used + flows->used_told, n * sizeof *tags);
  flows->used_told += n;
  if (n < max) { /* the caller has all */
    free(flows->used);
    flows->used = NULL;
  }
  return n;
}

/* ---- for the engine's answers ---- */

size_t na_flows_take_stats(na_flows *flows, na_stat_row *rows, size_t max) {
  if (!na_stats_left(&flows->reporter.stats))
    na_stats_swap(&flows->reporter.stats);
  return na_stats_take(&flows->reporter.stats, rows, max);
}

size_t na_flows_take_access(na_flows *flows, na_access_record *records, size_t max) {
  return na_access_take(&flows->reporter.access, records, max);
}

static na_connection_info describe(const na_flow *flow, bool inbound, uint64_t now) {
  const na_flow_labels *labels = &flow->labels;
  na_connection_info info = {.id = flow->facts.socket_cookie,
                             .age_ms = (now - flow->facts.started_ns) / 1000000,
                             .bytes_in = flow->carried.sent,
                             .bytes_out = flow->carried.received,
                             .workload = inbound ? labels->destination : labels->source,
                             .inbound = inbound,
                             .state = 6,
                             .remote_port = flow->ends.source_port,
                             .local_port = inbound ? flow->ends.destination_port : flow->facts.asked.port,
                             .principal = inbound ? labels->source_principal : 0,
                             .cluster_tag = inbound ? 0 : labels->cluster_tag};
  memcpy(info.remote, &flow->ends.source, 16);
  memcpy(info.local, inbound ? &flow->ends.destination : &flow->facts.asked.address, 16);
  return info;
}

size_t na_flows_list(const na_flows *flows, na_connection_info *out, size_t max) {
  uint64_t now = now_ns();
  size_t n = 0;
  for (const na_flow *flow = NULL; (flow = na_flow_table_next(&flows->table, flow));)
    for (int inbound = 0; inbound < 2 && n < max; inbound++) {
      out[n] = describe(flow, inbound, now);
      n += out[n].workload != 0;
    }
  return n;
}

/* ---- counters ---- */

const na_counter_info *na_flows_counter_info(size_t index) {
  static const na_counter_info infos[] = {
#define X(constant, name, gauge, help) {name, help, gauge},
      NA_FLOW_COUNTER_LIST(X)
#undef X
  };
  return index < NA_FLOW_COUNTER_COUNT ? &infos[index] : NULL;
}

uint64_t na_flows_counter(const na_flows *flows, size_t index) {
  if (index == NA_FLOW_ACTIVE)
    return flows->table.n;
  return index < NA_FLOW_COUNTER_COUNT ? flows->counters[index] : 0;
}
