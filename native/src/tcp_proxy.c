/* SPDX-License-Identifier: Apache-2.0 */
#include "tcp_proxy.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "connect.h"
#include "hbone.h"
#include "report.h"

struct na_tcp_proxy {
  na_relay relay;
  na_conn *conn;
  na_stream upstream;
  union {
    na_timer connect_timer;
    na_grave grave;
  };
  na_cluster *cluster; /* reference; NULL: the original destination */
  const na_host *host; /* of the cluster; NULL: the original destination */
  const na_host_state *tried[NA_CONNECT_RETRIES + 1];
  uint32_t ntried;
  uint32_t connect_timeout_ms;
  uint64_t connect_start_us;
  na_tcp_report report;
  char *failure; /* what report.failure shows */
  bool relaying;
  bool counted; /* against the cluster's connections */
};

static void try_connect(na_tcp_proxy *proxy);

const char *na_tcp_cluster(const na_conn *conn) {
  return conn->tcp && conn->tcp->cluster ? conn->tcp->cluster->name : "";
}

void na_tcp_bytes(const na_conn *conn, uint64_t *in, uint64_t *out) {
  *in = conn->tcp ? conn->tcp->relay.halves[0].bytes : conn->bytes_in;
  *out = conn->tcp ? conn->tcp->relay.halves[1].bytes : conn->bytes_out;
}

/* ---- the end ---- */

static void proxy_free(na_grave *grave) {
  na_tcp_proxy *proxy = na_container_of(grave, na_tcp_proxy, grave);
  free(proxy->failure);
  free(proxy);
}

static void leave_host(na_tcp_proxy *proxy) {
  if (proxy->host)
    na_host_release(proxy->host);
  proxy->host = NULL;
}

static void close_upstream(na_tcp_proxy *proxy, bool reset) {
  if (na_stream_is_open(&proxy->upstream))
    na_count_down(&proxy->conn->worker->counters, NA_COUNTER_UPSTREAM_CX_ACTIVE);
  na_stream_close(&proxy->upstream, reset);
}

/* Close both sides; `reset` makes both peers see a failure. */
static void finish(na_tcp_proxy *proxy, bool reset) {
  na_conn *conn = proxy->conn;
  na_worker *worker = conn->worker;
  na_timer_disarm(&proxy->connect_timer);
  na_tcp_bytes(conn, &conn->bytes_in, &conn->bytes_out);
  if (proxy->relaying)
    na_relay_stop(&proxy->relay);
  if (!conn->tcp_opened)
    na_report_tcp_opened(conn, &proxy->report);
  na_report_tcp_closed(conn, &proxy->report);
  close_upstream(proxy, reset);
  leave_host(proxy);
  if (proxy->counted)
    na_cluster_release(proxy->cluster, NA_LIMIT_CONNECTIONS);
  if (proxy->cluster)
    na_cluster_unref(proxy->cluster);
  conn->tcp = NULL;
  na_loop_bury(&worker->loop, &proxy->grave, proxy_free);
  na_conn_close(conn, reset);
}

static void fail(na_tcp_proxy *proxy, uint32_t flags) {
  proxy->report.flags |= flags;
  finish(proxy, true);
}

void na_tcp_refuse(na_conn *conn, uint32_t flags) {
  na_tcp_refuse_because(conn, flags, NULL);
}

void na_tcp_refuse_because(na_conn *conn, uint32_t flags, const char *failure) {
  na_tcp_report report = {.flags = flags, .failure = failure};
  if (failure)
    report.remote = conn->local;
  na_report_tcp_opened(conn, &report);
  na_report_tcp_closed(conn, &report);
  na_conn_close(conn, true);
}

void na_tcp_deny(na_conn *conn, uint32_t flags, const char *detail) {
  na_tcp_report report = {.flags = flags, .detail = detail, .cluster_tag = na_conn_inbound(conn) ? conn->tag : 0};
  if (conn->tcp) {
    conn->tcp->report.detail = detail;
    fail(conn->tcp, flags);
    return;
  }
  na_report_tcp_opened(conn, &report);
  na_report_tcp_closed(conn, &report);
  na_conn_close(conn, true);
}

