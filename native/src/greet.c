/* SPDX-License-Identifier: Apache-2.0 */
#include "greet.h"

#include <errno.h>
#include <time.h>

#include "mtls.h"
#include "report.h"
#include "tls_hello.h"

/* A client of a port that is declared TCP may wait for the server to speak first; one with mTLS never does, and its
 * first bytes follow the connection at once. */
#define TCP_SILENCE_MS 20

/* ---- the handshake ---- */

void na_greet_stop(na_conn *conn) {
  if (conn->handshaking)
    na_count_down(&conn->worker->counters, NA_COUNTER_HBONE_HANDSHAKES);
  conn->handshaking = false;
}

static void refuse(na_conn *conn, enum na_counter_id counter, const char *why) {
  na_worker_count(conn->worker, counter);
  na_report_tunnel_refused(conn->worker, conn->workload, &conn->peer, &conn->local, "downstream_transport_failure",
                           why);
  na_conn_close(conn, true);
}

static void handshake_expired(na_conn *conn) {
  refuse(conn, NA_COUNTER_MTLS_HANDSHAKE_FAIL, "mTLS: the handshake took too long");
}

static void on_handshake(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  int error = na_stream_events(stream, events);
  if (!error)
    error = stream->transport->connected(stream);
  if (error == -EINPROGRESS)
    return;
  if (error) {
    refuse(conn, NA_COUNTER_MTLS_HANDSHAKE_FAIL, na_stream_failure(stream, error));
    return;
  }
  na_greet_stop(conn);
  na_worker_count(conn->worker, NA_COUNTER_MTLS_ACCEPTED);
  if (na_tls_resumed(stream))
    na_worker_count(conn->worker, NA_COUNTER_MTLS_RESUMED);
  na_conn_greeted(conn);
}

static void begin_handshake(na_conn *conn) {
  na_worker *worker = conn->worker;
  na_identity *identity = na_mtls_identity(worker, conn->workload);
  const na_tls_args args = {.memory = &worker->tls,
                            .identity = identity,
                            .use = NA_TLS_MESH_HTTP,
                            .early = na_input_bytes(&conn->in),
                            .early_n = na_input_length(&conn->in),
                            .principals = worker->principals,
                            .budget = &worker->handshakes_left};
  if (!identity) {
    refuse(conn, NA_COUNTER_HBONE_NO_IDENTITY, "the workload has no valid certificate");
  } else if (worker->counters.values[NA_COUNTER_HBONE_HANDSHAKES] >= worker->config->hbone_max_handshakes) {
    refuse(conn, NA_COUNTER_HBONE_HANDSHAKE_OVERFLOW, "too many handshakes are in progress");
  } else if (na_tls_begin(&conn->stream, &args) < 0) {
    na_conn_close(conn, true);
  } else {
    na_input_free(&conn->in);
    na_stream_settle(&conn->stream);
    conn->handshaking = true;
    conn->stream.watch.fn = on_handshake;
    na_worker_count(worker, NA_COUNTER_HBONE_HANDSHAKES);
    na_conn_deadline(conn, worker->loop.now_ms + worker->config->hbone_handshake_timeout_ms, handshake_expired);
    na_loop_again(&worker->loop, &conn->stream.watch);
  }
}

/* ---- the first bytes ---- */

/* Look at what came; whether more is needed to tell. */
static bool is_undecided(na_conn *conn) {
  na_worker *worker = conn->worker;
  na_stream *stream = &conn->stream;
  while (stream->readable) {
    ssize_t n = na_input_fill(&conn->in, stream, worker->io, worker->io_size, worker->io_size);
    if (n == -EAGAIN)
      return true;
    if (n <= 0) { /* told again to whoever reads next */
      stream->readable = true;
      na_conn_greeted(conn);
      return false;
    }
    enum na_tls_hello hello = na_tls_hello(na_input_bytes(&conn->in), na_input_length(&conn->in));
    if (hello == NA_HELLO_MORE)
      continue;
    if (hello == NA_HELLO_MESH)
      begin_handshake(conn);
    else
      na_conn_greeted(conn);
    return false;
  }
  return true;
}

static void on_greeting(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  (void)na_stream_events(stream, events);
  if (!is_undecided(conn))
    return;
  na_stream_settle(stream);
  if (na_input_keep(&conn->in) < 0)
    na_conn_close(conn, true);
}

/* How long silence may last. */
static uint32_t patience_ms(const na_conn *conn) {
  const na_config *config = conn->worker->config;
  const na_inbound *inbound = na_snapshot_inbound_port(conn->worker->snapshot, conn->workload->id, conn->local.port);
  uint32_t tag, protocol = NA_PROTOCOL_DETECT;
  if (inbound)
    protocol = (uint32_t)na_inbound_protocol(inbound, conn->local.port, &tag);
  if (protocol == NA_PROTOCOL_HTTP)
    return config->idle_timeout_ms;
  if (protocol == NA_PROTOCOL_TCP && config->detect_timeout_ms > TCP_SILENCE_MS)
    return TCP_SILENCE_MS;
  return config->detect_timeout_ms;
}

bool na_greet_start(na_conn *conn) {
  na_peer peer;
  if (!na_mtls_identity(conn->worker, conn->workload) || na_hbone_peer(&conn->stream, &peer))
    return false;
  conn->phase = NA_CONN_DETECTING;
  conn->stream.watch.fn = on_greeting;
  na_conn_deadline(conn, conn->worker->loop.now_ms + patience_ms(conn), na_conn_greeted);
  na_loop_again(&conn->worker->loop, &conn->stream.watch);
  return true;
}
