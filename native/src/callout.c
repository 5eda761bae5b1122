/* SPDX-License-Identifier: Apache-2.0 */
#include "callout.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check_message.h"
#include "conn_guard.h"
#include "grpc.h"
#include "http_call.h"
#include "http_request.h"

#define CHECK_PATH "/envoy.service.auth.v3.Authorization/Check"
/* Attempts when connections fail: nothing was decided then. */
#define ATTEMPTS 2

/* A question in progress. */
typedef struct inquiry {
  const na_callout *callout;
  na_asker *asker;
  na_authz *authz;
  na_worker *worker;
  na_conn *conn;
  na_http_request *request; /* NULL: about a connection */
  union {
    na_grpc_call grpc;
    na_http_call http;
  };
  na_timer timer;
  na_cluster *cluster; /* reference; NULL: not asked yet */
  const na_host *host; /* of the cluster */
  const na_host_state *tried[ATTEMPTS];
  uint32_t ntried;
  uint64_t deadline_ms;
  uint64_t time_us; /* since 1970: when the request came */
  uint64_t id;
  bool counted; /* against the cluster's requests */
  bool has_body;
  bool partial;
  na_buffer body;
  char *question; /* HTTP: the whole request */
  size_t question_n;
} inquiry;

static void count(const inquiry *q, enum na_counter_id id) {
  na_worker_count(q->worker, id);
}

/* ---- the end ---- */

static void leave_host(inquiry *q) {
  if (q->host)
    na_host_release(q->host);
  q->host = NULL;
}

static void inquiry_free(inquiry *q) {
  na_timer_disarm(&q->timer);
  leave_host(q);
  if (q->counted)
    na_cluster_release(q->cluster, NA_LIMIT_REQUESTS);
  if (q->cluster)
    na_cluster_unref(q->cluster);
  q->authz->more = NULL;
  q->worker->callouts->ncalls--;
  na_count_down(&q->worker->counters, NA_COUNTER_CALLOUT_ACTIVE);
  na_buffer_free(&q->body);
  free(q->question);
  free(q);
}

static void give_up(inquiry *q, bool timed_out) {
  if (q->callout->grpc)
    na_grpc_cancel(&q->grpc, timed_out);
  else
    na_http_call_cancel(&q->http);
}

/* Whoever waited is gone. */
static void abandoned(void *waiting) {
  inquiry *q = waiting;
  give_up(q, false);
  inquiry_free(q);
}

static void conclude(inquiry *q, enum na_verdict verdict, const na_refusal *refusal) {
  na_asker *asker = q->asker;
  inquiry_free(q);
  asker->resume(asker, verdict, refusal);
}

/* Let the application know that nobody said it may. False: it must not pass without. */
static bool mark_open(const na_callout *callout, na_authz *authz, na_h1_head *head) {
  return !callout->mark_open || !head ||
         na_head_edit(&authz->edits, head, NA_EDIT_SET, na_str_of("x-envoy-auth-failure-mode-allowed"),
                      na_str_of("true")) == 0;
}

/* What comes of it when there is no answer. */
static enum na_verdict without_answer(const na_callout *callout, na_worker *worker, na_authz *authz, na_h1_head *head,
                                      na_refusal *refusal) {
  na_worker_count(worker, NA_COUNTER_CALLOUT_ERROR);
  if (callout->fail_open && mark_open(callout, authz, head)) {
    na_worker_count(worker, NA_COUNTER_CALLOUT_FAILED_OPEN);
    return NA_VERDICT_ALLOW;
  }
  *refusal = (na_refusal){.status = callout->status_on_error, .flags = NA_FLAG_UAEX, .detail = "ext_authz_error"};
  return NA_VERDICT_DENY;
}

static na_h1_head *head_of(const inquiry *q) {
  return q->request ? na_request_own_head(q->request) : NULL;
}

static void conclude_without(inquiry *q) {
  na_refusal refusal = {0};
  enum na_verdict verdict = without_answer(q->callout, q->worker, q->authz, head_of(q), &refusal);
  conclude(q, verdict, &refusal);
}

static void on_timeout(na_timer *timer) {
  inquiry *q = na_container_of(timer, inquiry, timer);
  count(q, NA_COUNTER_CALLOUT_TIMEOUT);
  give_up(q, true);
  conclude_without(q);
}

