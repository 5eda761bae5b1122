/* SPDX-License-Identifier: Apache-2.0 */
#include "http_request.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http_guard.h"
#include "http_path.h"
#include "http_tunnel.h"
#include "http_upstream.h"
#include "report.h"

static void route(na_http_request *request, const na_h1_head *head, bool may_wait);

/* ---- the end ---- */

static void drop_upstream(na_http_request *request) {
  na_upstream *upstream = request->upstream;
  request->upstream = NULL;
  if (upstream)
    na_upstream_close(upstream);
}

static void leave_host(na_http_request *request) {
  if (request->host)
    na_host_release(request->host);
  request->host = NULL;
}

static void leave_cluster(na_http_request *request) {
  leave_host(request);
  if (request->counted)
    na_cluster_release(request->cluster, NA_LIMIT_REQUESTS);
  request->counted = false;
  if (request->cluster)
    na_cluster_unref(request->cluster);
  request->cluster = NULL;
}

static void drop_authz(na_http_request *request) {
  if (request->authz->stage)
    na_count_down(&request->worker->counters, NA_COUNTER_GUARDS_WAITING);
  na_authz_free(request->authz);
  request->authz = NULL;
}

static void request_free(na_http_request *request) {
  assert(!request->upstream);
  na_unpark(&request->waiter);
  na_timer_disarm(&request->timer);
  leave_cluster(request);
  if (request->vhost)
    na_vhost_unref(request->vhost);
  na_buffer_free(&request->replay);
  if (request->authz)
    drop_authz(request);
  free(request->failure);
  na_count_down(&request->worker->counters, NA_COUNTER_DOWNSTREAM_RQ_ACTIVE);
  free(request);
}

static void end(na_http_request *request, bool aborted) {
  if (request->tunnel)
    na_tunnel_close(request);
  drop_upstream(request);
  request->state = NA_REQUEST_FINISHED;
  na_report_request(request); /* while there is a connection: the next call may close it */
  request->responder->finished(request, aborted);
  request_free(request);
}

void na_request_finish(na_http_request *request) {
  end(request, false);
}

void na_request_abort(na_http_request *request, uint32_t flags, const char *detail) {
  request->flags |= flags;
  request->detail = detail;
  end(request, true);
}

void na_request_reply(na_http_request *request, uint16_t status, uint32_t flags, const char *detail, const char *text) {
  if (request->state >= NA_REQUEST_ANSWERING) {
    na_request_abort(request, flags, detail);
    return;
  }
  drop_upstream(request);
  na_unpark(&request->waiter);
  request->flags |= flags;
  request->detail = detail;
  na_reply_text(request, status, text);
}

void na_request_deny(na_http_request *request, const na_refusal *refusal) {
  request->flags |= refusal->flags;
  request->detail = refusal->detail;
  na_reply_refusal(request, refusal);
}

/* ---- timeouts ---- */

static void on_timeout(na_timer *timer) {
  na_http_request *request = na_container_of(timer, na_http_request, timer);
  na_worker_count(request->worker, NA_COUNTER_DOWNSTREAM_RQ_TIMEOUT);
  na_request_reply(request, 504, NA_FLAG_UT, "response_timeout", "upstream request timeout");
}

/* From the end of the request; whichever comes last, that or the route, starts it. */
static void start_timeout(na_http_request *request) {
  na_loop *loop = &request->worker->loop;
  if (request->body_sent && request->timeout_ms != NA_NEVER)
    na_timer_arm(&loop->wheel, &request->timer, loop->now_ms + request->timeout_ms);
}

void na_request_body_sent(na_http_request *request) {
  request->body_sent = true;
  request->sent_us = request->worker->loop.now_us;
  start_timeout(request);
}

/* ---- bodies ---- */

bool na_request_takes_body(const na_http_request *request) {
  const na_upstream *upstream = request->upstream;
  return upstream && !na_stream_blocked(&upstream->stream) && !upstream->stream.broken;
}

void na_request_pump(na_http_request *request) {
  if (request->upstream)
    na_upstream_pump(request->upstream);
}

void na_request_writable(na_http_request *request) {
  request->last_ms = request->worker->loop.now_ms;
  if (request->upstream)
    na_upstream_resume(request->upstream);
}

