/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections past the engine in statistics and access records: what events and samples add up to.
 */
#include "followed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"

#define LIFE    7
#define EARLIER 6
#define NETNS   1000
#define CLIENT  11
#define SERVER  12
#define SECOND  UINT64_C(1000000000)

static const char *const allowing[] = {"ns[default]-policy[callers]-rule[0]"};

static const na_flow_names answer = {.source = CLIENT,
                                     .destination = SERVER,
                                     .asked_tag = 20,
                                     .cluster_tag = 21,
                                     .endpoint_tag = 22,
                                     .inbound_tag = 23,
                                     .source_principal = "spiffe://td/ns/default/sa/client",
                                     .destination_principal = "spiffe://td/ns/default/sa/server",
                                     .policies = allowing,
                                     .n_policies = 1,
                                     .policy = "",
                                     .detail = ""};

typedef struct rig {
  na_engine *engine;
  na_flows *flows;
  na_stat_row rows[64];
  na_access_record records[64];
  int nrows;
  int nrecords;
} rig;

static void begin(rig *r, uint32_t max_flows) {
  const na_config config = {.access_log = 1};
  const na_flows_config followed = {.life = LIFE, .max_flows = max_flows, .access_log = 1};
  memset(r, 0, sizeof *r);
  assert_int_equal(na_engine_new(&config, &r->engine), 0);
  assert_int_equal(na_flows_create(r->engine, &followed, &r->flows), 0);
}

static void end(rig *r) {
  na_flows_free(r->flows);
  na_engine_free(r->engine);
}

static void drain(rig *r) {
  r->nrows = na_engine_drain_stats(r->engine, r->rows, COUNT(r->rows));
  r->nrecords = na_engine_drain_access(r->engine, r->records, COUNT(r->records));
}

/* The one row of a kind and side. */
static const na_stat_row *row(const rig *r, uint32_t kind, bool inbound) {
  const na_stat_row *found = NULL;
  for (int i = 0; i < r->nrows; i++)
    if (r->rows[i].kind == kind && r->rows[i].inbound == inbound) {
      assert_null(found);
      found = &r->rows[i];
    }
  return found;
}

static void set_ip(void *address, const char *text) {
  assert_int_equal(inet_pton(AF_INET6, text, address), 1);
}

static struct na_bypass_event event_of(uint32_t kind, uint64_t cookie) {
  struct na_bypass_event event = {.kind = kind, .at_ns = 10 * SECOND};
  set_ip(&event.ends.source, "::ffff:10.0.0.1");
  set_ip(&event.ends.destination, "::ffff:10.0.0.2");
  set_ip(&event.flow.asked.address, "::ffff:10.96.0.1");
  event.ends.source_port = 40000;
  event.ends.destination_port = 9000;
  event.flow.asked.port = 80;
  event.flow.netns_cookie = NETNS;
  event.flow.socket_cookie = cookie;
  event.flow.started_ns = 10 * SECOND - 2000000;
  event.flow.life = LIFE;
  event.flow.source = 1;
  event.flow.destination = 2;
  event.flow.service = 3;
  return event;
}

static void take(rig *r, const struct na_bypass_event *event) {
  if (na_flows_take(r->flows, event, sizeof *event))
    return;
  assert_true(r->flows->holding);
  assert_int_equal(na_flows_name(r->flows, &answer), 0);
  r->flows->holding = false;
  assert_true(na_flows_take(r->flows, event, sizeof *event));
}

static void open_flow(rig *r, uint64_t cookie) {
  const struct na_bypass_event event = event_of(NA_BYPASS_OPENED, cookie);
  take(r, &event);
}

static struct na_bypass_event closed(uint64_t cookie, uint64_t sent, uint64_t received) {
  struct na_bypass_event event = event_of(NA_BYPASS_CLOSED, cookie);
  event.at_ns = 15 * SECOND;
  event.sent = sent;
  event.received = received;
  event.srtt_us = 80;
  event.retransmits = 2;
  return event;
}