/* ---- the answer ---- */

static void conclude_with(inquiry *q, int error, enum na_verdict verdict, const na_refusal *refusal) {
  if (error) {
    conclude_without(q);
    return;
  }
  count(q, verdict == NA_VERDICT_ALLOW ? NA_COUNTER_CALLOUT_ALLOWED : NA_COUNTER_CALLOUT_DENIED);
  conclude(q, verdict, refusal);
}

static int ask_once(inquiry *q);

/* Whether it was asked again, elsewhere or over another connection. */
static bool retried(inquiry *q, int error) {
  bool lost = error == -ECONNRESET || error == -ECONNREFUSED || error == -EPIPE || error == -ESTALE ||
              error == -EHOSTUNREACH || error == -ENETUNREACH;
  return lost && q->ntried < ATTEMPTS && ask_once(q) == 0;
}

static void on_grpc(na_grpc_call *call, int error, na_str message) {
  inquiry *q = na_container_of(call, inquiry, grpc);
  na_refusal refusal = {0};
  na_header headers[NA_H1_MAX_HEADERS];
  enum na_verdict verdict = NA_VERDICT_DENY;
  if (error && retried(q, error))
    return;
  if (!error)
    error = na_callout_answer_grpc(q->authz, head_of(q), message, &verdict, &refusal, headers);
  conclude_with(q, error, verdict, &refusal);
}

static void on_http(na_http_call *call, int error, const na_h1_head *head, na_str body) {
  inquiry *q = na_container_of(call, inquiry, http);
  na_refusal refusal = {0};
  na_header headers[NA_H1_MAX_HEADERS];
  enum na_verdict verdict = NA_VERDICT_DENY;
  if (error && retried(q, error))
    return;
  if (!error)
    error = na_callout_answer_http(q->callout, q->authz, head_of(q), head, body, &verdict, &refusal, headers);
  conclude_with(q, error, verdict, &refusal);
}

/* ---- asking ---- */

static na_sent_body body_of(const inquiry *q) {
  return (na_sent_body){.wanted = q->has_body,
                        .partial = q->partial,
                        .bytes = {na_buffer_bytes(&q->body), (uint32_t)na_buffer_length(&q->body)}};
}

/* The workload's own SPIFFE ID, where it is spoken to by it. */
static na_str own_principal(const inquiry *q) {
  const na_identity *identity =
      na_snapshot_identity(q->worker->snapshot, na_workload_text(&q->conn->workload->identity));
  return identity ? na_str_of(identity->uri) : (na_str){"", 0};
}

static bool is_told(const void *context, na_str name) {
  const na_callout *callout = context;
  return (!callout->names[NA_CALLOUT_SEND].n || na_header_names_has(&callout->names[NA_CALLOUT_SEND], name)) &&
         !na_header_names_has(&callout->names[NA_CALLOUT_HIDE], name);
}

static void write_question(const inquiry *q, na_wire_out *out) {
  na_str principal = na_conn_principal(q->conn);
  na_sent_body body = body_of(q);
  const na_check_request check = {
      .source = &q->conn->peer,
      .destination = &q->conn->local,
      .source_principal = principal,
      .destination_principal = principal.n ? own_principal(q) : principal,
      .http = q->request ? &na_request_head(q->request)->request : NULL,
      .is_told = is_told,
      .context = q->callout,
      .time_us = q->time_us,
      .id = q->id,
      .protocol = na_str_of(q->request && q->request->http10 ? "HTTP/1.0" : "HTTP/1.1"),
      .has_body = body.wanted,
      .partial = body.partial,
      .raw = q->callout->body_raw,
      .body = body.bytes,
  };
  na_check_request_write(&check, out);
}

static int ask_grpc(inquiry *q, const na_channel_target *target, uint32_t timeout_ms) {
  const na_own_pairs *metadata = &q->callout->pairs[NA_CALLOUT_METADATA];
  na_wire_out out = {0};
  write_question(q, &out);
  q->grpc = (na_grpc_call){.done = on_grpc};
  const na_grpc_args args = {.target = *target,
                             .path = CHECK_PATH,
                             .authority = na_str_of(q->callout->authority),
                             .metadata = metadata->items,
                             .nmetadata = metadata->n,
                             .timeout_ms = timeout_ms,
                             .message = {out.bytes, (uint32_t)out.n}};
  int error = out.failed ? -ENOMEM : na_grpc_start(&q->grpc, &args);
  na_wire_free(&out);
  return error;
}

