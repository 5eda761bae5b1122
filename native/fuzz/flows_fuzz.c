/* SPDX-License-Identifier: Apache-2.0
 *
 * Events, samples and answers in any order, with any content: each input byte picks a step, and what follows is what it
 * is about. Nothing may break, and what is followed stays within its bound.
 */
#include <stdlib.h>
#include <string.h>

#include "followed.h"

#define CHECK(x)  ((x) ? (void)0 : abort())
#define MAX_FLOWS 16
#define LIFE      1

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

typedef struct input {
  const uint8_t *p;
  size_t n;
} input;

/* Zeros when there is no more. */
static void get(input *in, void *out, size_t size) {
  size_t n = size < in->n ? size : in->n;
  memset(out, 0, size);
  memcpy(out, in->p, n);
  in->p += n;
  in->n -= n;
}

static void answer(na_flows *flows, input *in) {
  const char *policies[] = {"a", "b"};
  uint8_t bits;
  get(in, &bits, sizeof bits);
  const na_flow_names names = {.source = bits & 1,
                               .destination = bits & 2,
                               .cluster_tag = bits,
                               .source_principal = bits & 4 ? "spiffe://a" : "",
                               .destination_principal = bits & 8 ? "spiffe://b" : "",
                               .policies = policies,
                               .n_policies = (bits >> 4) % 3,
                               .policy = bits & 64 ? "c" : "",
                               .detail = bits & 128 ? "because" : ""};
  CHECK(na_flows_name(flows, &names) == 0);
}

static void take_event(na_flows *flows, input *in) {
  struct na_bypass_event event;
  get(in, &event, sizeof event);
  event.kind %= 6;
  event.flow.socket_cookie %= 2 * MAX_FLOWS;
  if (!na_flows_take(flows, &event, sizeof event) && flows->holding)
    answer(flows, in);
}

static void adopt(na_flows *flows, input *in) {
  struct na_bypass_key ends;
  struct na_bypass facts;
  na_flow_question question;
  get(in, &ends, sizeof ends);
  get(in, &facts, sizeof facts);
  facts.socket_cookie %= 2 * MAX_FLOWS;
  if (na_flows_adopt(flows, &ends, &facts, &question) == NA_FLOWS_UNNAMED)
    answer(flows, in);
}

static void round_of_samples(na_flows *flows, input *in) {
  na_flow_sample samples[3];
  uint64_t looked_at[2];
  get(in, samples, sizeof samples);
  get(in, looked_at, sizeof looked_at);
  na_flows_round(flows, samples, 3, looked_at, 2);
}

static void drain(na_engine *engine) {
  static na_stat_row rows[64];
  static na_access_record records[64];
  static na_connection_info infos[8];
  uint32_t tags[8];
  while (na_engine_drain_stats(engine, rows, 64) == 64)
    ;
  while (na_engine_drain_access(engine, records, 64) == 64)
    ;
  (void)na_engine_usage(engine, tags, 8);
  CHECK(na_engine_connections(engine, infos, 8) <= 8);
}

static void step(na_engine *engine, na_flows *flows, input *in) {
  uint8_t what;
  get(in, &what, sizeof what);
  switch (what % 8) {
  case 0:
    adopt(flows, in);
    break;
  case 1:
    round_of_samples(flows, in);
    break;
  case 2:
    drain(engine);
    break;
  case 3:
    na_flows_forget_names(flows);
    break;
  case 4:
    na_flows_revoked(flows, what, "because");
    break;
  default:
    take_event(flows, in);
  }
  CHECK(na_flows_counter(flows, NA_FLOW_ACTIVE) <= MAX_FLOWS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  const na_config config = {.access_log = 1};
  const na_flows_config followed = {
      .life = LIFE, .max_flows = MAX_FLOWS, .stat_rows = 32, .access_records = 32, .access_log = 1};
  static na_engine *engine;
  input in = {data, n};
  na_flows *flows;
  CHECK(engine || na_engine_new(&config, &engine) == 0);
  CHECK(na_flows_create(engine, &followed, &flows) == 0);
  while (in.n)
    step(engine, flows, &in);
  drain(engine);
  na_flows_free(flows);
  return 0;
}