void na_tcp_cut(na_conn *conn) {
  fail(conn->tcp, NA_FLAG_LR);
}

/* ---- relaying ---- */

static void on_relay_end(na_relay *relay, enum na_relay_end how, int broken_side) {
  na_tcp_proxy *proxy = na_container_of(relay, na_tcp_proxy, relay);
  if (how == NA_RELAY_BROKEN)
    fail(proxy, broken_side ? NA_FLAG_UC : NA_FLAG_DC);
  else
    finish(proxy, false);
}

static void on_report(na_relay *relay) {
  na_tcp_proxy *proxy = na_container_of(relay, na_tcp_proxy, relay);
  na_relay_half *in = &relay->halves[0], *out = &relay->halves[1];
  na_report_tcp_bytes(proxy->conn, &proxy->report, in->bytes - in->reported, out->bytes - out->reported);
  in->reported = in->bytes;
  out->reported = out->bytes;
}

static void idle(na_conn *conn) {
  na_tcp_proxy *proxy = conn->tcp;
  uint64_t deadline = proxy->relay.last_ms + conn->worker->config->idle_timeout_ms;
  if (deadline > conn->worker->loop.now_ms) {
    na_conn_deadline(conn, deadline, idle);
    return;
  }
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_IDLE_TIMEOUT);
  fail(proxy, NA_FLAG_SI);
}

static void note_peer(na_tcp_proxy *proxy) {
  na_peer peer;
  proxy->report.mutual_tls = na_hbone_peer(&proxy->upstream, &peer);
  proxy->report.principal = peer.principal;
}

/* What the application has to know before anything else. */
static int introduce(na_tcp_proxy *proxy) {
  uint8_t header[NA_PROXY_HEADER_MAX];
  if (!na_hbone_is_proxied(proxy->conn))
    return 0;
  return na_stream_send(&proxy->upstream, header, na_hbone_proxy_header(proxy->conn, header));
}

static void connected(na_tcp_proxy *proxy) {
  na_conn *conn = proxy->conn;
  na_timer_disarm(&proxy->connect_timer);
  proxy->upstream.connecting = false;
  proxy->report.connect_us = conn->worker->loop.now_us - proxy->connect_start_us;
  na_connect_local(na_stream_socket(&proxy->upstream), &proxy->report.from);
  note_peer(proxy);
  na_report_tcp_opened(conn, &proxy->report);
  if (introduce(proxy) < 0) {
    fail(proxy, NA_FLAG_UC);
    return;
  }
  na_relay_start(&proxy->relay, conn->worker, &conn->stream, &proxy->upstream, on_relay_end, on_report);
  proxy->relaying = true;
  size_t early = na_input_length(&conn->in);
  if (early) {
    na_relay_account(&proxy->relay, 0, early);
    if (na_stream_send(&proxy->upstream, na_input_bytes(&conn->in), early) < 0) {
      fail(proxy, NA_FLAG_UC);
      return;
    }
    na_input_free(&conn->in);
  }
  na_conn_deadline(conn, conn->worker->loop.now_ms + conn->worker->config->idle_timeout_ms, idle);
}

/* ---- connecting ---- */

static bool may_retry(const na_tcp_proxy *proxy, int error) {
  uint64_t random = na_random(proxy->conn->worker);
  return proxy->host && proxy->ntried <= NA_CONNECT_RETRIES &&
         na_cluster_is_worth_another(proxy->cluster, random, proxy->tried, proxy->ntried, error);
}