static void sample(rig *r, uint64_t cookie, uint64_t sent, uint64_t received) {
  const na_flow_sample one = {.socket_cookie = cookie, .sent = sent, .received = received};
  const uint64_t looked_at = NETNS;
  na_flows_round(r->flows, &one, cookie != 0, &looked_at, 1);
}

static uint64_t counter(const rig *r, enum na_flow_counter id) {
  return na_flows_counter(r->flows, id);
}

/* ---- one connection ---- */

static void both_sides_tell_of_a_connection(void **state) {
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  const struct na_bypass_event event = closed(5, 100, 3000);
  take(&r, &event);
  drain(&r);
  for (int inbound = 0; inbound < 2; inbound++) {
    assert_int_equal(row(&r, NA_STAT_TCP_OPENED, inbound)->count, 1);
    assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, inbound)->count, 1);
    assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, inbound)->flags, 0);
    const na_stat_row *bytes = row(&r, NA_STAT_TCP_BYTES, inbound);
    assert_int_equal(bytes->bytes_in, 100);
    assert_int_equal(bytes->bytes_out, 3000);
    assert_int_equal(bytes->mutual_tls, 1);
  }
  const na_stat_row *out = row(&r, NA_STAT_TCP_OPENED, false), *in = row(&r, NA_STAT_TCP_OPENED, true);
  assert_int_equal(out->workload, CLIENT);
  assert_int_equal(out->cluster_tag, 21);
  assert_int_equal(out->endpoint_tag, 22);
  assert_memory_equal(out->peer, &event.ends.destination, 16);
  assert_string_equal(na_engine_principal(r.engine, out->principal), answer.destination_principal);
  assert_int_equal(in->workload, SERVER);
  assert_int_equal(in->cluster_tag, 23);
  assert_int_equal(in->endpoint_tag, 0);
  assert_memory_equal(in->peer, &event.ends.source, 16);
  assert_string_equal(na_engine_principal(r.engine, in->principal), answer.source_principal);
  assert_int_equal(counter(&r, NA_FLOW_OPENED), 1);
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 0);
  assert_int_equal(counter(&r, NA_FLOW_RETRANSMITS), 2);
  end(&r);
}

static void records_have_the_ends_as_each_side_sees_them(void **state) {
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  const struct na_bypass_event event = closed(5, 100, 3000);
  take(&r, &event);
  drain(&r);
  assert_int_equal(r.nrecords, 2);
  const na_access_record *out = &r.records[0], *in = &r.records[1];
  assert_false(out->inbound);
  assert_memory_equal(out->downstream_local, &event.flow.asked.address, 16);
  assert_int_equal(out->downstream_local_port, 80);
  assert_int_equal(out->upstream_remote_port, 9000);
  assert_int_equal(out->upstream_local_port, 40000);
  assert_int_equal(out->upstream_us, 2000);
  assert_int_equal(out->duration_us, 5002000);
  assert_int_equal(out->bytes_in, 100);
  assert_int_equal(out->rtt_us, 80);
  assert_int_equal(out->bypassed, 1);
  assert_true(in->inbound);
  assert_memory_equal(in->downstream_local, &event.ends.destination, 16);
  assert_int_equal(in->downstream_local_port, 9000);
  assert_int_equal(in->cluster_tag, 23);
  assert_in_range(in->start_us, UINT64_C(1600000000000000), UINT64_C(4000000000000000));
  end(&r);
}

static void policies_that_allow_are_counted(void **state) {
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  open_flow(&r, 6);
  drain(&r);
  const na_stat_row *decision = row(&r, NA_STAT_POLICY, true);
  assert_int_equal(decision->count, 2);
  assert_int_equal(decision->workload, SERVER);
  assert_int_equal(decision->flags, NA_OUTCOME_ALLOWED);
  assert_string_equal(na_engine_policy(r.engine, decision->cluster_tag), allowing[0]);
  end(&r);
}

/* ---- bytes ---- */