/* ---- going upstream ---- */

static bool choose_endpoint(na_http_request *request) {
  na_worker *worker = request->worker;
  leave_host(request);
  const na_host *host =
      na_cluster_pick_other(request->cluster, na_random(worker), worker->index, request->tried, request->ntried);
  if (!host)
    return false;
  na_host_acquire(host);
  request->host = host;
  request->tried[request->ntried++] = host->state;
  memcpy(request->remote.ip, host->endpoint.address, 16);
  request->remote.port = host->endpoint.port;
  request->endpoint_tag = host->endpoint.tag;
  return true;
}

void na_request_connect(na_http_request *request, bool fresh) {
  request->state = NA_REQUEST_CONNECTING;
  if (request->cluster && request->cluster->config.kind == NA_CLUSTER_ENDPOINTS && !choose_endpoint(request)) {
    na_request_reply(request, 503, NA_FLAG_UH, "no_healthy_upstream", "no healthy upstream");
    return;
  }
  na_upstream_assign(request, fresh);
}

void na_request_connect_failed(na_http_request *request, int error) {
  if (request->host && request->ntried <= NA_REQUEST_RETRIES &&
      na_cluster_is_worth_another(request->cluster, na_random(request->worker), request->tried, request->ntried,
                                  error)) {
    na_worker_count(request->worker, NA_COUNTER_UPSTREAM_RQ_RETRY);
    na_request_connect(request, false);
    return;
  }
  uint32_t flags = request->ntried > 1 ? NA_FLAG_UF | NA_FLAG_URX : NA_FLAG_UF;
  if (error == -ETIMEDOUT)
    na_request_reply(request, 503, flags, "upstream_reset_before_response_started{connection_timeout}",
                     "upstream connect error or disconnect/reset before headers. reset reason: connection timeout");
  else
    na_request_reply(request, 503, flags, "upstream_reset_before_response_started{connection_failure}",
                     "upstream connect error or disconnect/reset before headers. reset reason: connection failure");
}

void na_request_upstream_lost(na_http_request *request, bool stale) {
  if (stale && request->replayable && !request->replayed) {
    na_worker_count(request->worker, NA_COUNTER_UPSTREAM_RQ_REPLAY);
    request->replayed = true;
    request->state = NA_REQUEST_CONNECTING;
    na_upstream_assign(request, true);
    return;
  }
  na_request_reply(request, 503, NA_FLAG_UC, "upstream_reset_before_response_started{connection_termination}",
                   "upstream connect error or disconnect/reset before headers. reset reason: connection termination");
}

/* ---- routing ---- */

/* Whether there is somewhere to go. */
static bool leads_somewhere(const na_http_request *request) {
  uint32_t kind = request->cluster ? request->cluster->config.kind : NA_CLUSTER_ORIGINAL_DST;
  if (kind == NA_CLUSTER_ORIGINAL_DST && !na_conn_can_pass(request->conn)) {
    na_worker_count(request->worker, NA_COUNTER_DOWNSTREAM_CX_LOOP);
    return false;
  }
  return kind != NA_CLUSTER_BLACKHOLE;
}

/* Go to the cluster; NULL: to where the connection was going. */
static void forward(na_http_request *request, na_cluster *cluster) {
  if (!cluster || cluster->config.kind == NA_CLUSTER_ORIGINAL_DST)
    request->remote = request->conn->local; /* else the endpoint's, once there is one */
  if (cluster) {
    request->cluster = na_cluster_ref(cluster);
    request->cluster_tag = cluster->config.tag;
    na_mark_used(&cluster->state->used);
    request->counted = na_cluster_acquire(cluster, NA_LIMIT_REQUESTS);
  }
  if (cluster && !request->counted) {
    na_worker_count(request->worker, NA_COUNTER_UPSTREAM_RQ_OVERFLOW);
    na_request_reply(request, 503, NA_FLAG_UO, "upstream_reset_before_response_started{overflow}",
                     "upstream connect error or disconnect/reset before headers. reset reason: overflow");
  } else if (!leads_somewhere(request)) {
    na_request_reply(request, 503, NA_FLAG_UH, "no_healthy_upstream", "no healthy upstream");
  } else {
    na_request_connect(request, false);
  }
}