static void connect_failed(na_tcp_proxy *proxy, int error) {
  na_worker *worker = proxy->conn->worker;
  na_timer_disarm(&proxy->connect_timer);
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_CONNECT_FAIL);
  free(proxy->failure);
  proxy->report.failure = proxy->failure = strdup(na_stream_failure(&proxy->upstream, error));
  close_upstream(proxy, true);
  if (may_retry(proxy, error)) {
    leave_host(proxy);
    na_worker_count(worker, NA_COUNTER_UPSTREAM_RQ_RETRY);
    /* At the end of the turn, when the loop holds no more events for this watch. */
    na_loop_again(&worker->loop, &proxy->upstream.watch);
    return;
  }
  if (error == -EPERM || error == -EACCES)
    na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_TRANSPARENT_FAIL);
  fail(proxy, proxy->host && proxy->ntried > 1 ? NA_FLAG_UF | NA_FLAG_URX : NA_FLAG_UF);
}

static void on_connect_timeout(na_timer *timer) {
  na_tcp_proxy *proxy = na_container_of(timer, na_tcp_proxy, connect_timer);
  na_worker_count(proxy->conn->worker, NA_COUNTER_UPSTREAM_CX_CONNECT_TIMEOUT);
  connect_failed(proxy, -ETIMEDOUT);
}

static void on_connecting(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_tcp_proxy *proxy = na_container_of(stream, na_tcp_proxy, upstream);
  if (proxy->conn->tcp != proxy)
    return;
  if (!na_stream_is_open(stream)) {
    try_connect(proxy);
    return;
  }
  (void)na_stream_events(stream, events);
  int error = events ? stream->transport->connected(stream) : -EINPROGRESS;
  if (error == -EINPROGRESS)
    return;
  if (error)
    connect_failed(proxy, error);
  else
    connected(proxy);
}

/* The client while its upstream is connecting: it is not read, but may fail. */
static void on_client(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead || !conn->tcp)
    return;
  (void)na_stream_events(stream, events);
  if (stream->broken)
    fail(conn->tcp, NA_FLAG_DC);
}

/* The one that connect() drew, or as the cluster's policy says. */
static const na_host *pick_host(na_tcp_proxy *proxy) {
  const na_conn *conn = proxy->conn;
  na_worker *worker = conn->worker;
  const na_host *host = NULL;
  if (conn->drawn)
    host = na_cluster_pick_drawn(proxy->cluster, na_random(worker), worker->index, conn->drawn, proxy->tried,
                                 proxy->ntried);
  return host ? host
              : na_cluster_pick_other(proxy->cluster, na_random(worker), worker->index, proxy->tried, proxy->ntried);
}

static bool choose_endpoint(na_tcp_proxy *proxy) {
  na_conn *conn = proxy->conn;
  proxy->report.remote = conn->local;
  if (!proxy->cluster || proxy->cluster->config.kind == NA_CLUSTER_ORIGINAL_DST)
    return true;
  proxy->host = pick_host(proxy);
  if (!proxy->host)
    return false;
  na_host_acquire(proxy->host);
  proxy->tried[proxy->ntried++] = proxy->host->state;
  memcpy(proxy->report.remote.ip, proxy->host->endpoint.address, 16);
  proxy->report.remote.port = proxy->host->endpoint.port;
  proxy->report.endpoint_tag = proxy->host->endpoint.tag;
  return true;
}

/* To the endpoint through its tunnel, or by a socket: the one that is connected already, or a new one. */
static int open_upstream(na_tcp_proxy *proxy) {
  na_conn *conn = proxy->conn;
  if (proxy->host && proxy->host->via) {
    const na_hbone_dial dial = {.worker = conn->worker,
                                .workload = conn->workload,
                                .via = proxy->host->via,
                                .remote = &proxy->report.remote,
                                .client = &conn->peer};
    return na_hbone_connect(&proxy->upstream, &dial);
  }
  int fd = na_ahead_take(conn);
  if (fd < 0)
    fd = na_connect(conn->worker, conn->workload, &proxy->report.remote, na_conn_source(conn));
  return fd < 0 ? fd : na_stream_connect(&proxy->upstream, fd, &na_transport_tcp);
}