static void bytes_are_counted_once(void **state) {
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  sample(&r, 5, 60, 1000);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->bytes_in, 60);
  sample(&r, 5, 60, 1000); /* nothing new */
  drain(&r);
  assert_null(row(&r, NA_STAT_TCP_BYTES, false));
  sample(&r, 5, 90, 1500);
  const struct na_bypass_event event = closed(5, 80, 3000); /* the last ten were never acknowledged */
  take(&r, &event);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, true)->bytes_in, 30);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, true)->bytes_out, 2000);
  assert_int_equal(r.records[0].bytes_in, 90);
  end(&r);
}

static void a_later_agent_counts_what_it_has_seen(void **state) {
  rig r;
  begin(&r, 0);
  struct na_bypass_event event = event_of(NA_BYPASS_OPENED, 5);
  na_flow_question question;
  event.flow.life = EARLIER;
  assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_UNNAMED);
  assert_int_equal(question.life, EARLIER);
  assert_int_equal(question.netns_cookie, NETNS);
  assert_int_equal(na_flows_name(r.flows, &answer), 0);
  assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_DONE);
  assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_DONE);
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 1);
  sample(&r, 5, 500, 500); /* of which the earlier agent has told */
  sample(&r, 5, 600, 700);
  struct na_bypass_event last = closed(5, 650, 800);
  last.flow.life = EARLIER;
  take(&r, &last);
  drain(&r);
  assert_null(row(&r, NA_STAT_TCP_OPENED, false));
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, false)->count, 1);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->bytes_in, 150);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->bytes_out, 300);
  assert_int_equal(r.records[0].bytes_in, 650);
  end(&r);
}

static void a_connection_that_nobody_knows_yet_is_told_of_when_it_is_known(void **state) {
  na_flow_names unknown = answer;
  na_flow_question question;
  rig r;
  begin(&r, 0);
  unknown.cluster_tag = 0;
  struct na_bypass_event event = event_of(NA_BYPASS_OPENED, 5);
  event.flow.life = EARLIER;
  for (int i = 0; i < 2; i++) { /* asked for again, without success */
    assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_UNNAMED);
    assert_int_equal(na_flows_name(r.flows, &unknown), 0);
    assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_DONE);
    sample(&r, 5, 500 + 10 * (uint64_t)i, 500);
    na_flows_forget_names(r.flows);
  }
  drain(&r);
  assert_int_equal(r.nrows, 0);
  assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_UNNAMED);
  assert_int_equal(na_flows_name(r.flows, &answer), 0);
  assert_int_equal(na_flows_adopt(r.flows, &event.ends, &event.flow, &question), NA_FLOWS_DONE);
  sample(&r, 5, 530, 500);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->bytes_in, 30);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->cluster_tag, answer.cluster_tag);
  end(&r);
}

static void what_ended_between_two_agents_is_counted_as_closed(void **state) {
  rig r;
  begin(&r, 0);
  struct na_bypass_event event = closed(5, 650, 800);
  event.flow.life = EARLIER;
  take(&r, &event);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, true)->count, 1);
  assert_null(row(&r, NA_STAT_TCP_BYTES, true));
  assert_int_equal(r.records[1].bytes_in, 650);
  end(&r);
}

/* ---- ends ---- */

static void refusals_are_told_as_the_engine_tells_them(void **state) {
  static const na_flow_names denied = {.source = CLIENT,
                                       .destination = SERVER,
                                       .source_principal = "",
                                       .destination_principal = "",
                                       .policy = "ns[default]-policy[nobody]-rule[0]",
                                       .detail = "rbac_access_denied_matched_policy[nobody]"};
  rig r;
  begin(&r, 0);
  struct na_bypass_event event = event_of(NA_BYPASS_DENIED, 5);
  event.policy = 4;
  assert_false(na_flows_take(r.flows, &event, sizeof event));
  assert_int_equal(r.flows->asked.denied, 1);
  assert_int_equal(r.flows->asked.policy, 4);
  assert_int_equal(na_flows_name(r.flows, &denied), 0);
  assert_true(na_flows_take(r.flows, &event, sizeof event));
  drain(&r);
  const na_stat_row *decision = row(&r, NA_STAT_POLICY, true);
  assert_int_equal(decision->flags, NA_OUTCOME_DENIED);
  assert_string_equal(na_engine_policy(r.engine, decision->cluster_tag), denied.policy);
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, false)->flags, NA_FLAG_UF);
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, true)->flags, 0);
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, true)->mutual_tls, 0);
  assert_string_equal(r.records[0].detail, "");
  assert_string_equal(r.records[0].upstream_failure, "Operation not permitted");
  assert_string_equal(r.records[1].upstream_failure, "");
  assert_int_equal(r.records[0].upstream_remote_port, 9000);
  assert_int_equal(r.records[1].upstream_remote_port, 0);
  assert_string_equal(r.records[1].detail, denied.detail);
  assert_int_equal(counter(&r, NA_FLOW_DENIED), 1);
  end(&r);
}

