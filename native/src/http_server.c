/* SPDX-License-Identifier: Apache-2.0
 *
 * The downstream side of HTTP/1: one request at a time, in order. While one is in progress only its body is read;
 * pipelined requests wait in the input or, beyond that, in the kernel.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "callout.h"
#include "hbone.h"
#include "http_head.h"
#include "http_request.h"
#include "http_tunnel.h"

/* How long a connection that shall end, whose client was not told so with the last answer, waits for another request.
 */
#define LAST_REQUEST_MS 500
/* Requests handled or reads made per event before others get their turn. */
#define SERVER_ROUNDS 16
/* How soon after its request a client that may ask again can end its side and yet wait for the answer, as `nc -N` with
 * a request on its input does. Later on it has gone away. The end of data itself does not tell the one from the other.
 */
#define HALF_CLOSE_US 100000

static void on_event(na_watch *watch, uint32_t events);
static const na_responder responder;

static uint64_t from_now(const na_conn *conn, uint32_t ms) {
  return conn->worker->loop.now_ms + ms;
}

/* ---- timeouts ---- */

static void refuse(na_conn *conn, uint16_t status, uint32_t flags, const char *detail, const char *text) {
  conn->keep_alive = false;
  conn->body = (na_h1_body){.done = true};
  na_request_refuse(conn, &responder, status, flags, detail, text);
}

static void on_head_timeout(na_conn *conn) {
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_RQ_HEAD_TIMEOUT);
  refuse(conn, 408, 0, "request_header_timeout", "request header timeout");
}

static void on_idle(na_conn *conn) {
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_IDLE_TIMEOUT);
  na_conn_close(conn, false);
}

static void on_request_idle(na_conn *conn) {
  na_http_request *request = conn->request;
  uint64_t deadline = request->last_ms + conn->worker->config->request_idle_timeout_ms;
  if (deadline > conn->worker->loop.now_ms) {
    na_conn_deadline(conn, deadline, on_request_idle);
    return;
  }
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_RQ_IDLE_TIMEOUT);
  na_request_reply(request, request->body_sent ? 504 : 408, NA_FLAG_SI, "stream_idle_timeout", "stream timeout");
}

/* ---- the responder: answering ---- */

static enum na_delivery delivery_of(const na_conn *conn, const na_response *response) {
  if (response->body == NA_BODY_CHUNKED && conn->http10)
    return NA_DELIVER_DECODED;
  if (response->body == NA_BODY_UNTIL_CLOSE)
    return conn->http10 ? NA_DELIVER_CLOSE : NA_DELIVER_CHUNKED;
  return NA_DELIVER_AS_IS;
}

/* Whether the connection must end with this response. Of a request whose body is not here yet the client may keep back
 * the rest when it sees the answer (RFC 9110 10.1.1), so that nobody could tell where the next request begins. */
static bool ends_connection(const na_conn *conn, const na_response *response, enum na_delivery delivery) {
  if (!conn->keep_alive || conn->draining || delivery == NA_DELIVER_DECODED || delivery == NA_DELIVER_CLOSE)
    return true;
  return !conn->body.done && (response->local || conn->request->bytes_in == 0);
}

static int send_chunk(na_conn *conn, const char *prefix, size_t prefix_n, const char *body, size_t n, bool end) {
  na_out out = {.p = conn->worker->scratch, .n = prefix_n, .size = conn->worker->scratch_size};
  assert(prefix_n == 0 || prefix == out.p);
  if (n) {
    char size[24];
    na_out_bytes(&out, size, (size_t)snprintf(size, sizeof size, "%s%zx\r\n", conn->chunk_open ? "\r\n" : "", n));
    conn->chunk_open = true;
  }
  int error = out.over ? -EMSGSIZE : na_stream_send2(&conn->stream, out.p, out.n, body, n);
  if (error || !end)
    return error;
  const char *last = conn->chunk_open ? "\r\n0\r\n\r\n" : "0\r\n\r\n";
  return na_stream_send(&conn->stream, last, strlen(last));
}