static int ask_http(inquiry *q, const na_channel_target *target) {
  const na_request *request = &na_request_head(q->request)->request;
  if (!q->question) {
    const na_sent_body body = body_of(q);
    q->question = na_callout_question_http(q->callout, request, &body, &q->question_n);
  }
  if (!q->question)
    return -ENOMEM;
  q->http = (na_http_call){
      .done = on_http, .request = q->question, .n = q->question_n, .is_head = na_str_eq(request->method, "HEAD")};
  return na_http_call_start(&q->http, target, q->ntried > 1);
}

static bool choose_host(inquiry *q) {
  leave_host(q);
  const na_host *host = na_cluster_pick_other(q->cluster, na_random(q->worker), q->worker->index, q->tried, q->ntried);
  if (!host)
    return false;
  na_host_acquire(host);
  q->host = host;
  q->tried[q->ntried++] = host->state;
  return true;
}

static int ask_once(inquiry *q) {
  uint64_t now_ms = q->worker->loop.now_ms;
  if (now_ms >= q->deadline_ms || !choose_host(q))
    return -EHOSTUNREACH;
  const na_channel_target target = {.worker = q->worker,
                                    .workload = q->conn->workload,
                                    .cluster = q->cluster,
                                    .host = q->host,
                                    .client = &q->conn->peer};
  if (q->callout->grpc)
    return ask_grpc(q, &target, (uint32_t)(q->deadline_ms - now_ms));
  return ask_http(q, &target);
}

/* Begin to ask, with what is there of the body. */
static int start(inquiry *q) {
  na_loop *loop = &q->worker->loop;
  na_cluster *cluster = na_snapshot_cluster(q->worker->snapshot, q->callout->slot);
  if (!cluster || cluster->config.kind != NA_CLUSTER_ENDPOINTS)
    return -ENOENT;
  q->cluster = na_cluster_ref(cluster);
  na_mark_used(&cluster->state->used);
  q->counted = na_cluster_acquire(cluster, NA_LIMIT_REQUESTS);
  if (!q->counted) {
    count(q, NA_COUNTER_CALLOUT_OVERFLOW);
    return -EBUSY;
  }
  q->deadline_ms = loop->now_ms + q->callout->timeout_ms;
  int error = ask_once(q);
  while (error && error != -EHOSTUNREACH && error != -EBUSY && q->ntried < ATTEMPTS)
    error = ask_once(q);
  if (!error)
    na_timer_arm(&loop->wheel, &q->timer, q->deadline_ms);
  return error;
}

/* ---- the body that is sent along ---- */

enum gathering { GATHERED, GATHER_MORE, GATHER_TOO_MUCH, GATHER_BAD };

/* Look at what has come of the body; it is not consumed. full: no more can be kept of it. */
static enum gathering gather(inquiry *q, bool full) {
  const uint32_t max = q->callout->body_bytes;
  bool end = false;
  q->partial = false;
  na_buffer_free(&q->body);
  if (q->request->responder->peek(q->request, &q->body, max + 1, &end) < 0)
    return GATHER_BAD;
  size_t n = na_buffer_length(&q->body);
  if (n <= max && end)
    return GATHERED;
  q->partial = true;
  if (n > max)
    q->body.end = q->body.start + max;
  if (q->callout->body_partial ? n >= max || full : n > max || full)
    return q->callout->body_partial ? GATHERED : GATHER_TOO_MUCH;
  return GATHER_MORE;
}

static const na_refusal too_large = {
    .status = 413, .detail = "request_payload_too_large", .body = {"Payload Too Large", 17}};
static const na_refusal malformed = {.status = 400, .flags = NA_FLAG_DPE, .detail = "http1.codec_error"};