static void failures_have_their_reason(void **state) {
  rig r;
  begin(&r, 0);
  struct na_bypass_event event = event_of(NA_BYPASS_FAILED, 5);
  event.error = ECONNREFUSED;
  take(&r, &event);
  drain(&r);
  for (int inbound = 0; inbound < 2; inbound++) {
    assert_int_equal(row(&r, NA_STAT_TCP_OPENED, inbound)->count, 1);
    assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, inbound)->flags, NA_FLAG_UF);
    assert_string_equal(r.records[inbound].upstream_failure, "Connection refused");
    assert_int_equal(r.records[inbound].mutual_tls, inbound); /* the client does not know whom it would have met */
    assert_int_equal(row(&r, NA_STAT_TCP_OPENED, inbound)->principal != 0, inbound);
    assert_int_equal(r.records[inbound].upstream_local_port, 0);
  }
  assert_int_equal(counter(&r, NA_FLOW_FAILED), 1);
  end(&r);
}

static void resets_are_flagged(void **state) {
  static const struct {
    uint32_t how, error;
    const char *revoked;
    uint32_t source, destination;
  } cases[] = {
      {NA_BYPASS_END_CLIENT, 0, NULL, 0, 0},
      {NA_BYPASS_END_SERVER, 0, NULL, 0, 0},
      {NA_BYPASS_END_RESET, 0, NULL, NA_FLAG_DC, NA_FLAG_DC},
      {NA_BYPASS_END_RESET, ECONNRESET, NULL, NA_FLAG_UC, NA_FLAG_UC},
      {NA_BYPASS_END_RESET, ECONNABORTED, NULL, NA_FLAG_LR, NA_FLAG_LR},
      {NA_BYPASS_END_RESET, ECONNABORTED, "rbac_access_denied_matched_policy[none]", NA_FLAG_UC, 0},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    rig r;
    begin(&r, 0);
    open_flow(&r, 5);
    if (cases[i].revoked)
      na_flows_revoked(r.flows, 5, cases[i].revoked);
    na_flows_revoked(r.flows, 6, "nobody is it");
    struct na_bypass_event event = closed(5, 1, 1);
    event.end = cases[i].how;
    event.error = cases[i].error;
    take(&r, &event);
    drain(&r);
    assert_int_equal(r.records[0].flags, cases[i].source);
    assert_int_equal(r.records[1].flags, cases[i].destination);
    assert_string_equal(r.records[1].detail, cases[i].revoked ? cases[i].revoked : "");
    assert_int_equal(counter(&r, NA_FLOW_RESET), cases[i].how == NA_BYPASS_END_RESET);
    end(&r);
  }
}

static void what_nothing_tells_of_ends_after_two_rounds(void **state) {
  const uint64_t elsewhere = NETNS + 1;
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  sample(&r, 5, 10, 20);
  sample(&r, 0, 0, 0);
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 1);
  na_flows_round(r.flows, NULL, 0, &elsewhere, 1); /* its namespace was not looked at */
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 1);
  sample(&r, 0, 0, 0);
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 0);
  assert_int_equal(counter(&r, NA_FLOW_LOST), 1);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_CLOSED, true)->count, 1);
  assert_int_equal(r.records[0].bytes_out, 20);
  end(&r);
}

