/* SPDX-License-Identifier: Apache-2.0
 *
 * Upstream connections: opening them, keeping unused ones, closing them. What is spoken over them is http_upstream.c.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "connect.h"
#include "hbone.h"
#include "http_upstream.h"

/* ---- the end ---- */

static void upstream_free(na_grave *grave) {
  free(na_container_of(grave, na_upstream, grave));
}

static void no_longer_pending(na_upstream *upstream) {
  if (upstream->pending)
    na_cluster_release(upstream->cluster, NA_LIMIT_PENDING);
  upstream->pending = false;
}

static void no_longer_idle(na_upstream *upstream) {
  if (!na_link_in_list(&upstream->idle))
    return;
  na_link_remove(&upstream->idle);
  upstream->pool->nidle--;
  na_count_down(&upstream->worker->counters, NA_COUNTER_UPSTREAM_CX_IDLE);
}

void na_upstream_close(na_upstream *upstream) {
  if (upstream->dead)
    return;
  na_worker *worker = upstream->worker;
  upstream->dead = true;
  if (upstream->request)
    upstream->request->upstream = NULL;
  upstream->request = NULL;
  no_longer_idle(upstream);
  no_longer_pending(upstream);
  na_timer_disarm(&upstream->timer);
  if (na_stream_is_open(&upstream->stream))
    na_count_down(&worker->counters, NA_COUNTER_UPSTREAM_CX_ACTIVE);
  na_stream_close(&upstream->stream, false);
  na_input_free(&upstream->in);
  if (upstream->counted)
    na_cluster_release(upstream->cluster, NA_LIMIT_CONNECTIONS);
  if (upstream->cluster)
    na_cluster_unref(upstream->cluster);
  na_pool_unref(worker, upstream->pool);
  na_loop_bury(&worker->loop, &upstream->grave, upstream_free);
}

/* ---- idle in the pool ---- */

static uint32_t idle_timeout_ms(const na_upstream *upstream) {
  uint32_t own = upstream->cluster ? upstream->cluster->config.idle_timeout_ms : 0;
  return own ? own : upstream->worker->config->pool_idle_timeout_ms;
}

static bool may_be_reused(const na_upstream *upstream) {
  const na_worker *worker = upstream->worker;
  const na_stream *stream = &upstream->stream;
  uint32_t max = upstream->cluster ? upstream->cluster->config.max_requests_per_connection : NA_NEVER;
  return upstream->keep_alive && !stream->peer_closing && !stream->broken && !na_stream_blocked(stream) &&
         na_input_length(&upstream->in) == 0 && !worker->stopping && upstream->requests < max &&
         !atomic_load_explicit(&upstream->pool->key.workload->removed, memory_order_relaxed) &&
         na_hbone_is_current(stream) && na_pool_is_wanted(worker, upstream->pool, upstream->cluster);
}

/* All pools together: there may be one per client address. */
static bool too_many_idle(const na_worker *worker) {
  return worker->counters.values[NA_COUNTER_UPSTREAM_CX_IDLE] >= worker->config->max_connections / 2;
}

void na_upstream_release(na_upstream *upstream) {
  na_worker *worker = upstream->worker;
  upstream->request = NULL;
  if (!may_be_reused(upstream)) {
    na_upstream_close(upstream);
    return;
  }
  if (upstream->pool->nidle >= worker->config->pool_max_idle || too_many_idle(worker)) {
    na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_POOL_OVERFLOW);
    na_upstream_close(upstream);
    return;
  }
  na_list_push_front(&upstream->pool->idle, &upstream->idle);
  upstream->pool->nidle++;
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_IDLE);
  upstream->idle_deadline_ms = worker->loop.now_ms + idle_timeout_ms(upstream);
  if (!na_timer_armed(&upstream->timer))
    na_timer_arm(&worker->loop.wheel, &upstream->timer, upstream->idle_deadline_ms);
}