static int respond_head(na_http_request *request, const na_response *response, char *body, size_t n, bool end) {
  na_conn *conn = request->conn;
  na_worker *worker = conn->worker;
  bool informational = response->status < 200 && !response->upgrade;
  if (informational && conn->http10)
    return 0; /* RFC 9110 15.2: an HTTP/1.0 client does not know them */
  enum na_delivery delivery = delivery_of(conn, response);
  bool close = !informational && !response->upgrade && ends_connection(conn, response, delivery);
  na_out out = {.p = worker->scratch, .size = worker->scratch_size};
  na_write_response_head(request, response, delivery, conn->http10, close, &out);
  if (out.over)
    return -EMSGSIZE;
  if (close || response->upgrade)
    conn->keep_alive = false;
  conn->bytes_out += n;
  conn->chunk_open = false;
  conn->chunked_out = delivery == NA_DELIVER_CHUNKED;
  conn->stream.ending = close && end;
  if (conn->chunked_out)
    return send_chunk(conn, out.p, out.n, body, n, end);
  return na_stream_send2(&conn->stream, out.p, out.n, body, n);
}

static int respond_body(na_http_request *request, char *bytes, size_t n, bool end) {
  na_conn *conn = request->conn;
  conn->bytes_out += n;
  conn->stream.ending = end && !conn->keep_alive;
  if (conn->chunked_out)
    return send_chunk(conn, NULL, 0, bytes, n, end);
  return na_stream_send(&conn->stream, bytes, n);
}

static bool is_blocked(na_http_request *request) {
  return na_stream_blocked(&request->conn->stream);
}

/* ---- the responder: the request's body ---- */

static long take_body(na_http_request *request, const char **bytes, na_h1_error *error) {
  na_conn *conn = request->conn;
  size_t length = na_input_length(&conn->in);
  if (conn->body.done || length == 0)
    return 0;
  *bytes = na_input_bytes(&conn->in);
  long n = na_h1_body_feed(&conn->body, *bytes, length, error);
  if (n < 0) {
    conn->keep_alive = false;
    return -1;
  }
  na_input_consume(&conn->in, (size_t)n);
  conn->bytes_in += (uint64_t)n;
  request->bytes_in = conn->body.bytes;
  if (conn->body.done)
    na_request_body_sent(request);
  return n;
}

static int peek_chunked(const na_conn *conn, na_h1_body *body, na_buffer *out, size_t max) {
  size_t length = na_input_length(&conn->in), payload = 0;
  na_h1_error error;
  char *copy = malloc(length ? length : 1); /* decoded in place */
  if (!copy)
    return -ENOMEM;
  memcpy(copy, na_input_bytes(&conn->in), length);
  long n = na_h1_body_decode(body, copy, length, &payload, &error);
  int rc = n < 0 ? -EPROTO : na_buffer_append(out, copy, payload < max ? payload : max);
  free(copy);
  return rc;
}

static int peek_body(na_http_request *request, na_buffer *out, size_t max, bool *end) {
  na_conn *conn = request->conn;
  na_h1_body body = conn->body; /* nothing of the body was taken yet */
  na_h1_error error;
  int rc = 0;
  size_t length = na_input_length(&conn->in);
  if (body.kind == NA_BODY_CHUNKED && length) {
    rc = peek_chunked(conn, &body, out, max);
  } else if (length) {
    long n = na_h1_body_feed(&body, na_input_bytes(&conn->in), length, &error);
    rc = n < 0 ? -EPROTO : na_buffer_append(out, na_input_bytes(&conn->in), (size_t)n < max ? (size_t)n : max);
  }
  *end = body.done;
  return rc;
}

static void more_wanted(na_http_request *request) {
  na_conn *conn = request->conn;
  if (!conn->body.done)
    na_loop_again(&conn->worker->loop, &conn->stream.watch);
}

/* ---- the responder: the end ---- */

/* No more requests on this connection. */
static void end_connection(na_conn *conn) {
  bool all_read = conn->body.done && na_input_length(&conn->in) == 0 && !conn->stream.readable;
  if (all_read && !na_stream_blocked(&conn->stream))
    na_conn_close(conn, false);
  else
    na_conn_linger(conn);
}

static void on_last(na_conn *conn) {
  end_connection(conn);
}