/* HTTP to a destination that has no routes (any more), or none for this request: as its TCP would go. */
static void forward_by_destination(na_http_request *request, const na_destination *destination) {
  bool passthrough = true;
  na_cluster *cluster = destination ? na_snapshot_pick_cluster(request->worker->snapshot, destination,
                                                               na_random(request->worker), &passthrough)
                                    : NULL;
  if (cluster || passthrough)
    forward(request, cluster);
  else
    na_request_reply(request, 503, NA_FLAG_NC, "cluster_not_found", NULL);
}

static na_destination *destination_of(const na_http_request *request) {
  const na_conn *conn = request->conn;
  const na_view *view = na_snapshot_view(request->worker->snapshot, conn->workload->view);
  return view ? na_view_destination(view, conn->local.ip, conn->local.port) : NULL;
}

/* A route for hosts that nobody knows leads to where the connection was going. Where that is a service, its cluster is
 * the way there: it knows the tunnels, and a strange Host header must not be what makes a request go in plaintext. */
static void forward_on(na_http_request *request, na_cluster *cluster) {
  const na_destination *destination = destination_of(request);
  if (destination && destination->n)
    forward_by_destination(request, destination);
  else
    forward(request, cluster);
}

static void forward_by_route(na_http_request *request) {
  const na_snapshot *snapshot = request->worker->snapshot;
  request->timeout_ms = request->route->timeout_ms;
  start_timeout(request);
  request->destination = na_route_pick(request->route, na_random(request->worker));
  na_cluster *cluster = request->destination ? na_snapshot_cluster(snapshot, request->destination->slot) : NULL;
  if (!cluster)
    na_request_reply(request, 503, NA_FLAG_NC, "cluster_not_found", NULL);
  else if (cluster->config.kind == NA_CLUSTER_ORIGINAL_DST)
    forward_on(request, cluster);
  else
    forward(request, cluster);
}

static void act(na_http_request *request, const na_h1_head *head) {
  const na_route *route = na_vhost_match(request->vhost, &head->request);
  if (!route) {
    na_request_reply(request, 404, NA_FLAG_NR, "route_not_found", NULL);
    return;
  }
  request->route = route;
  request->route_tag = route->tag;
  switch (route->action) {
  case NA_ACTION_FORWARD:
    forward_by_route(request);
    break;
  case NA_ACTION_REDIRECT:
    request->detail = "direct_response";
    na_reply_redirect(request);
    break;
  case NA_ACTION_RESPOND:
    request->detail = "direct_response";
    na_reply_direct(request);
    break;
  default:
    na_request_reply(request, 404, NA_FLAG_NR, "route_not_found", NULL);
  }
}

static void on_wake(na_waiter *waiter, enum na_wake why) {
  na_http_request *request = na_container_of(waiter, na_http_request, waiter);
  route(request, na_request_head(request), why == NA_WAKE_COMMIT);
}

static bool wait_for_host(na_http_request *request, const na_h1_head *head, const na_table *table) {
  na_event event = {.kind = NA_EVENT_HOST, .workload = request->conn->workload->id, .tag = table->tag};
  event.port = request->conn->local.port;
  memcpy(event.address, request->conn->local.ip, sizeof event.address);
  strncpy(event.view, request->conn->workload->view, sizeof event.view - 1);
  na_host_of(head->request.authority, event.host, sizeof event.host);
  if (!na_park(&request->waiter, &event))
    return false;
  request->state = NA_REQUEST_PARKED;
  return true;
}

static void route_outbound(na_http_request *request, const na_h1_head *head, bool may_wait) {
  na_destination *destination = destination_of(request);
  if (destination)
    na_mark_used(&destination->used);
  const na_table *table = destination ? na_snapshot_table(request->worker->snapshot, destination->table_slot) : NULL;
  if (!table) {
    forward_by_destination(request, destination);
    return;
  }
  bool wait = false;
  na_vhost *vhost = na_table_vhost(table, head->request.authority, &wait);
  if (wait && may_wait && wait_for_host(request, head, table))
    return;
  if (!vhost) {
    na_request_reply(request, 404, NA_FLAG_NR, "route_not_found", NULL);
    return;
  }
  na_mark_used(&vhost->used);
  request->vhost = na_vhost_ref(vhost);
  act(request, head);
}

