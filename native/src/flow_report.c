/* SPDX-License-Identifier: Apache-2.0 */
#include "flow_report.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define DEFAULT_STAT_ROWS      4096
#define DEFAULT_ACCESS_RECORDS 2048
/* Of one connection: its client's, and its server's. */
#define SIDES 2

int na_flow_reporter_init(na_flow_reporter *reporter, const na_flows_config *config) {
  uint32_t rows = config->stat_rows ? config->stat_rows : DEFAULT_STAT_ROWS;
  uint32_t records = config->access_records ? config->access_records : DEFAULT_ACCESS_RECORDS;
  *reporter = (na_flow_reporter){0};
  int error = na_stats_init(&reporter->stats, rows, &reporter->losses);
  if (!error && config->access_log)
    error = na_access_init(&reporter->access, records);
  if (error)
    na_flow_reporter_free(reporter);
  na_flow_reporter_set_clock(reporter);
  return error;
}

void na_flow_reporter_free(na_flow_reporter *reporter) {
  na_stats_free(&reporter->stats);
  na_access_free(&reporter->access);
}

static uint64_t clock_us(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void na_flow_reporter_set_clock(na_flow_reporter *reporter) {
  reporter->wall_us = clock_us(CLOCK_REALTIME) - clock_us(CLOCK_MONOTONIC);
}

bool na_flow_reporter_has_room(const na_flow_reporter *reporter) {
  return !reporter->access.records || na_access_room(&reporter->access) >= SIDES;
}

/* ---- statistics ---- */

static uint32_t workload_of(const na_flow_labels *labels, bool inbound) {
  return inbound ? labels->destination : labels->source;
}

/* Whether that side knows who is at the other end: a client whom nobody has answered does not. */
static bool has_met(const na_flow *flow, bool inbound) {
  return flow->labels.mutual_tls && (inbound || flow->fate == NA_FLOW_MET);
}

static uint32_t principal_of(const na_flow *flow, bool inbound) {
  const na_flow_labels *labels = &flow->labels;
  if (!has_met(flow, inbound))
    return 0;
  return inbound ? labels->source_principal : labels->destination_principal;
}

/* NULL also for a side that nobody reports of. */
static na_stat_row *row_of(na_flow_reporter *reporter, const na_flow *flow, bool inbound, uint32_t kind,
                           uint32_t flags) {
  const na_flow_labels *labels = &flow->labels;
  na_stat_key key = {.kind = kind,
                     .workload = workload_of(labels, inbound),
                     .cluster_tag = inbound ? labels->inbound_tag : labels->cluster_tag,
                     .endpoint_tag = inbound ? 0 : labels->endpoint_tag,
                     .flags = flags,
                     .inbound = inbound,
                     .principal = principal_of(flow, inbound),
                     .mutual_tls = has_met(flow, inbound)};
  memcpy(key.peer, inbound ? &flow->ends.source : &flow->ends.destination, sizeof key.peer);
  return key.workload ? na_stats_row(&reporter->stats, &key) : NULL;
}

void na_flow_report_opened(na_flow_reporter *reporter, const na_flow *flow) {
  for (int inbound = 0; inbound < SIDES; inbound++) {
    na_stat_row *row = row_of(reporter, flow, inbound, NA_STAT_TCP_OPENED, 0);
    if (row)
      row->count++;
  }
}

void na_flow_report_bytes(na_flow_reporter *reporter, na_flow *flow) {
  uint64_t in = flow->carried.sent - flow->told.sent, out = flow->carried.received - flow->told.received;
  flow->told = flow->carried;
  for (int inbound = 0; (in || out) && inbound < SIDES; inbound++) {
    na_stat_row *row = row_of(reporter, flow, inbound, NA_STAT_TCP_BYTES, 0);
    if (!row)
      continue;
    row->count++;
    row->bytes_in += in;
    row->bytes_out += out;
  }
}

static void count_decision(na_flow_reporter *reporter, const na_flow_name *name, uint32_t policy,
                           enum na_outcome outcome) {
  const na_stat_key key = {.kind = NA_STAT_POLICY,
                           .workload = name->labels.destination,
                           .cluster_tag = policy,
                           .flags = outcome,
                           .inbound = 1};
  na_stat_row *row = key.workload ? na_stats_row(&reporter->stats, &key) : NULL;
  if (row)
    row->count++;
}

void na_flow_report_allowed(na_flow_reporter *reporter, const na_flow_name *name) {
  for (uint32_t i = 0; i < name->npolicies; i++)
    count_decision(reporter, name, name->policies[i], NA_OUTCOME_ALLOWED);
}

void na_flow_report_denied(na_flow_reporter *reporter, const na_flow_name *name) {
  count_decision(reporter, name, name->denied_by, NA_OUTCOME_DENIED);
}

/* ---- access records ---- */

static uint64_t duration_us(uint64_t from_ns, uint64_t to_ns) {
  return from_ns && to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
}

static void fill_ends(na_access_record *record, const na_flow *flow, bool inbound) {
  const struct na_bypass_key *ends = &flow->ends;
  const struct na_bypass *facts = &flow->facts;
  memcpy(record->downstream_remote, &ends->source, 16);
  memcpy(record->downstream_local, inbound ? &ends->destination : &facts->asked.address, 16);
  record->downstream_remote_port = ends->source_port;
  record->downstream_local_port = inbound ? ends->destination_port : facts->asked.port;
  if (inbound && flow->fate == NA_FLOW_REFUSED)
    return; /* it got no further */
  memcpy(record->upstream_remote, &ends->destination, 16);
  record->upstream_remote_port = ends->destination_port;
  if (flow->fate != NA_FLOW_MET)
    return;
  memcpy(record->upstream_local, &ends->source, 16);
  record->upstream_local_port = ends->source_port;
}

static void fill_record(na_access_record *record, const na_flow *flow, const na_flow_end *end, bool inbound) {
  const na_flow_labels *labels = &flow->labels;
  record->workload = workload_of(labels, inbound);
  record->inbound = inbound;
  record->bypassed = 1;
  record->duration_us = duration_us(flow->facts.started_ns, end->at_ns);
  record->upstream_us = duration_us(flow->facts.started_ns, flow->opened_ns);
  record->bytes_in = flow->carried.sent;
  record->bytes_out = flow->carried.received;
  record->cluster_tag = inbound ? labels->inbound_tag : labels->cluster_tag;
  record->endpoint_tag = inbound ? 0 : labels->endpoint_tag;
  record->flags = inbound ? end->destination_flags : end->source_flags;
  record->principal = principal_of(flow, inbound);
  record->mutual_tls = has_met(flow, inbound);
  record->rtt_us = flow->srtt_us;
  record->retransmits = flow->retransmits;
  fill_ends(record, flow, inbound);
  if (inbound)
    na_access_text(record->detail, sizeof record->detail, na_str_of(end->detail));
  if (end->failure && (!inbound || flow->fate != NA_FLOW_REFUSED))
    na_access_text(record->upstream_failure, sizeof record->upstream_failure, na_str_of(end->failure));
}

static void record_end(na_flow_reporter *reporter, const na_flow *flow, const na_flow_end *end, bool inbound) {
  if (!reporter->access.records || !workload_of(&flow->labels, inbound))
    return;
  na_access_record *record = na_access_begin(&reporter->access);
  if (!record) {
    na_count(&reporter->losses, NA_COUNTER_ACCESS_DROPPED);
    return;
  }
  fill_record(record, flow, end, inbound);
  record->start_us = reporter->wall_us + flow->facts.started_ns / 1000;
  na_access_publish(&reporter->access);
}

void na_flow_report_closed(na_flow_reporter *reporter, const na_flow *flow, const na_flow_end *end) {
  for (int inbound = 0; inbound < SIDES; inbound++) {
    uint32_t flags = inbound ? end->destination_flags : end->source_flags;
    na_stat_row *row = row_of(reporter, flow, inbound, NA_STAT_TCP_CLOSED, flags);
    if (row) {
      row->count++;
      row->duration_us += duration_us(flow->facts.started_ns, end->at_ns);
    }
    record_end(reporter, flow, end, inbound);
  }
}