static void who_is_not_enrolled_tells_nothing(void **state) {
  na_flow_names stranger = answer;
  rig r;
  begin(&r, 0);
  stranger.source = 0;
  const struct na_bypass_event event = closed(5, 1, 1);
  assert_false(na_flows_take(r.flows, &event, sizeof event));
  assert_int_equal(na_flows_name(r.flows, &stranger), 0);
  assert_true(na_flows_take(r.flows, &event, sizeof event));
  drain(&r);
  assert_null(row(&r, NA_STAT_TCP_CLOSED, false));
  assert_non_null(row(&r, NA_STAT_TCP_CLOSED, true));
  assert_int_equal(r.nrecords, 1);
  assert_int_equal(counter(&r, NA_FLOW_UNNAMED), 1);
  end(&r);
}

/* ---- bounds ---- */

static void beyond_the_limit_an_end_tells_all(void **state) {
  rig r;
  begin(&r, 2);
  for (uint64_t cookie = 1; cookie <= 3; cookie++)
    open_flow(&r, cookie);
  assert_int_equal(counter(&r, NA_FLOW_ACTIVE), 2);
  assert_int_equal(counter(&r, NA_FLOW_UNFOLLOWED), 1);
  const struct na_bypass_event event = closed(3, 70, 80);
  take(&r, &event);
  drain(&r);
  assert_int_equal(row(&r, NA_STAT_TCP_OPENED, false)->count, 3);
  assert_int_equal(row(&r, NA_STAT_TCP_BYTES, false)->bytes_in, 70);
  end(&r);
}

static void nothing_is_read_without_room_for_its_records(void **state) {
  const na_config config = {.access_log = 1};
  const na_flows_config followed = {.life = LIFE, .access_records = 4, .access_log = 1};
  rig r = {0};
  assert_int_equal(na_engine_new(&config, &r.engine), 0);
  assert_int_equal(na_flows_create(r.engine, &followed, &r.flows), 0);
  const struct na_bypass_event event = closed(5, 1, 1);
  take(&r, &event);
  assert_false(na_flows_take(r.flows, &event, sizeof event));
  assert_false(r.flows->holding);
  na_flow_question question;
  assert_int_equal(na_flows_read(r.flows, 10, &question), NA_FLOWS_MORE);
  drain(&r);
  assert_int_equal(r.nrecords, 4);
  assert_int_equal(na_engine_counter(r.engine, NA_COUNTER_ACCESS_DROPPED), 0);
  end(&r);
}

static void an_engine_is_followed_by_one(void **state) {
  const na_flows_config nobody = {0}, second = {.life = LIFE};
  na_flows *other;
  rig r;
  begin(&r, 0);
  assert_int_equal(na_flows_create(r.engine, &second, &other), -EEXIST);
  na_flows_free(r.flows);
  assert_int_equal(na_flows_create(r.engine, &nobody, &other), -EINVAL);
  assert_true(na_flows_new(r.engine, -1, &second, &other) < 0);
  r.flows = NULL;
  end(&r);
}

/* ---- what is asked for ---- */

static void tags_in_use_are_told_while_a_connection_lives(void **state) {
  uint32_t tags[8];
  rig r;
  begin(&r, 0);
  assert_int_equal(na_engine_usage(r.engine, tags, 8), 0);
  open_flow(&r, 5);
  open_flow(&r, 6);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(na_engine_usage(r.engine, tags, 1), 1);
    assert_int_equal(tags[0], 20);
    assert_int_equal(na_engine_usage(r.engine, tags, 8), 1);
    assert_int_equal(tags[0], 21);
  }
  const struct na_bypass_event first = closed(5, 1, 1), second = closed(6, 1, 1);
  take(&r, &first);
  take(&r, &second);
  assert_int_equal(na_engine_usage(r.engine, tags, 8), 0);
  end(&r);
}

