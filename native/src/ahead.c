/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connect.h"
#include "hbone.h"
#include "tcp_proxy.h"
#include "upstream_pool.h"

struct na_ahead {
  na_watch watch;
  union {
    na_timer timer;
    na_grave grave;
  };
  na_conn *conn;
  int fd;
};

static void ahead_free(na_grave *grave) {
  free(na_container_of(grave, na_ahead, grave));
}

/* Let go of the object, not of the socket. */
static void forget(na_ahead *ahead) {
  na_loop *loop = &ahead->conn->worker->loop;
  na_loop_unwatch(loop, &ahead->watch);
  na_timer_disarm(&ahead->timer);
  ahead->conn->ahead = NULL;
  ahead->conn = NULL;
  na_loop_bury(loop, &ahead->grave, ahead_free);
}

static void failed(na_ahead *ahead, int error) {
  na_conn *conn = ahead->conn;
  na_worker_count(conn->worker, NA_COUNTER_UPSTREAM_CX_CONNECT_FAIL);
  if (error == -EPERM || error == -EACCES)
    na_worker_count(conn->worker, NA_COUNTER_UPSTREAM_CX_TRANSPARENT_FAIL);
  na_ahead_drop(conn);
  na_tcp_refuse_because(conn, NA_FLAG_UF, strerrordesc_np(-error));
}

static void on_timeout(na_timer *timer) {
  na_ahead *ahead = na_container_of(timer, na_ahead, timer);
  na_worker_count(ahead->conn->worker, NA_COUNTER_UPSTREAM_CX_CONNECT_TIMEOUT);
  failed(ahead, -ETIMEDOUT);
}

static void on_event(na_watch *watch, uint32_t events) {
  na_ahead *ahead = na_container_of(watch, na_ahead, watch);
  int error = 0;
  socklen_t size = sizeof error;
  if (!ahead->conn || !events)
    return;
  if (ahead->fd >= 0 && getsockopt(ahead->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
    error = errno;
  if (error) {
    failed(ahead, -error);
    return;
  }
  na_timer_disarm(&ahead->timer);
  na_loop_unwatch(&ahead->conn->worker->loop, watch);
  na_conn_admit(ahead->conn);
}

static bool is_pooled(const na_conn *conn) {
  const na_snapshot *snapshot = conn->worker->snapshot;
  const na_inbound *inbound = na_snapshot_inbound_port(snapshot, conn->workload->id, conn->local.port);
  const na_address *source = na_conn_source(conn);
  na_pool_key key = {.workload = conn->workload, .remote = conn->local};
  uint32_t tag;
  if (source)
    memcpy(key.source.ip, source->ip, sizeof key.source.ip);
  return inbound && !na_hbone_is_proxied(conn) &&
         na_inbound_protocol(inbound, conn->local.port, &tag) == NA_PROTOCOL_HTTP &&
         na_pool_has_idle(conn->worker, &key);
}

static void begin(na_ahead *ahead) {
  na_conn *conn = ahead->conn;
  na_worker *worker = conn->worker;
  if (is_pooled(conn)) {
    na_loop_tell(&worker->loop, &ahead->watch, EPOLLOUT);
    return;
  }
  ahead->fd = na_connect(worker, conn->workload, &conn->local, na_conn_source(conn));
  int error = ahead->fd < 0 ? ahead->fd : na_loop_watch(&worker->loop, &ahead->watch, ahead->fd, EPOLLOUT);
  if (error)
    failed(ahead, error);
  else
    na_timer_arm(&worker->loop.wheel, &ahead->timer, worker->loop.now_ms + NA_DEFAULT_CONNECT_TIMEOUT_MS);
}

void na_ahead_start(na_conn *conn) {
  na_ahead *ahead = calloc(1, sizeof *ahead);
  if (!ahead) {
    na_tcp_refuse_because(conn, NA_FLAG_OM, strerrordesc_np(ENOMEM));
    return;
  }
  conn->ahead = ahead;
  ahead->conn = conn;
  ahead->fd = -1;
  na_watch_init(&ahead->watch, on_event);
  na_timer_init(&ahead->timer, on_timeout);
  begin(ahead);
}

int na_ahead_take(na_conn *conn) {
  na_ahead *ahead = conn->ahead;
  if (!ahead)
    return -1;
  int fd = ahead->fd;
  forget(ahead);
  return fd;
}

void na_ahead_drop(na_conn *conn) {
  int fd = na_ahead_take(conn);
  if (fd >= 0)
    close(fd);
}
