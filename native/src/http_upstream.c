/* SPDX-License-Identifier: Apache-2.0
 *
 * One request and its response over an upstream connection.
 */
#include "http_upstream.h"

#include <assert.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "http_head.h"

/* Reads per event before others get their turn. */
#define RESPONSE_ROUNDS 8

/* ---- sending the request ---- */

/* Whether the peer closed before it got a byte of this request: its end of data came, and acknowledged nothing of it. A
 * reset does not tell: the acknowledgement may have been on its way. */
static bool closed_before_request(const na_upstream *upstream) {
  struct tcp_info info = {0};
  socklen_t size = sizeof info;
  return upstream->stream.eof && getsockopt(upstream->stream.watch.fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
         info.tcpi_bytes_acked <= upstream->sent_before + 1; /* the SYN counts as one byte */
}

/* The request's upstream failed: what to do depends on how far it got. unsent: no byte of it was sent. */
static void lost(na_upstream *upstream, bool unsent) {
  na_http_request *request = upstream->request;
  bool answering = upstream->head_done;
  bool nothing_came = !answering && na_input_length(&upstream->in) == 0;
  bool harmless = unsent || request->idempotent || closed_before_request(upstream);
  bool stale = upstream->reused && nothing_came && harmless;
  na_upstream_close(upstream); /* detaches the request */
  if (!answering)
    na_request_upstream_lost(request, stale);
  else
    na_request_abort(request, NA_FLAG_UC, "upstream_reset_after_response_started{connection_termination}");
}

static int send_bytes(na_upstream *upstream, const char *head, size_t head_n, const char *body, size_t body_n) {
  upstream->sent += head_n + body_n;
  return na_stream_send2(&upstream->stream, head, head_n, body, body_n);
}

/* Keep what is sent, in case it must be sent again. */
static void remember(na_http_request *request, const char *body, size_t n) {
  if (!request->replayable || n == 0)
    return;
  if (na_buffer_length(&request->replay) + n > NA_REPLAY_BYTES || na_buffer_append(&request->replay, body, n) < 0) {
    request->replayable = false;
    na_buffer_free(&request->replay);
  }
}

/* Take body bytes for sending; -1 after the request was answered with 400. */
static long take_body(na_http_request *request, const char **bytes) {
  na_h1_error error;
  long n = request->responder->take(request, bytes, &error);
  if (n < 0) {
    na_worker_count(request->worker, NA_COUNTER_DOWNSTREAM_RQ_PROTOCOL_ERROR);
    na_request_reply(request, error.status, NA_FLAG_DPE, "http1.codec_error", error.reason);
    return -1;
  }
  return n;
}

/* Head, what a first attempt sent already, and what of the body is at hand: in one system call. */
void na_upstream_send(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  na_worker *worker = upstream->worker;
  const na_h1_head *head = na_request_head(request);
  na_out out = {.p = worker->scratch, .size = worker->scratch_size};
  na_write_request_head(request, head, &out);
  na_out_bytes(&out, na_buffer_bytes(&request->replay), na_buffer_length(&request->replay));
  if (out.over) {
    na_request_reply(request, 500, NA_FLAG_LR, "request_headers_too_large",
                     "request headers too large after rewriting");
    return;
  }
  request->state = NA_REQUEST_SENT;
  upstream->sent_before = upstream->sent;
  const char *body = NULL;
  long n = request->body_sent ? 0 : take_body(request, &body);
  if (n < 0)
    return;
  if (upstream->reused)
    remember(request, body, (size_t)n);
  else
    request->replayable = false;
  if (send_bytes(upstream, out.p, out.n, body, (size_t)n) < 0)
    lost(upstream, true);
  else
    request->responder->more(request);
}

void na_upstream_pump(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  if (request->state < NA_REQUEST_SENT || na_stream_blocked(&upstream->stream) || upstream->stream.broken)
    return;
  const char *body;
  long n = take_body(request, &body);
  if (n <= 0)
    return;
  remember(request, body, (size_t)n);
  request->last_ms = upstream->worker->loop.now_ms;
  if (send_bytes(upstream, body, (size_t)n, NULL, 0) < 0) {
    upstream->stream.readable = true; /* an answer may have come before the failure: read it */
    na_upstream_resume(upstream);
  }
}

/* ---- reading the response ---- */

/* Body bytes in the input, as they go to the client, and how much of the input they use up. */
typedef struct body_span {
  char *bytes;
  size_t n;
  size_t taken;
} body_span;

static void broken_response(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  bool answering = upstream->head_done;
  na_worker_count(upstream->worker, NA_COUNTER_UPSTREAM_RQ_PROTOCOL_ERROR);
  na_upstream_close(upstream);
  if (answering)
    na_request_abort(request, NA_FLAG_UPE, "upstream_reset_after_response_started{protocol_error}");
  else
    na_request_reply(request, 502, NA_FLAG_UPE, "upstream_reset_before_response_started{protocol_error}",
                     "upstream connect error or disconnect/reset before headers. reset reason: protocol error");
}

static void complete(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  /* An answer before the end of the request leaves the rest of the request on the way: no second use. */
  if (!request->body_sent)
    upstream->keep_alive = false;
  request->upstream = NULL;
  na_upstream_release(upstream);
  na_request_finish(request);
}

static int pass_body(na_upstream *upstream, const body_span *span) {
  na_http_request *request = upstream->request;
  request->bytes_out = upstream->body.bytes;
  request->last_ms = upstream->worker->loop.now_ms;
  int error = request->responder->body(request, span->bytes, span->n, upstream->body.done);
  if (!error)
    na_input_consume(&upstream->in, span->taken);
  return error;
}

static void downstream_failed(na_upstream *upstream) {
  na_http_request *request = upstream->request;
  na_upstream_close(upstream);
  na_worker_count(request->worker, NA_COUNTER_DOWNSTREAM_RQ_ABORTED);
  na_request_abort(request, NA_FLAG_DC, "downstream_remote_disconnect");
}

/* Body bytes in the input behind `skip` others. False after a framing error was dealt with. */
static bool find_body(na_upstream *upstream, size_t skip, body_span *span) {
  na_h1_error error;
  size_t length = na_input_length(&upstream->in) - skip;
  long n;
  span->bytes = (char *)na_input_bytes(&upstream->in) + skip;
  if (upstream->body.kind == NA_BODY_CHUNKED && upstream->request->conn->http10) {
    n = na_h1_body_decode(&upstream->body, span->bytes, length, &span->n, &error);
  } else {
    n = na_h1_body_feed(&upstream->body, span->bytes, length, &error);
    span->n = (size_t)n;
  }
  if (n < 0)
    broken_response(upstream);
  span->taken = skip + (size_t)n;
  return n >= 0;
}

static bool read_body(na_upstream *upstream) {
  body_span span;
  if (!find_body(upstream, 0, &span))
    return false;
  if (pass_body(upstream, &span) < 0) {
    downstream_failed(upstream);
    return false;
  }
  if (upstream->body.done)
    complete(upstream);
  return upstream->request != NULL;
}

static na_response response_of(const na_h1_head *head) {
  return (na_response){.status = head->status,
                       .reason = head->reason,
                       .headers = head->headers,
                       .nheaders = head->nheaders,
                       .body = head->body};
}

static bool pass_informational(na_upstream *upstream, const na_h1_head *head) {
  na_response response = response_of(head);
  na_http_request *request = upstream->request;
  bool known = request->invited && head->status == 100;
  if (!known && request->responder->head(request, &response, NULL, 0, false) < 0) {
    downstream_failed(upstream);
    return false;
  }
  na_input_consume(&upstream->in, head->head_bytes);
  upstream->scanned = 0;
  return true;
}

static bool switch_protocols(na_upstream *upstream, const na_h1_head *head) {
  na_http_request *request = upstream->request;
  if (!request->upgrade || !request->body_sent || !head->upgrade) {
    broken_response(upstream); /* nobody asked for it */
    return false;
  }
  na_response response = response_of(head);
  response.upgrade = true;
  request->status = 101;
  request->first_us = upstream->worker->loop.now_us;
  if (request->responder->head(request, &response, NULL, 0, false) < 0) {
    downstream_failed(upstream);
    return false;
  }
  na_input_consume(&upstream->in, head->head_bytes);
  na_worker_count(upstream->worker, NA_COUNTER_UPGRADES);
  upstream->head_done = true;
  request->state = NA_REQUEST_ANSWERING;
  request->detail = "via_upstream";
  request->responder->tunnel(request);
  return false;
}

static bool pass_head(na_upstream *upstream, const na_h1_head *head) {
  na_http_request *request = upstream->request;
  body_span span;
  upstream->keep_alive = head->keep_alive;
  na_h1_body_init(&upstream->body, head);
  if (!find_body(upstream, head->head_bytes, &span))
    return false;
  na_response response = response_of(head);
  bool end = upstream->body.done;
  request->state = NA_REQUEST_ANSWERING;
  request->status = head->status;
  request->first_us = upstream->worker->loop.now_us;
  request->detail = "via_upstream";
  request->bytes_out = upstream->body.bytes;
  request->last_ms = upstream->worker->loop.now_ms;
  request->replayable = false;
  upstream->head_done = true;
  upstream->scanned = 0;
  if (request->responder->head(request, &response, span.bytes, span.n, end) < 0) {
    downstream_failed(upstream);
    return false;
  }
  na_input_consume(&upstream->in, span.taken);
  if (end)
    complete(upstream);
  return upstream->request != NULL;
}

/* Read a head; *more tells that bytes are missing. False when there is nothing to go on with. */
static bool read_head(na_upstream *upstream, bool *more) {
  na_worker *worker = upstream->worker;
  na_http_request *request = upstream->request;
  const na_config *config = worker->config;
  na_h1_limits limits = {config->max_head_bytes, config->max_headers, config->max_request_line};
  na_h1_error error;
  assert(!worker->head_of);
  int n = na_h1_parse_response(na_input_bytes(&upstream->in), na_input_length(&upstream->in), &upstream->scanned,
                               &limits, request->is_head, false, worker->head, &error);
  *more = n == 0;
  if (n == 0)
    return true;
  if (n < 0) {
    broken_response(upstream);
    return false;
  }
  if (worker->head->status == 101)
    return switch_protocols(upstream, worker->head);
  if (worker->head->status < 200)
    return pass_informational(upstream, worker->head);
  return pass_head(upstream, worker->head);
}

/* End of data, or an error. */
static void ended(na_upstream *upstream, ssize_t n) {
  if (n == 0 && upstream->head_done && upstream->body.kind == NA_BODY_UNTIL_CLOSE) {
    upstream->body.done = true;
    upstream->keep_alive = false;
    body_span nothing = {0};
    if (pass_body(upstream, &nothing) < 0)
      downstream_failed(upstream);
    else
      complete(upstream);
    return;
  }
  lost(upstream, false);
}

/* One step; false: nothing to do until the next event. */
static bool step(na_upstream *upstream, bool *more) {
  na_worker *worker = upstream->worker;
  na_http_request *request = upstream->request;
  if (request->responder->blocked(request))
    return false;
  if (na_input_length(&upstream->in) == 0 || *more) {
    if (!upstream->stream.readable)
      return false;
    ssize_t n = na_input_fill(&upstream->in, &upstream->stream, worker->io, worker->io_size,
                              worker->config->max_head_bytes + worker->io_size);
    if (n == -EAGAIN)
      return false;
    if (n <= 0) {
      ended(upstream, n);
      return false;
    }
    *more = false;
  }
  return upstream->head_done ? read_body(upstream) : read_head(upstream, more);
}

void na_upstream_respond(na_upstream *upstream) {
  bool more = upstream->scanned > 0;
  for (int round = 0; upstream->request; round++) {
    if (round == RESPONSE_ROUNDS) {
      na_loop_again(&upstream->worker->loop, &upstream->stream.watch);
      break;
    }
    if (!step(upstream, &more))
      break;
  }
  if (!upstream->dead && na_input_keep(&upstream->in) < 0 && upstream->request)
    lost(upstream, false);
}

void na_upstream_resume(na_upstream *upstream) {
  na_loop_again(&upstream->worker->loop, &upstream->stream.watch);
}