/* The client may be asking again already: it does not know yet that the connection shall end. */
static void await_last(na_conn *conn) {
  na_conn_deadline(conn, from_now(conn, LAST_REQUEST_MS), on_last);
}

/* Whether it must end soon, and not only with its next answer. */
static bool is_leaving(const na_conn *conn) {
  return conn->worker->stopping || atomic_load_explicit(&conn->workload->removed, memory_order_relaxed);
}

static void finished(na_http_request *request, bool aborted) {
  na_conn *conn = request->conn;
  conn->request = NULL;
  if (aborted) {
    na_conn_close(conn, true);
    return;
  }
  if (!conn->keep_alive || !conn->body.done) {
    end_connection(conn);
    return;
  }
  conn->phase = NA_CONN_IDLE;
  if (conn->draining && is_leaving(conn))
    await_last(conn);
  else
    na_conn_deadline(conn, from_now(conn, conn->worker->config->idle_timeout_ms), on_idle);
  if (na_input_length(&conn->in) || conn->stream.readable)
    na_loop_again(&conn->worker->loop, &conn->stream.watch);
}

static const na_responder responder = {
    .head = respond_head,
    .body = respond_body,
    .take = take_body,
    .peek = peek_body,
    .more = more_wanted,
    .blocked = is_blocked,
    .finished = finished,
    .tunnel = na_tunnel_start,
};

/* ---- reading ---- */

static void client_gone(na_conn *conn) {
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_RQ_ABORTED);
  na_request_abort(conn->request, NA_FLAG_DC, "downstream_remote_disconnect");
}

static ssize_t read_more(na_conn *conn) {
  na_worker *worker = conn->worker;
  return na_input_fill(&conn->in, &conn->stream, worker->io, worker->io_size,
                       worker->config->max_head_bytes + worker->io_size);
}

static void begin(na_conn *conn, const na_h1_head *head) {
  const char *raw = na_input_bytes(&conn->in);
  conn->scanned = 0;
  conn->phase = NA_CONN_ACTIVE;
  conn->http10 = head->minor == 0;
  conn->keep_alive = head->keep_alive;
  na_h1_body_init(&conn->body, head);
  na_input_consume(&conn->in, head->head_bytes); /* the bytes stay where they are */
  na_conn_deadline(conn, from_now(conn, conn->worker->config->request_idle_timeout_ms), on_request_idle);
  na_request_start(conn, &responder, head, raw);
}

/* Look for a request head; false: nothing to do until the next event. */
static bool parse(na_conn *conn) {
  na_worker *worker = conn->worker;
  const na_config *config = worker->config;
  na_h1_limits limits = {config->max_head_bytes, config->max_headers, config->max_request_line};
  na_h1_error error;
  bool first_bytes = conn->scanned == 0;
  assert(!worker->head_of);
  int n = na_h1_parse_request(na_input_bytes(&conn->in), na_input_length(&conn->in), &conn->scanned, &limits,
                              worker->head, &error);
  if (n < 0) {
    na_worker_count(worker, NA_COUNTER_DOWNSTREAM_RQ_PROTOCOL_ERROR);
    refuse(conn, error.status, NA_FLAG_DPE, "http1.codec_error", error.reason);
    return false;
  }
  if (n > 0 && na_conn_inbound(conn) && !na_hbone_is_current(&conn->stream)) {
    na_worker_count(worker, NA_COUNTER_HBONE_OUTDATED);
    na_conn_close(conn, true); /* unanswered: the client may ask again in another tunnel */
    return false;
  }
  if (n > 0) {
    begin(conn, worker->head);
    return true;
  }
  if (first_bytes)
    na_conn_deadline(conn, from_now(conn, config->head_timeout_ms), on_head_timeout);
  return conn->stream.readable;
}

/* There is no request: the connection ends if it was to end so. */
static bool nothing_came(na_conn *conn) {
  if (conn->ending && na_input_length(&conn->in) == 0)
    end_connection(conn);
  return false;
}

static bool next_request(na_conn *conn) {
  bool more = conn->scanned > 0 || na_input_length(&conn->in) == 0;
  if (na_stream_blocked(&conn->stream))
    return false; /* the last answer first: what a client does not read bounds what it can ask for */
  if (more) {
    if (!conn->stream.readable)
      return nothing_came(conn);
    ssize_t n = read_more(conn);
    if (n == -EAGAIN)
      return nothing_came(conn);
    if (n <= 0) {
      na_conn_close(conn, n < 0);
      return false;
    }
  }
  return parse(conn);
}

