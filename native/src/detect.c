/* SPDX-License-Identifier: Apache-2.0
 *
 * What does the client speak? Decided on its first bytes; on a port of undeclared protocol, silence means that the
 * server speaks first, so it is TCP.
 */
#include <errno.h>

#include "conn_guard.h"
#include "tcp_proxy.h"

/* Results of na_h1_sniff. */
enum { SNIFF_TLS = -2, SNIFF_OTHER = -1, SNIFF_MORE = 0, SNIFF_HTTP1 = 1, SNIFF_HTTP2 = 2 };

/* Inbound, and the workload's configuration is not in force, or refuses the port: nothing but a refusal in HTTP may be
 * given. */
static bool not_in_force(const na_conn *conn) {
  return na_conn_inbound(conn) &&
         !na_snapshot_inbound_port(conn->worker->snapshot, conn->workload->id, conn->local.port);
}

static void as_tcp(na_conn *conn) {
  if (not_in_force(conn)) {
    na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_NOT_IN_FORCE);
    na_tcp_refuse(conn, NA_FLAG_NC);
    return;
  }
  na_conn_start_tcp(conn);
}

static void as_http2(na_conn *conn) {
  conn->protocol = NA_PROTOCOL_HTTP2_FORWARDED;
  if (na_conn_passes_http2(conn)) {
    na_worker_count(conn->worker, NA_COUNTER_HTTP2_FORWARDED);
    na_conn_start_tcp(conn);
    return;
  }
  na_worker_count(conn->worker, NA_COUNTER_GUARDS_HTTP2);
  na_tcp_deny(conn, 0, "http2_cannot_be_judged");
}

static void decided(na_conn *conn, int sniffed) {
  if (sniffed == SNIFF_HTTP2 && !not_in_force(conn)) {
    as_http2(conn);
  } else if (sniffed == SNIFF_HTTP1 || conn->speaks == NA_PROTOCOL_HTTP) {
    na_http_server_start(conn);
  } else {
    as_tcp(conn);
  }
}

static void silent(na_conn *conn) {
  if (conn->speaks == NA_PROTOCOL_DETECT) {
    as_tcp(conn);
  } else if (na_input_length(&conn->in)) {
    na_http_server_start(conn); /* which times the head */
  } else {
    na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_IDLE_TIMEOUT);
    na_conn_close(conn, false);
  }
}

/* The client said nothing and ended its side: a probe of the port, or a client that only listens. */
static void ended(na_conn *conn) {
  if (conn->speaks == NA_PROTOCOL_HTTP && na_input_length(&conn->in) == 0)
    na_conn_close(conn, false);
  else
    decided(conn, SNIFF_OTHER);
}

/* Go on by what is there; whether it tells enough. */
static bool is_decided(na_conn *conn) {
  int sniffed = na_h1_sniff(na_input_bytes(&conn->in), na_input_length(&conn->in));
  if (sniffed == SNIFF_MORE)
    return false;
  decided(conn, sniffed);
  return true;
}

static void read_first(na_conn *conn) {
  na_stream *stream = &conn->stream;
  if (is_decided(conn)) /* by what was read for the greeting */
    return;
  while (stream->readable) {
    ssize_t n = na_input_fill(&conn->in, stream, conn->worker->io, conn->worker->io_size, conn->worker->io_size);
    if (n == -EAGAIN)
      break;
    if (n == 0) {
      ended(conn);
      return;
    }
    if (n < 0) {
      na_conn_close(conn, true);
      return;
    }
    if (is_decided(conn))
      return;
  }
  if (na_input_keep(&conn->in) < 0)
    na_conn_close(conn, true);
  else if (na_input_length(&conn->in) && conn->speaks == NA_PROTOCOL_HTTP)
    na_conn_deadline(conn, conn->worker->loop.now_ms + conn->worker->config->head_timeout_ms, silent);
}

/* Whether all that will be read of the connection has been read, and it ends with the answer. */
static bool is_one_shot(const na_conn *conn) {
  return conn->request && !conn->keep_alive && conn->body.done;
}

static void look(na_conn *conn) {
  read_first(conn);
  if (!conn->dead && !is_one_shot(conn))
    na_stream_settle(&conn->stream);
}

static void on_event(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  (void)na_stream_events(stream, events);
  look(conn);
}

void na_detect_start(na_conn *conn) {
  const na_config *config = conn->worker->config;
  bool undeclared = conn->speaks == NA_PROTOCOL_DETECT;
  conn->phase = NA_CONN_DETECTING;
  conn->stream.watch.fn = on_event;
  na_conn_deadline(conn, conn->worker->loop.now_ms + (undeclared ? config->detect_timeout_ms : config->idle_timeout_ms),
                   silent);
  if (na_input_length(&conn->in))
    look(conn);
  else if (conn->stream.readable)
    na_loop_again(&conn->worker->loop, &conn->stream.watch);
}