static void route_inbound(na_http_request *request) {
  const na_conn *conn = request->conn;
  const na_snapshot *snapshot = request->worker->snapshot;
  const na_inbound *inbound = na_snapshot_inbound_port(snapshot, conn->workload->id, conn->local.port);
  if (!inbound) {
    na_worker_count(request->worker, NA_COUNTER_DOWNSTREAM_CX_NOT_IN_FORCE);
    na_request_reply(request, 503, NA_FLAG_NC, "inbound_configuration_not_in_force",
                     "inbound configuration not in force");
    return;
  }
  (void)na_inbound_protocol(inbound, conn->local.port, &request->cluster_tag);
  if (!inbound->guards || na_http_guard(request, inbound))
    forward(request, NULL);
}

void na_request_guarded(na_http_request *request) {
  forward(request, NULL);
}

static void route(na_http_request *request, const na_h1_head *head, bool may_wait) {
  request->state = NA_REQUEST_STARTED;
  if (na_conn_inbound(request->conn))
    route_inbound(request);
  else
    route_outbound(request, head, may_wait);
}

/* ---- the beginning ---- */

static na_http_request *request_new(na_conn *conn, const na_responder *responder, size_t head_bytes) {
  na_worker *worker = conn->worker;
  na_http_request *request = malloc(sizeof *request + head_bytes);
  if (!request)
    return NULL;
  memset(request, 0, sizeof *request);
  request->worker = worker;
  request->conn = conn;
  request->responder = responder;
  request->start_us = worker->loop.now_us;
  request->last_ms = worker->loop.now_ms;
  request->timeout_ms = NA_NEVER;
  request->replayable = true;
  request->head_bytes = (uint32_t)head_bytes;
  na_waiter_init(&request->waiter, worker, on_wake);
  na_timer_init(&request->timer, on_timeout);
  na_worker_count(worker, NA_COUNTER_DOWNSTREAM_RQ);
  na_worker_count(worker, NA_COUNTER_DOWNSTREAM_RQ_ACTIVE);
  conn->request = request;
  return request;
}

/* RFC 9110 9.2.2 */
static bool is_idempotent(na_str method) {
  static const char *const methods[] = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"};
  for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
    if (na_str_eq(method, methods[i]))
      return true;
  return false;
}

static na_str header_value(const na_h1_head *head, enum na_header_id id) {
  return head->index[id] < 0 ? (na_str){0} : head->headers[head->index[id]].value;
}

/* An offer of `h2c`, alone or among others, is not passed on: it would turn the connection into one that nobody routes.
 * The server then just answers. */
static bool wants_upgrade(const na_h1_head *head) {
  na_str offer = header_value(head, NA_HDR_UPGRADE);
  for (uint32_t i = 0; i + 3 <= offer.n; i++)
    if (strncasecmp(offer.p + i, "h2c", 3) == 0)
      return false;
  return head->upgrade;
}

static bool is_grpc(const na_h1_head *head) {
  na_str type = header_value(head, NA_HDR_CONTENT_TYPE);
  return type.n >= 16 && strncasecmp(type.p, "application/grpc", 16) == 0;
}

/* The same bytes in the request's copy of its head; what is not of the head is static. */
static na_str moved(const na_http_request *request, na_str s, const char *raw) {
  size_t at = (size_t)((uintptr_t)s.p - (uintptr_t)raw);
  return at < request->head_bytes ? (na_str){request->head + at, s.n} : s;
}

static void keep_texts(na_http_request *request, const na_h1_head *head, const char *raw) {
  const na_request *in = &head->request;
  request->texts = (na_request_texts){
      .method = moved(request, in->method, raw),
      .authority = moved(request, in->authority, raw),
      .path = moved(request, in->path_query, raw),
      .user_agent = moved(request, header_value(head, NA_HDR_USER_AGENT), raw),
      .forwarded_for = moved(request, header_value(head, NA_HDR_X_FORWARDED_FOR), raw),
      .request_id = moved(request, header_value(head, NA_HDR_X_REQUEST_ID), raw),
  };
}

