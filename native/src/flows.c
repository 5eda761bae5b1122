/* SPDX-License-Identifier: Apache-2.0 */
#include "followed.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define DEFAULT_MAX_FLOWS 65536

_Static_assert(sizeof(struct na_bypass_event) == 160, "events are read as they are laid out");

/* ---- names ---- */

na_flow_name *na_flows_look_up(na_flows *flows, const struct na_bypass_key *ends, const struct na_bypass *facts,
                               const struct na_bypass_event *denied) {
  na_flow_question question = {.netns_cookie = facts->netns_cookie,
                               .life = facts->life,
                               .source_workload = facts->source,
                               .destination_workload = facts->destination,
                               .service = facts->service,
                               .denied = denied != NULL,
                               .policy = denied ? denied->policy : 0,
                               .destination_port = ends->destination_port,
                               .asked_port = facts->asked.port};
  memcpy(question.source, &ends->source, 16);
  memcpy(question.destination, &ends->destination, 16);
  memcpy(question.asked, &facts->asked.address, 16);
  na_flow_name *name = na_flow_cache_find(&flows->names, &question);
  if (name)
    name->used = true;
  else
    flows->asked = question;
  return name;
}

int na_flows_name(na_flows *flows, const na_flow_names *names) {
  na_engine *engine = flows->engine;
  return na_flow_cache_put(&flows->names, &flows->asked, names, &engine->principals, &engine->policies);
}

void na_flows_forget_names(na_flows *flows) {
  na_flow_cache_clear(&flows->names);
}

/* ---- ends ---- */

void na_flows_end(na_flows *flows, na_flow *flow, const na_flow_end *end) {
  uint64_t *counters = flows->counters;
  counters[NA_FLOW_RETRANSMITS] += flow->retransmits;
  counters[NA_FLOW_RTT_COUNT] += flow->srtt_us > 0;
  counters[NA_FLOW_RTT_SUM] += flow->srtt_us;
  counters[NA_FLOW_UNNAMED] += !flow->labels.source + !flow->labels.destination;
  if (flow->inherited)
    flow->told = flow->carried;
  na_flow_report_bytes(&flows->reporter, flow);
  na_flow_report_closed(&flows->reporter, flow, end);
}

/* As the engine would flag it: what the client's socket has seen, from both proxies' places. */
static na_flow_end end_of(const na_flow *flow, const struct na_bypass_event *event) {
  na_flow_end end = {.at_ns = event->at_ns, .detail = flow->detail ? flow->detail : ""};
  if (event->end != NA_BYPASS_END_RESET)
    return end;
  switch (event->error) {
  case 0: /* the client's, by closing with data unread, or so */
    end.source_flags = end.destination_flags = NA_FLAG_DC;
    break;
  case ECONNABORTED: /* somebody ended it by force: the agent, if there is a detail */
    end.source_flags = flow->detail ? NA_FLAG_UC : NA_FLAG_LR;
    end.destination_flags = flow->detail ? 0 : NA_FLAG_LR;
    break;
  default:
    end.source_flags = end.destination_flags = NA_FLAG_UC;
  }
  return end;
}

static void end_by_event(na_flows *flows, na_flow *flow, const struct na_bypass_event *event) {
  const na_flow_end end = end_of(flow, event);
  flows->counters[NA_FLOW_RESET] += event->end == NA_BYPASS_END_RESET;
  na_flows_end(flows, flow, &end);
}

/* One that is not in the table, for as long as it takes to tell of it. */
static na_flow passing(const na_flow_name *name, const struct na_bypass_event *event) {
  return (na_flow){.ends = event->ends,
                   .facts = event->flow,
                   .labels = name->labels,
                   .srtt_us = event->srtt_us,
                   .retransmits = event->retransmits};
}

/* ---- events. Each returns false if names have to be asked for. ---- */

static bool on_denied(na_flows *flows, const struct na_bypass_event *event) {
  const na_flow_name *name = na_flows_look_up(flows, &event->ends, &event->flow, event);
  if (!name)
    return false;
  na_flow flow = passing(name, event);
  flow.fate = NA_FLOW_REFUSED;
  const na_flow_end end = {
      .at_ns = event->at_ns, .source_flags = NA_FLAG_UF, .detail = name->detail, .failure = strerrordesc_np(EPERM)};
  flows->counters[NA_FLOW_DENIED]++;
  na_flow_report_denied(&flows->reporter, name);
  na_flow_report_opened(&flows->reporter, &flow);
  na_flows_end(flows, &flow, &end);
  return true;
}