static void on_more(void *waiting, bool full) {
  inquiry *q = waiting;
  switch (gather(q, full)) {
  case GATHER_MORE:
    break;
  case GATHERED:
    q->authz->more = NULL;
    if (start(q))
      conclude_without(q);
    break;
  case GATHER_TOO_MUCH:
    count(q, NA_COUNTER_CALLOUT_BODY_TOO_LARGE);
    conclude(q, NA_VERDICT_DENY, &too_large);
    break;
  case GATHER_BAD:
    conclude(q, NA_VERDICT_DENY, &malformed);
  }
}

/* Envoy: not of upgrades, whose body never ends. */
static bool wants_body(const inquiry *q) {
  return q->callout->body_bytes && q->request && !q->request->body_sent && !q->request->upgrade;
}

/* ---- the stage ---- */

static uint64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* NULL when too many wait, or for want of memory. */
static inquiry *inquiry_new(const na_callout *callout, const na_subject *subject) {
  na_worker *worker = subject->worker;
  na_callouts *callouts = na_callouts_of(worker);
  if (!callouts || callouts->ncalls >= worker->config->callout_max_calls) {
    na_worker_count(worker, NA_COUNTER_CALLOUT_OVERFLOW);
    return NULL;
  }
  inquiry *q = calloc(1, sizeof *q);
  if (!q)
    return NULL;
  uint64_t began_us = subject->request ? subject->request->start_us : subject->conn->start_us;
  *q = (inquiry){.callout = callout,
                 .asker = subject->asker,
                 .authz = subject->authz,
                 .worker = worker,
                 .conn = subject->conn,
                 .request = subject->request,
                 .time_us = now_us() - (worker->loop.now_us - began_us),
                 .id = na_random(worker)};
  na_timer_init(&q->timer, on_timeout);
  callouts->ncalls++;
  na_worker_count(worker, NA_COUNTER_CALLOUT_ACTIVE);
  return q;
}

/* The client may wait for this before it sends the body (RFC 9110 10.1.1). */
static void invite(inquiry *q) {
  const na_response response = {.status = 100, .reason = na_str_of("Continue")};
  if (q->request->invited || !na_request_head(q->request)->expect_continue)
    return;
  q->request->invited = true;
  (void)q->request->responder->head(q->request, &response, NULL, 0, false);
}

/* Begin with the body if it is wanted, else with the question. */
static int begin(inquiry *q, na_refusal *refusal) {
  if (!wants_body(q))
    return start(q);
  q->has_body = true;
  switch (gather(q, false)) {
  case GATHERED:
    return start(q);
  case GATHER_TOO_MUCH:
    count(q, NA_COUNTER_CALLOUT_BODY_TOO_LARGE);
    *refusal = too_large;
    return 0;
  case GATHER_BAD:
    *refusal = malformed;
    return 0;
  case GATHER_MORE:
    break;
  }
  invite(q);
  q->authz->more = on_more;
  q->request->responder->more(q->request);
  return 0;
}

static enum na_verdict ask(const na_stage *stage, na_subject *subject, na_refusal *refusal) {
  const na_callout *callout = na_callout_of(stage);
  if (subject->again || !subject->asker) /* it was asked; or it is explained, and nobody is asked */
    return NA_VERDICT_ALLOW;
  if (callout->conditional && !na_check_holds(callout->when.checks, &subject->facts))
    return NA_VERDICT_ALLOW;
  inquiry *q = inquiry_new(callout, subject);
  int error = q ? begin(q, refusal) : -EBUSY;
  if (!error && !refusal->status) {
    subject->asker->abandon = abandoned;
    subject->asker->waiting = q;
    return NA_VERDICT_WAIT;
  }
  if (q)
    inquiry_free(q);
  return error ? without_answer(callout, subject->worker, subject->authz, subject->head, refusal) : NA_VERDICT_DENY;
}

static void explain(const na_stage *stage, const na_subject *subject, na_out *out) {
  const na_callout *callout = na_callout_of(stage);
  bool asked = !callout->conditional || na_check_holds(callout->when.checks, &subject->facts);
  na_out_cstr(out, "stage\tcallout\ncallout\t");
  na_out_cstr(out, callout->cluster);
  na_out_cstr(out, asked ? "\twould be asked\n" : "\tnot asked\n");
}

const na_stage_kind na_stage_callout = {
    .name = "callout", .keeps = true, .ask = ask, .explain = explain, .bind = na_callout_bind, .free = na_callout_free};