static void live_connections_are_listed_for_both_workloads(void **state) {
  na_connection_info infos[8];
  uint64_t namespaces[4];
  rig r;
  begin(&r, 0);
  open_flow(&r, 5);
  open_flow(&r, 6);
  sample(&r, 5, 10, 20);
  assert_int_equal(na_engine_connections(r.engine, infos, 3), 3);
  assert_int_equal(na_engine_connections(r.engine, infos, 8), 4);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(infos[i].state, 6);
    assert_int_equal(infos[i].workload, infos[i].inbound ? SERVER : CLIENT);
    assert_int_equal(infos[i].local_port, infos[i].inbound ? 9000 : 80);
    assert_int_equal(infos[i].bytes_out, infos[i].id == 5 ? 20 : 0);
  }
  assert_int_equal(na_flows_namespaces(r.flows, namespaces, 4), 1);
  assert_int_equal(namespaces[0], NETNS);
  end(&r);
}

/* ---- whatever comes ---- */

static uint64_t random_below(uint64_t n) {
  static uint64_t x = 88172645463325252;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x % n;
}

static struct na_bypass_event any_event(void) {
  struct na_bypass_event event = event_of((uint32_t)random_below(6), random_below(200));
  event.flow.life = LIFE - (uint32_t)random_below(2);
  event.flow.source = (uint32_t)random_below(30);
  event.flow.started_ns = random_below(3) ? event.flow.started_ns : random_below(UINT64_MAX);
  event.end = (uint32_t)random_below(4);
  event.error = (uint32_t)random_below(3) * (uint32_t)random_below(200);
  event.sent = random_below(2) ? random_below(10000) : random_below(UINT64_MAX);
  event.received = random_below(10000);
  return event;
}

static void any_step(rig *r) {
  na_flow_question question;
  const struct na_bypass_event event = any_event();
  switch (random_below(12)) {
  case 0:
    na_flows_forget_names(r->flows);
    break;
  case 1:
    if (na_flows_adopt(r->flows, &event.ends, &event.flow, &question) == NA_FLOWS_UNNAMED)
      assert_int_equal(na_flows_name(r->flows, &answer), 0);
    break;
  case 2:
    sample(r, random_below(200), random_below(UINT64_MAX), random_below(10000));
    break;
  case 3:
    na_flows_revoked(r->flows, random_below(200), "no more");
    break;
  case 4:
    assert_true(na_flows_take(r->flows, &event, random_below(sizeof event)));
    break;
  default:
    take(r, &event);
  }
}

static void no_order_of_events_breaks_anything(void **state) {
  uint32_t tags[300];
  rig r;
  begin(&r, 100);
  for (int i = 0; i < 200000; i++) {
    any_step(&r);
    if (i % 50 == 0) {
      drain(&r);
      (void)na_engine_usage(r.engine, tags, COUNT(tags));
    }
    assert_in_range(counter(&r, NA_FLOW_ACTIVE), 0, 100);
  }
  assert_true(counter(&r, NA_FLOW_MALFORMED) > 0);
  end(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(both_sides_tell_of_a_connection),
      cmocka_unit_test(records_have_the_ends_as_each_side_sees_them),
      cmocka_unit_test(policies_that_allow_are_counted),
      cmocka_unit_test(bytes_are_counted_once),
      cmocka_unit_test(a_later_agent_counts_what_it_has_seen),
      cmocka_unit_test(a_connection_that_nobody_knows_yet_is_told_of_when_it_is_known),
      cmocka_unit_test(what_ended_between_two_agents_is_counted_as_closed),
      cmocka_unit_test(refusals_are_told_as_the_engine_tells_them),
      cmocka_unit_test(failures_have_their_reason),
      cmocka_unit_test(resets_are_flagged),
      cmocka_unit_test(what_nothing_tells_of_ends_after_two_rounds),
      cmocka_unit_test(who_is_not_enrolled_tells_nothing),
      cmocka_unit_test(beyond_the_limit_an_end_tells_all),
      cmocka_unit_test(nothing_is_read_without_room_for_its_records),
      cmocka_unit_test(an_engine_is_followed_by_one),
      cmocka_unit_test(tags_in_use_are_told_while_a_connection_lives),
      cmocka_unit_test(live_connections_are_listed_for_both_workloads),
      cmocka_unit_test(no_order_of_events_breaks_anything),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