/* ---- events ---- */

/* What the request's report says of the other end. */
static void note_peer(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  na_peer peer;
  request->local = upstream->local;
  request->mutual_tls = na_hbone_peer(&upstream->stream, &peer);
  request->principal = peer.principal;
}

static void connected(na_upstream *upstream) {
  upstream->stream.connecting = false;
  no_longer_pending(upstream);
  na_timer_disarm(&upstream->timer);
  if (upstream->worker->access.records)
    na_connect_local(na_stream_socket(&upstream->stream), &upstream->local);
  note_peer(upstream);
  na_upstream_send(upstream);
}

static void connect_failed(na_upstream *upstream, int error) {
  na_http_request *request = upstream->request;
  na_worker_count(upstream->worker, NA_COUNTER_UPSTREAM_CX_CONNECT_FAIL);
  free(request->failure);
  request->failure = strdup(na_stream_failure(&upstream->stream, error));
  na_upstream_close(upstream);
  na_request_connect_failed(request, error);
}

static void on_timer(na_timer *timer) {
  na_upstream *upstream = na_container_of(timer, na_upstream, timer);
  na_loop *loop = &upstream->worker->loop;
  if (upstream->stream.connecting) {
    na_worker_count(upstream->worker, NA_COUNTER_UPSTREAM_CX_CONNECT_TIMEOUT);
    connect_failed(upstream, -ETIMEDOUT);
  } else if (upstream->request) {
    na_timer_arm(&loop->wheel, timer, loop->now_ms + idle_timeout_ms(upstream)); /* in use: look again later */
  } else if (upstream->idle_deadline_ms > loop->now_ms) {
    na_timer_arm(&loop->wheel, timer, upstream->idle_deadline_ms);
  } else {
    na_upstream_close(upstream);
  }
}

static void on_connecting(na_upstream *upstream, uint32_t events) {
  int error = events ? upstream->stream.transport->connected(&upstream->stream) : -EINPROGRESS;
  if (error == 0) {
    connected(upstream);
    if (!upstream->dead && upstream->stream.readable)
      na_upstream_resume(upstream); /* it spoke at once: nobody will tell that again */
  } else if (error != -EINPROGRESS) {
    connect_failed(upstream, error);
  }
}

static void on_event(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_upstream *upstream = na_container_of(stream, na_upstream, stream);
  if (upstream->dead)
    return;
  bool was_blocked = na_stream_blocked(stream);
  int error = na_stream_events(stream, events);
  if (stream->connecting) {
    on_connecting(upstream, events);
    return;
  }
  if (!upstream->request) { /* idle: whatever comes, it is of no more use */
    if (stream->readable || error)
      na_upstream_close(upstream);
    return;
  }
  if (was_blocked && !na_stream_blocked(stream) && !error) {
    upstream->request->last_ms = upstream->worker->loop.now_ms;
    upstream->request->responder->more(upstream->request);
  }
  na_upstream_respond(upstream); /* also after an error: the answer may have come before it */
}

/* ---- getting a connection ---- */

static na_upstream *from_pool(na_pool *pool) {
  while (!na_list_empty(&pool->idle)) {
    na_upstream *upstream = na_container_of(pool->idle.next, na_upstream, idle);
    if (na_hbone_is_current(&upstream->stream)) {
      no_longer_idle(upstream);
      upstream->reused = true;
      return upstream;
    }
    na_upstream_close(upstream);
  }
  return NULL;
}

static na_upstream *new_upstream(na_http_request *request, na_pool *pool) {
  na_upstream *upstream = calloc(1, sizeof *upstream);
  if (!upstream)
    return NULL;
  upstream->worker = request->worker;
  upstream->pool = pool;
  upstream->cluster = request->cluster ? na_cluster_ref(request->cluster) : NULL;
  na_link_init(&upstream->idle);
  na_timer_init(&upstream->timer, on_timer);
  na_stream_init(&upstream->stream, &request->worker->loop, on_event, upstream);
  return upstream;
}

