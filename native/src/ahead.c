/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connect.h"
#include "tcp_proxy.h"

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
  if (getsockopt(ahead->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
    error = errno;
  if (error) {
    failed(ahead, -error);
    return;
  }
  na_timer_disarm(&ahead->timer);
  na_loop_unwatch(&ahead->conn->worker->loop, watch);
  na_conn_admit(ahead->conn);
}

void na_ahead_start(na_conn *conn) {
  na_worker *worker = conn->worker;
  na_ahead *ahead = calloc(1, sizeof *ahead);
  int fd = ahead ? na_connect(worker, conn->workload, &conn->local, na_conn_source(conn)) : -ENOMEM;
  if (!ahead) {
    na_tcp_refuse_because(conn, NA_FLAG_OM, strerrordesc_np(ENOMEM));
    return;
  }
  conn->ahead = ahead;
  ahead->conn = conn;
  ahead->fd = fd;
  na_watch_init(&ahead->watch, on_event);
  na_timer_init(&ahead->timer, on_timeout);
  int error = fd < 0 ? fd : na_loop_watch(&worker->loop, &ahead->watch, fd, EPOLLOUT);
  if (error)
    failed(ahead, error);
  else
    na_timer_arm(&worker->loop.wheel, &ahead->timer, worker->loop.now_ms + NA_DEFAULT_CONNECT_TIMEOUT_MS);
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