/* Room that the request's head needs for its path in normal form; 0: it has it. */
static size_t growth(const na_request *in, uint32_t slashes) {
  bool repeats = slashes && na_path_repeats_slashes(in->path);
  bool normal = !repeats && (in->plain || na_path_is_plain(in->path));
  return normal ? 0 : (size_t)in->path.n * NA_PATH_GROWTH;
}

static bool refuse_path(na_http_request *request, uint16_t status) {
  request->worker->head_of = NULL;
  na_request_reply(request, status, 0, "path_normalization_failed", NULL);
  return false;
}

/* Bring the path to its normal form, in the request's own copy of the head, from which it is parsed anew. False: there
 * is none, and the request was refused. */
static bool normalise(na_http_request *request, const na_h1_head *head, const char **raw) {
  na_worker *worker = request->worker;
  const na_config *config = worker->config;
  na_str path = head->request.path;
  size_t before = (size_t)(path.p - *raw), after = request->head_bytes - before - path.n;
  const char *line_end = memchr(path.p, '\n', path.n + after);
  if ((size_t)path.n * NA_PATH_GROWTH > worker->scratch_size)
    return refuse_path(request, 414);
  long n = na_path_normalise(path, request->conn->slashes, worker->scratch);
  if (n < 0)
    return refuse_path(request, 400);
  size_t line = (size_t)(line_end - *raw) - path.n + (size_t)n;
  if (line > config->max_request_line || before + (size_t)n + after > config->max_head_bytes)
    return refuse_path(request, 414);
  memmove(request->head + before + n, request->head + before + path.n, after);
  memcpy(request->head + before, worker->scratch, (size_t)n);
  request->head_bytes = (uint32_t)(before + (size_t)n + after);
  worker->head_of = NULL;
  (void)na_request_head(request);
  worker->head_of = request;
  *raw = request->head;
  return true;
}

void na_request_start(na_conn *conn, const na_responder *responder, const na_h1_head *head, const char *raw) {
  na_worker *worker = conn->worker;
  size_t room = growth(&head->request, conn->slashes);
  na_http_request *request = request_new(conn, responder, head->head_bytes + room);
  if (!request) {
    na_conn_close(conn, true);
    return;
  }
  assert(head == worker->head);
  request->head_bytes = head->head_bytes;
  worker->head_of = request;
  memcpy(request->head, raw, head->head_bytes);
  if (room && !normalise(request, head, &raw))
    return;
  if (worker->access.records)
    keep_texts(request, head, raw);
  request->http10 = head->minor == 0;
  request->is_head = head->is_head;
  request->idempotent = is_idempotent(head->request.method);
  request->upgrade = wants_upgrade(head);
  request->grpc = is_grpc(head);
  if (conn->body.done)
    na_request_body_sent(request);
  if (head->is_connect)
    na_request_reply(request, 501, NA_FLAG_DPE, "connect_not_supported", "CONNECT is not supported");
  else
    route(request, head, true);
  worker->head_of = NULL; /* the bytes at `raw` may go */
}

void na_request_refuse(na_conn *conn, const na_responder *responder, uint16_t status, uint32_t flags,
                       const char *detail, const char *body) {
  na_http_request *request = request_new(conn, responder, 0);
  if (request)
    na_request_reply(request, status, flags, detail, body);
  else
    na_conn_close(conn, true);
}

na_h1_head *na_request_own_head(na_http_request *request) {
  na_worker *worker = request->worker;
  if (worker->head_of == request)
    return worker->head;
  const na_config *config = worker->config;
  na_h1_limits limits = {config->max_head_bytes, config->max_headers, config->max_request_line};
  na_h1_error error;
  uint32_t scanned = 0;
  worker->head_of = NULL;
  int n = na_h1_parse_request(request->head, request->head_bytes, &scanned, &limits, worker->head, &error);
  assert(n == (int)request->head_bytes); /* it was parsed before */
  (void)n;
  if (request->authz)
    na_head_edits_apply(&request->authz->edits, worker->head);
  return worker->head;
}

const na_h1_head *na_request_head(na_http_request *request) {
  return na_request_own_head(request);
}