static bool on_failed(na_flows *flows, const struct na_bypass_event *event) {
  const na_flow_name *name = na_flows_look_up(flows, &event->ends, &event->flow, NULL);
  if (!name)
    return false;
  na_flow flow = passing(name, event);
  flow.fate = NA_FLOW_UNANSWERED;
  uint32_t flags = event->error ? NA_FLAG_UF : NA_FLAG_DC;
  const na_flow_end end = {.at_ns = event->at_ns,
                           .source_flags = flags,
                           .destination_flags = flags,
                           .detail = "",
                           .failure = event->error ? strerrordesc_np((int)event->error) : NULL};
  flows->counters[NA_FLOW_FAILED]++;
  na_flow_report_allowed(&flows->reporter, name);
  na_flow_report_opened(&flows->reporter, &flow);
  na_flows_end(flows, &flow, &end);
  return true;
}

static void tell_opened(na_flows *flows, const na_flow_name *name, const na_flow *flow) {
  flows->counters[NA_FLOW_OPENED]++;
  na_flow_report_allowed(&flows->reporter, name);
  na_flow_report_opened(&flows->reporter, flow);
}

/* Begin to follow it; NULL: there is no room. */
static na_flow *follow(na_flows *flows, const na_flow_name *name, const struct na_bypass_key *ends,
                       const struct na_bypass *facts) {
  na_flow *flow = na_flow_table_add(&flows->table, facts->socket_cookie);
  if (!flow) {
    flows->counters[NA_FLOW_UNFOLLOWED]++;
    return NULL;
  }
  flow->ends = *ends;
  flow->facts = *facts;
  flow->labels = name->labels;
  flow->seen = flows->round;
  return flow;
}

static bool on_opened(na_flows *flows, const struct na_bypass_event *event) {
  const na_flow_name *name = na_flows_look_up(flows, &event->ends, &event->flow, NULL);
  if (!name)
    return false;
  na_flow *flow = na_flow_table_find(&flows->table, event->flow.socket_cookie);
  if (!flow)
    flow = follow(flows, name, &event->ends, &event->flow);
  const na_flow unfollowed = passing(name, event);
  tell_opened(flows, name, flow ? flow : &unfollowed);
  if (flow) {
    flow->opened_ns = event->at_ns;
    flow->inherited = false;
  }
  return true;
}

/* Of a connection that is not followed. Of this life: its beginning had no room, here or in the ring buffer. */
static bool on_unknown_closed(na_flows *flows, const struct na_bypass_event *event) {
  const na_flow_name *name = na_flows_look_up(flows, &event->ends, &event->flow, NULL);
  if (!name)
    return false;
  na_flow flow = passing(name, event);
  flow.carried = (na_flow_bytes){event->sent, event->received};
  flow.inherited = event->flow.life != flows->life;
  end_by_event(flows, &flow, event);
  return true;
}

