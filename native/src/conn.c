/* SPDX-License-Identifier: Apache-2.0 */
#include "conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ahead.h"
#include "conn_guard.h"
#include "greet.h"
#include "hbone.h"
#include "neighbours.h"
#include "tcp_proxy.h"

/* Envoy's delayed_close_timeout. */
#define LINGER_MS 1000
/* What is swallowed while lingering, so that a client cannot keep us reading for nothing. */
#define LINGER_BYTES (256 * 1024)

static void resolve(na_conn *conn, bool may_wait);

/* ---- deadlines ---- */

static void on_timer(na_timer *timer) {
  na_conn *conn = na_container_of(timer, na_conn, timer);
  na_loop *loop = &conn->worker->loop;
  if (conn->deadline_ms > loop->now_ms)
    na_timer_arm(&loop->wheel, &conn->timer, conn->deadline_ms);
  else
    conn->expire(conn);
}

void na_conn_deadline(na_conn *conn, uint64_t deadline_ms, void (*expire)(na_conn *conn)) {
  conn->deadline_ms = deadline_ms;
  conn->expire = expire;
  if (!na_timer_armed(&conn->timer) || conn->timer.expires_ms > deadline_ms)
    na_timer_arm(&conn->worker->loop.wheel, &conn->timer, deadline_ms);
}

/* ---- the end ---- */

static void conn_free(na_grave *grave) {
  free(na_container_of(grave, na_conn, grave));
}

static void drop_authz(na_conn *conn) {
  if (conn->authz->stage)
    na_count_down(&conn->worker->counters, NA_COUNTER_GUARDS_WAITING);
  na_authz_free(conn->authz);
  conn->authz = NULL;
}

void na_conn_close(na_conn *conn, bool reset) {
  assert(!conn->dead && !conn->request && !conn->tcp);
  na_worker *worker = conn->worker;
  if (conn->phase == NA_CONN_WAITING)
    na_unpark(&conn->waiter);
  conn->dead = true;
  if (conn->authz)
    drop_authz(conn);
  na_greet_stop(conn);
  na_ahead_drop(conn);
  na_timer_disarm(&conn->timer);
  na_stream_close(&conn->stream, reset);
  na_input_free(&conn->in);
  na_link_remove(&conn->link);
  na_worker_conn_gone(worker, conn->workload);
  na_workload_unref(conn->workload);
  na_count_down(&worker->counters, NA_COUNTER_DOWNSTREAM_CX_ACTIVE);
  na_loop_bury(&worker->loop, &conn->grave, conn_free);
}

static void linger_expired(na_conn *conn) {
  na_conn_close(conn, false);
}

static void on_linger(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  if (na_stream_events(stream, events) < 0 || stream->broken) {
    na_conn_close(conn, false);
    return;
  }
  while (stream->readable && !stream->eof) {
    ssize_t n = na_stream_recv(stream, conn->worker->io, conn->worker->io_size);
    if (n == -EAGAIN)
      break;
    conn->swallowed += n > 0 ? (uint32_t)n : 0;
    if (n < 0 || conn->swallowed > LINGER_BYTES) {
      na_conn_close(conn, true);
      return;
    }
  }
  if (stream->eof && !na_stream_blocked(stream))
    na_conn_close(conn, false);
}

void na_conn_linger(na_conn *conn) {
  assert(!conn->request && !conn->tcp);
  conn->phase = NA_CONN_CLOSING;
  conn->stream.watch.fn = on_linger;
  conn->swallowed = 0;
  na_input_free(&conn->in);
  /* What still has to be sent may take as long as the client makes progress at all. */
  uint64_t wait = na_stream_blocked(&conn->stream) ? conn->worker->config->request_idle_timeout_ms : LINGER_MS;
  na_conn_deadline(conn, conn->worker->loop.now_ms + wait, linger_expired);
  if (na_stream_shutdown(&conn->stream) < 0)
    na_conn_close(conn, false);
  else
    na_loop_again(&conn->worker->loop, &conn->stream.watch);
}