static bool within_limits(na_upstream *upstream) {
  if (!upstream->cluster)
    return true;
  upstream->counted = na_cluster_acquire(upstream->cluster, NA_LIMIT_CONNECTIONS);
  upstream->pending = upstream->counted && na_cluster_acquire(upstream->cluster, NA_LIMIT_PENDING);
  return upstream->pending;
}

/* Through the endpoint's tunnel, or by a socket: the one that is connected already, or a new one. */
static int open_stream(na_http_request *request, na_upstream *upstream) {
  na_worker *worker = request->worker;
  na_conn *conn = request->conn;
  const na_pool_key *key = &upstream->pool->key;
  if (request->host && request->host->via) {
    const na_hbone_dial dial = {.worker = worker,
                                .workload = key->workload,
                                .via = request->host->via,
                                .remote = &key->remote,
                                .client = &conn->peer,
                                .http = true};
    return na_hbone_connect(&upstream->stream, &dial);
  }
  bool foreign = !na_ip_is_any(key->source.ip);
  int fd = na_ahead_take(conn);
  if (fd >= 0)
    upstream->reused = true; /* it may have gone stale, too */
  else
    fd = na_connect(worker, key->workload, &key->remote, foreign ? &key->source : NULL);
  int error = fd < 0 ? fd : na_stream_connect(&upstream->stream, fd, &na_transport_tcp);
  if (foreign && (error == -EPERM || error == -EACCES))
    na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_TRANSPARENT_FAIL);
  return error;
}

static void open_connection(na_http_request *request, na_upstream *upstream) {
  na_worker *worker = request->worker;
  if (!within_limits(upstream)) {
    na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_OVERFLOW);
    na_upstream_close(upstream);
    na_request_reply(request, 503, NA_FLAG_UO, "upstream_reset_before_response_started{overflow}",
                     "upstream connect error or disconnect/reset before headers. reset reason: overflow");
    return;
  }
  int error = open_stream(request, upstream);
  if (error < 0) {
    connect_failed(upstream, error);
    return;
  }
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX);
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_ACTIVE);
  uint32_t timeout = upstream->cluster ? upstream->cluster->config.connect_timeout_ms : NA_DEFAULT_CONNECT_TIMEOUT_MS;
  na_timer_arm(&worker->loop.wheel, &upstream->timer, worker->loop.now_ms + timeout);
}

static na_pool_key key_of(const na_http_request *request) {
  const na_conn *conn = request->conn;
  na_pool_key key = {.workload = conn->workload,
                     .cluster = request->cluster ? request->cluster->state : NULL,
                     .remote = request->remote,
                     .via = request->host && request->host->via ? request->host->via->hash : 0};
  const na_address *source = na_conn_source(conn);
  if (source)
    memcpy(key.source.ip, source->ip, 16);
  return key;
}

void na_upstream_assign(na_http_request *request, bool fresh) {
  assert(!request->upstream);
  na_worker *worker = request->worker;
  na_pool_key key = key_of(request);
  na_pool *pool = na_pool_get(worker, &key);
  na_upstream *upstream = pool && !fresh ? from_pool(pool) : NULL;
  bool reused = upstream != NULL;
  if (reused)
    na_pool_unref(worker, pool); /* it has its own reference */
  else if (pool)
    upstream = new_upstream(request, pool);
  if (!upstream) {
    if (pool)
      na_pool_unref(worker, pool);
    na_request_reply(request, 503, NA_FLAG_OM, "overload", "out of memory");
    return;
  }
  upstream->request = request;
  upstream->head_done = false;
  upstream->scanned = 0;
  upstream->requests++;
  request->upstream = upstream;
  if (reused) {
    note_peer(upstream);
    na_upstream_send(upstream);
  } else {
    open_connection(request, upstream);
  }
}