/* A client that has said that it will not ask again may end its side while it waits, any other one at once or never. */
static bool has_gone(na_conn *conn) {
  if (conn->stream.broken)
    return true;
  if (!conn->stream.peer_closing || !conn->body.done || !conn->keep_alive || conn->half_closed)
    return false;
  conn->half_closed = conn->worker->loop.now_us - conn->request->sent_us < HALF_CLOSE_US;
  return !conn->half_closed;
}

/* Its guards wait for more of its body: the bytes stay where they are. */
static bool gather_body(na_conn *conn) {
  na_http_request *request = conn->request;
  na_worker *worker = conn->worker;
  const na_authz *authz = request->authz;
  size_t limit = worker->config->max_head_bytes + worker->io_size + 2 * NA_MAX_CALLOUT_BODY;
  if (!conn->stream.readable || na_input_keep(&conn->in) < 0)
    return false;
  ssize_t n = na_input_fill(&conn->in, &conn->stream, worker->io, worker->io_size, limit);
  if (n == -EAGAIN)
    return false;
  if (n <= 0 && n != -ENOBUFS) {
    client_gone(conn);
    return false;
  }
  request->last_ms = worker->loop.now_ms;
  authz->more(authz->asker.waiting, n == -ENOBUFS);
  return true;
}

/* Carry on with the body of the request in progress. */
static bool continue_request(na_conn *conn) {
  na_http_request *request = conn->request;
  if (has_gone(conn)) {
    client_gone(conn);
    return false;
  }
  if (request->authz && request->authz->more)
    return gather_body(conn);
  if (conn->body.done || request->state < NA_REQUEST_SENT || !na_request_takes_body(request))
    return false;
  if (na_input_length(&conn->in) == 0) {
    if (!conn->stream.readable)
      return false;
    ssize_t n = read_more(conn);
    if (n == -EAGAIN)
      return false;
    if (n <= 0) {
      client_gone(conn);
      return false;
    }
  }
  na_request_pump(request);
  return true;
}

static bool is_serving(const na_conn *conn) {
  return !conn->dead && conn->stream.watch.fn == on_event;
}

static void run(na_conn *conn) {
  for (int round = 0; is_serving(conn); round++) {
    if (round == SERVER_ROUNDS) {
      na_loop_again(&conn->worker->loop, &conn->stream.watch);
      break;
    }
    if (!(conn->request ? continue_request(conn) : next_request(conn)))
      break;
  }
  if (is_serving(conn) && na_input_keep(&conn->in) < 0)
    na_conn_cut(conn);
}

static void on_event(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_conn *conn = stream->owner;
  if (conn->dead)
    return;
  bool was_blocked = na_stream_blocked(stream);
  if (na_stream_events(stream, events) < 0)
    stream->broken = true;
  if (was_blocked && !na_stream_blocked(stream) && conn->request)
    na_request_writable(conn->request);
  run(conn);
}

/* ---- from outside ---- */

void na_http_server_start(na_conn *conn) {
  conn->protocol = 1;
  conn->phase = NA_CONN_IDLE;
  conn->stream.watch.fn = on_event;
  conn->keep_alive = true;
  conn->body = (na_h1_body){.done = true};
  na_conn_deadline(conn, from_now(conn, conn->worker->config->idle_timeout_ms), on_idle);
  run(conn);
}

void na_http_server_drain(na_conn *conn) {
  if (conn->request || na_input_length(&conn->in) || na_stream_blocked(&conn->stream))
    return;
  if (conn->kind == NA_LISTENER_HBONE) { /* its peer was told by GOAWAY, and ends it */
    await_last(conn);
    return;
  }
  /* A request may have come that nobody has told of yet. */
  conn->ending = conn->stream.readable = true;
  na_loop_again(&conn->worker->loop, &conn->stream.watch);
}

void na_http_server_cut(na_conn *conn) {
  na_request_abort(conn->request, NA_FLAG_LR, "drain_timeout");
}