void na_conn_drain(na_conn *conn) {
  conn->draining = true;
  bool silent = conn->phase == NA_CONN_DETECTING && na_input_length(&conn->in) == 0;
  if (silent && conn->kind != NA_LISTENER_HBONE) /* in a tunnel its first bytes follow upon our answer */
    na_conn_close(conn, false);
  else if (conn->phase == NA_CONN_IDLE || conn->phase == NA_CONN_ACTIVE)
    na_http_server_drain(conn);
}

void na_conn_cut(na_conn *conn) {
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_DRAINED);
  if (conn->tcp)
    na_tcp_cut(conn);
  else if (conn->request)
    na_http_server_cut(conn);
  else
    na_conn_close(conn, true);
}

/* ---- the beginning ---- */

/* A parked connection is not read; only its failure is noticed. */
static void on_waiting(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  (void)na_stream_events(stream, events);
  if (stream->broken)
    na_conn_close(conn, true);
}

static void wait_expired(na_conn *conn) {
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_IDLE_TIMEOUT);
  na_conn_close(conn, true);
}

void na_conn_wait(na_conn *conn) {
  if (conn->phase != NA_CONN_CONNECTING)
    conn->phase = NA_CONN_GUARDED;
  conn->stream.watch.fn = on_waiting;
  na_conn_deadline(conn, conn->worker->loop.now_ms + conn->worker->config->idle_timeout_ms, wait_expired);
  if (na_input_keep(&conn->in) < 0)
    na_loop_tell(&conn->worker->loop, &conn->stream.watch, EPOLLERR);
}

static void on_wake(na_waiter *waiter, enum na_wake why) {
  na_conn *conn = na_container_of(waiter, na_conn, waiter);
  resolve(conn, why == NA_WAKE_COMMIT);
}

/* Wait for what the destination means; false when there are too many waiters. */
static bool wait_for_destination(na_conn *conn) {
  na_event event = {.kind = NA_EVENT_DESTINATION, .workload = conn->workload->id, .port = conn->local.port};
  memcpy(event.address, conn->local.ip, sizeof event.address);
  strncpy(event.view, conn->workload->view, sizeof event.view - 1);
  if (conn->phase != NA_CONN_WAITING)
    na_waiter_init(&conn->waiter, conn->worker, on_wake);
  if (!na_park(&conn->waiter, &event))
    return false;
  conn->phase = NA_CONN_WAITING;
  conn->stream.watch.fn = on_waiting;
  return true;
}

static void go_on(na_conn *conn, uint32_t protocol, uint32_t tag) {
  conn->tag = tag;
  conn->speaks = (uint8_t)protocol;
  if (protocol == NA_PROTOCOL_TCP) {
    na_stream_settle(&conn->stream);
    na_conn_start_tcp(conn);
  } else {
    na_detect_start(conn);
  }
}

static void resolve_outbound(na_conn *conn, bool may_wait) {
  const na_snapshot *snapshot = conn->worker->snapshot;
  const na_view *view = na_snapshot_view(snapshot, conn->workload->view);
  na_destination *destination = view ? na_view_destination(view, conn->local.ip, conn->local.port) : NULL;
  if (destination) {
    na_mark_used(&destination->used);
    go_on(conn, destination->protocol, destination->tag);
    return;
  }
  bool hinted = may_wait && na_snapshot_hinted(snapshot, conn->local.ip, conn->local.port);
  if (hinted && wait_for_destination(conn))
    return;
  if (view && view->refuse_unknown) {
    na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_REFUSED);
    na_tcp_refuse(conn, NA_FLAG_UH);
    return;
  }
  go_on(conn, NA_PROTOCOL_TCP, 0);
}