static uint64_t larger(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

/* What leads past the engine has a cluster. For a connection of an earlier life it may have to be asked for first,
 * which takes a while. False: names have to be asked for. */
static bool label(na_flows *flows, na_flow *flow) {
  if (flow->labels.cluster_tag || flow->facts.life == flows->life)
    return true;
  const na_flow_name *name = na_flows_look_up(flows, &flow->ends, &flow->facts, NULL);
  if (name)
    flow->labels = name->labels;
  return name != NULL;
}

static bool on_closed(na_flows *flows, const struct na_bypass_event *event) {
  na_flow *flow = na_flow_table_find(&flows->table, event->flow.socket_cookie);
  if (!flow)
    return on_unknown_closed(flows, event);
  if (!label(flows, flow))
    return false;
  /* What a sample has seen leave may not have been acknowledged when the connection broke. */
  flow->carried.sent = larger(flow->told.sent, event->sent);
  flow->carried.received = larger(flow->told.received, event->received);
  flow->srtt_us = event->srtt_us;
  flow->retransmits = event->retransmits;
  end_by_event(flows, flow, event);
  na_flow_table_remove(&flows->table, flow);
  return true;
}

static bool tell(na_flows *flows, const struct na_bypass_event *event) {
  switch (event->kind) {
  case NA_BYPASS_DENIED:
    return on_denied(flows, event);
  case NA_BYPASS_OPENED:
    return on_opened(flows, event);
  case NA_BYPASS_FAILED:
    return on_failed(flows, event);
  case NA_BYPASS_CLOSED:
    return on_closed(flows, event);
  }
  flows->counters[NA_FLOW_MALFORMED]++;
  return true;
}

/* ---- the ring buffer ---- */

/* What ends a call of ring_buffer__consume(); the event is consumed nevertheless. */
#define STOP (-ECANCELED)

bool na_flows_take(na_flows *flows, const void *event, size_t size) {
  if (size < sizeof flows->held) {
    flows->counters[NA_FLOW_MALFORMED]++;
    return true;
  }
  memcpy(&flows->held, event, sizeof flows->held);
  flows->holding = !tell(flows, &flows->held);
  return !flows->holding && na_flow_reporter_has_room(&flows->reporter);
}

static int on_sample(void *context, void *data, size_t size) {
  na_flows *flows = context;
  bool goes_on = na_flows_take(flows, data, size);
  flows->left--;
  return goes_on && flows->left ? 0 : STOP;
}

int na_flows_read(na_flows *flows, uint32_t max, na_flow_question *question) {
  int rc = 0;
  na_flow_reporter_set_clock(&flows->reporter);
  if (flows->holding)
    flows->holding = !tell(flows, &flows->held);
  flows->left = max;
  if (!flows->holding && !na_flow_reporter_has_room(&flows->reporter))
    return NA_FLOWS_MORE;
  if (!flows->holding)
    rc = ring_buffer__consume(flows->ring);
  if (flows->holding) {
    *question = flows->asked;
    return NA_FLOWS_UNNAMED;
  }
  if (rc == STOP)
    return NA_FLOWS_MORE;
  return rc < 0 ? rc : NA_FLOWS_DONE;
}

int na_flows_adopt(na_flows *flows, const void *key, const void *value, na_flow_question *question) {
  struct na_bypass_key ends;
  struct na_bypass facts;
  memcpy(&ends, key, sizeof ends);
  memcpy(&facts, value, sizeof facts);
  if (facts.life == flows->life)
    return NA_FLOWS_DONE;
  na_flow *flow = na_flow_table_find(&flows->table, facts.socket_cookie);
  const na_flow_name *name = flow ? NULL : na_flows_look_up(flows, &ends, &facts, NULL);
  if (flow ? !label(flows, flow) : !name) {
    *question = flows->asked;
    return NA_FLOWS_UNNAMED;
  }
  if (!flow && (flow = follow(flows, name, &ends, &facts)))
    flow->inherited = true;
  return NA_FLOWS_DONE;
}

int na_flows_fd(const na_flows *flows) {
  return ring_buffer__epoll_fd(flows->ring);
}

/* ---- life ---- */

int na_flows_create(na_engine *engine, const na_flows_config *config, na_flows **out) {
  if (engine->flows)
    return -EEXIST;
  if (!config->life)
    return -EINVAL;
  na_flows *flows = calloc(1, sizeof *flows);
  int error = flows ? na_flow_reporter_init(&flows->reporter, config) : -ENOMEM;
  if (error) {
    free(flows);
    return error;
  }
  flows->engine = engine;
  flows->life = config->life;
  na_flow_table_init(&flows->table, config->max_flows ? config->max_flows : DEFAULT_MAX_FLOWS);
  na_flow_cache_init(&flows->names);
  engine->flows = *out = flows;
  return 0;
}

int na_flows_new(na_engine *engine, int ring_fd, const na_flows_config *config, na_flows **out) {
  int error = na_flows_create(engine, config, out);
  if (error)
    return error;
  (*out)->ring = ring_buffer__new(ring_fd, on_sample, *out, NULL);
  if ((*out)->ring)
    return 0;
  error = -errno;
  na_flows_free(*out);
  return error;
}

void na_flows_free(na_flows *flows) {
  if (!flows)
    return;
  flows->engine->flows = NULL;
  ring_buffer__free(flows->ring);
  na_flow_table_free(&flows->table);
  na_flow_cache_clear(&flows->names);
  na_flow_reporter_free(&flows->reporter);
  free(flows->used);
  free(flows);
}