static void try_connect(na_tcp_proxy *proxy) {
  na_conn *conn = proxy->conn;
  na_worker *worker = conn->worker;
  if (!choose_endpoint(proxy)) {
    fail(proxy, NA_FLAG_UH);
    return;
  }
  proxy->connect_start_us = worker->loop.now_us;
  na_stream_init(&proxy->upstream, &worker->loop, on_connecting, proxy);
  int error = open_upstream(proxy);
  if (error < 0) {
    connect_failed(proxy, error);
    return;
  }
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX);
  na_worker_count(worker, NA_COUNTER_UPSTREAM_CX_ACTIVE);
  na_timer_arm(&worker->loop.wheel, &proxy->connect_timer, worker->loop.now_ms + proxy->connect_timeout_ms);
}

/* ---- the beginning ---- */

/* To where the connection was going; returns flags when that cannot be. */
static uint32_t pass_through(const na_conn *conn) {
  if (na_conn_can_pass(conn))
    return 0;
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_LOOP);
  return NA_FLAG_UH;
}

/* Sets the cluster (with a reference) or leaves NULL for the original destination; returns flags when there is none. */
static uint32_t choose_cluster(na_tcp_proxy *proxy) {
  na_conn *conn = proxy->conn;
  const na_snapshot *snapshot = conn->worker->snapshot;
  if (na_conn_inbound(conn)) {
    proxy->report.cluster_tag = conn->tag;
    return 0;
  }
  const na_view *view = na_snapshot_view(snapshot, conn->workload->view);
  na_destination *destination = view ? na_view_destination(view, conn->local.ip, conn->local.port) : NULL;
  if (!destination)
    return pass_through(conn);
  bool passthrough = false;
  na_cluster *cluster = na_snapshot_pick_cluster(snapshot, destination, na_random(conn->worker), &passthrough);
  if (passthrough)
    return pass_through(conn);
  if (!cluster)
    return NA_FLAG_NC;
  proxy->cluster = na_cluster_ref(cluster);
  na_mark_used(&cluster->state->used);
  proxy->report.cluster_tag = cluster->config.tag;
  proxy->report.cluster = cluster->name;
  proxy->connect_timeout_ms = cluster->config.connect_timeout_ms;
  if (cluster->config.kind == NA_CLUSTER_BLACKHOLE)
    return NA_FLAG_UH;
  if (cluster->config.kind == NA_CLUSTER_ORIGINAL_DST && pass_through(conn))
    return NA_FLAG_UH;
  proxy->counted = na_cluster_acquire(cluster, NA_LIMIT_CONNECTIONS);
  return proxy->counted ? 0 : NA_FLAG_UO;
}

static void begin(na_tcp_proxy *proxy) {
  uint32_t flags = choose_cluster(proxy);
  if (flags == NA_FLAG_UO)
    na_worker_count(proxy->conn->worker, NA_COUNTER_UPSTREAM_CX_OVERFLOW);
  if (flags)
    fail(proxy, flags);
  else
    try_connect(proxy);
}

void na_tcp_start(na_conn *conn) {
  na_tcp_proxy *proxy = na_input_keep(&conn->in) < 0 ? NULL : calloc(1, sizeof *proxy);
  if (!proxy) {
    na_conn_close(conn, true);
    return;
  }
  conn->phase = NA_CONN_TCP;
  conn->stream.watch.fn = on_client;
  conn->tcp = proxy;
  proxy->conn = conn;
  proxy->connect_timeout_ms = NA_DEFAULT_CONNECT_TIMEOUT_MS;
  na_timer_init(&proxy->connect_timer, on_connect_timeout);
  na_stream_init(&proxy->upstream, &conn->worker->loop, on_connecting, proxy);
  proxy->relay.last_ms = conn->worker->loop.now_ms;
  na_conn_deadline(conn, conn->worker->loop.now_ms + conn->worker->config->idle_timeout_ms, idle);
  begin(proxy);
}