static void resolve_inbound(na_conn *conn) {
  const na_snapshot *snapshot = conn->worker->snapshot;
  const na_inbound *inbound = na_snapshot_inbound_port(snapshot, conn->workload->id, conn->local.port);
  uint32_t tag = 0;
  /* Not in force: find out whether there is an HTTP client that can be told (503). */
  uint32_t protocol = inbound ? (uint32_t)na_inbound_protocol(inbound, conn->local.port, &tag) : NA_PROTOCOL_DETECT;
  if (na_hbone_is_proxied(conn))
    protocol = NA_PROTOCOL_TCP;
  conn->tag = tag;
  conn->known = true;
  conn->slashes = inbound ? na_inbound_slashes(inbound, conn->local.port) : 0;
  if (!inbound || !inbound->guards || na_conn_guard(conn, inbound))
    go_on(conn, protocol, tag);
}

static void resolve(na_conn *conn, bool may_wait) {
  if (na_conn_inbound(conn))
    resolve_inbound(conn);
  else
    resolve_outbound(conn, may_wait);
}

static na_conn *conn_new(na_worker *worker, enum na_listener_kind kind, const na_address *peer,
                         const na_address *local) {
  na_conn *conn = calloc(1, sizeof *conn);
  if (!conn)
    return NULL;
  conn->worker = worker;
  conn->kind = (uint8_t)kind;
  conn->peer = *peer;
  conn->local = *local;
  conn->id = ++worker->next_id << 6 | worker->index;
  conn->start_us = worker->loop.now_us;
  na_timer_init(&conn->timer, on_timer);
  na_stream_init(&conn->stream, &worker->loop, on_waiting, conn);
  return conn;
}

static void enlist(na_conn *conn, na_workload *workload) {
  na_worker *worker = conn->worker;
  conn->workload = na_workload_ref(workload);
  na_list_push_back(&worker->conns, &conn->link);
  na_worker_count(worker, NA_COUNTER_DOWNSTREAM_CX);
  na_worker_count(worker, NA_COUNTER_DOWNSTREAM_CX_ACTIVE);
}

void na_conn_accept(na_worker *worker, na_workload *workload, enum na_listener_kind kind, int fd,
                    const na_address *peer, const na_address *local, uint32_t drawn) {
  na_conn *conn = conn_new(worker, kind, peer, local);
  if (!conn) {
    close(fd);
    return;
  }
  conn->drawn = drawn;
  if (na_stream_open_late(&conn->stream, fd, &na_transport_tcp) < 0) {
    free(conn);
    return;
  }
  if (kind == NA_LISTENER_INBOUND)
    na_neighbours_accept(worker, workload, &conn->stream, peer, local);
  enlist(conn, workload);
  if (kind != NA_LISTENER_INBOUND || !na_greet_start(conn))
    resolve(conn, true);
}

void na_conn_greeted(na_conn *conn) {
  resolve(conn, true);
}

/* ---- out of a tunnel ---- */

na_conn *na_conn_tunnelled(na_worker *worker, na_workload *workload, na_h2_stream *stream, const na_address *peer,
                           const na_address *local) {
  na_conn *conn = conn_new(worker, NA_LISTENER_HBONE, peer, local);
  if (!conn)
    return NULL;
  conn->phase = NA_CONN_CONNECTING;
  conn->known = true;
  na_stream_attach(&conn->stream, &na_transport_h2, stream);
  conn->stream.connecting = false;
  stream->user = &conn->stream;
  stream->has_user = true;
  enlist(conn, workload);
  return conn;
}

void na_conn_admit(na_conn *conn) {
  if (na_hbone_open(conn) < 0)
    na_conn_close(conn, true);
  else
    resolve(conn, true);
}

const na_address *na_conn_source(const na_conn *conn) {
  const na_workload *workload = conn->workload;
  bool own = na_ip_is_loopback(conn->peer.ip) || na_workload_owns(workload, conn->peer.ip);
  return na_conn_inbound(conn) && !own && !workload->shared ? &conn->peer : NULL;
}
