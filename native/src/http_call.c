/* SPDX-License-Identifier: Apache-2.0 */
#include "http_call.h"

#include <errno.h>
#include <stdlib.h>

struct na_http_channel {
  na_channel channel;
  na_http_call *call; /* NULL: unused */
  na_buffer in;       /* of the answer, from its beginning */
  na_h1_body body;
  uint32_t scanned;
  uint32_t head_bytes; /* 0: the head is not complete */
  uint32_t fed;        /* of the bytes in `in`, to `body` */
  bool keep_alive;
  bool reused;
};

static const na_channel_kind kind;

static na_http_channel *http_of(const na_channel *channel) {
  return na_container_of((na_channel *)channel, na_http_channel, channel);
}

/* ---- the end of a call ---- */

static na_http_call *detach(na_http_channel *http) {
  na_http_call *call = http->call;
  http->call = NULL;
  if (call)
    call->channel = NULL;
  return call;
}

static void give_up(na_http_channel *http, int error) {
  bool stale = http->reused && na_buffer_length(&http->in) == 0 && error == -ECONNRESET;
  na_channel_close(&http->channel, stale ? -ESTALE : error);
}

static na_h1_limits limits_of(const na_worker *worker) {
  const na_config *config = worker->config;
  return (na_h1_limits){config->max_head_bytes, config->max_headers, config->max_request_line};
}

/* Take the payload out of a body that is complete; it is moved to its front. */
static na_str payload_of(const na_h1_head *head, char *bytes, size_t n) {
  na_h1_body body;
  na_h1_error error;
  size_t payload = n;
  na_h1_body_init(&body, head);
  if (body.kind == NA_BODY_CHUNKED)
    (void)na_h1_body_decode(&body, bytes, n, &payload, &error); /* it was fed before */
  return (na_str){bytes, (uint32_t)payload};
}

/* The answer is there. What it is handed to may start another call over this connection. */
static void complete(na_http_channel *http) {
  na_worker *worker = http->channel.worker;
  na_buffer in = http->in;
  na_h1_limits limits = limits_of(worker);
  na_h1_error error;
  uint32_t scanned = 0;
  uint32_t head_bytes = http->head_bytes, end = http->fed;
  bool keep = http->keep_alive && end == na_buffer_length(&in);
  na_http_call *call = detach(http);
  /* Not the worker's: whoever is told looks at heads of his own. */
  na_h1_head *head = malloc(sizeof *head);
  http->in = (na_buffer){0};
  if (keep)
    na_channel_rest(&http->channel);
  else
    na_channel_close(&http->channel, 0);
  if (head && na_h1_parse_response(na_buffer_bytes(&in), head_bytes, &scanned, &limits, call->is_head, false, head,
                                   &error) == (int)head_bytes)
    call->done(call, 0, head, payload_of(head, na_buffer_bytes(&in) + head_bytes, end - head_bytes));
  else
    call->done(call, -ENOMEM, NULL, (na_str){"", 0});
  free(head);
  na_buffer_free(&in);
}

/* ---- reading ---- */

/* Look for the answer's head, past informational ones; 1: it is there, 0: more is needed, -EPROTO. */
static int find_head(na_http_channel *http) {
  na_worker *worker = http->channel.worker;
  na_h1_limits limits = limits_of(worker);
  na_h1_error error;
  for (;;) {
    int n = na_h1_parse_response(na_buffer_bytes(&http->in), na_buffer_length(&http->in), &http->scanned, &limits,
                                 http->call->is_head, false, worker->head, &error);
    if (n == 0)
      return 0;
    if (n < 0 || worker->head->status == 101)
      return -EPROTO;
    http->scanned = 0;
    if (worker->head->status >= 200) {
      na_h1_body_init(&http->body, worker->head);
      http->keep_alive = worker->head->keep_alive;
      http->head_bytes = http->fed = (uint32_t)n;
      return 1;
    }
    na_buffer_consume(&http->in, (size_t)n);
    if (!na_buffer_length(&http->in))
      return 0;
  }
}

static int follow_body(na_http_channel *http) {
  na_h1_error error;
  if (http->body.done)
    return 0;
  const char *bytes = na_buffer_bytes(&http->in) + http->fed;
  long n = na_h1_body_feed(&http->body, bytes, na_buffer_length(&http->in) - http->fed, &error);
  if (n < 0)
    return -EPROTO;
  http->fed += (uint32_t)n;
  return 0;
}

/* What came is looked at; whether the answer is complete. */
static int look(na_http_channel *http) {
  int rc = http->head_bytes || !na_buffer_length(&http->in) ? 0 : find_head(http);
  if (rc >= 0 && http->head_bytes)
    rc = follow_body(http);
  return rc < 0 ? rc : 0;
}

static bool is_complete(const na_http_channel *http) {
  return http->head_bytes && http->body.done;
}

/* The peer's end of data. */
static void ended(na_http_channel *http) {
  if (!http->head_bytes || http->body.kind != NA_BODY_UNTIL_CLOSE) {
    give_up(http, -ECONNRESET);
    return;
  }
  http->keep_alive = false;
  complete(http);
}

static void ready(na_channel *channel) {
  na_http_channel *http = http_of(channel);
  na_worker *worker = channel->worker;
  na_stream *io = &channel->io;
  while (http->call && io->readable) {
    ssize_t n = na_stream_recv(io, worker->io, worker->io_size);
    if (n == -EAGAIN)
      return;
    if (n == 0) {
      ended(http);
      return;
    }
    int error = n < 0 ? (int)n : 0;
    if (!error && na_buffer_length(&http->in) + (size_t)n > NA_MAX_CALL_ANSWER)
      error = -EMSGSIZE;
    if (!error)
      error = na_buffer_append(&http->in, worker->io, (size_t)n);
    if (!error)
      error = look(http);
    if (error)
      give_up(http, error);
    else if (is_complete(http))
      complete(http);
  }
  if (!http->call && io->readable) /* unused: whatever comes, it is of no more use */
    na_channel_close(channel, 0);
}

/* ---- life ---- */

static void send_request(na_http_channel *http) {
  int error = na_stream_send(&http->channel.io, http->call->request, http->call->n);
  if (error)
    give_up(http, -ECONNRESET);
}

static void connected(na_channel *channel) {
  na_http_channel *http = http_of(channel);
  if (http->call)
    send_request(http);
  else
    na_channel_close(channel, 0);
}

static void failed(na_channel *channel, int error) {
  na_http_channel *http = http_of(channel);
  na_http_call *call = detach(http);
  if (call)
    call->done(call, error ? error : -ECONNRESET, NULL, (na_str){"", 0});
}

static bool in_use(const na_channel *channel) {
  return http_of(channel)->call != NULL;
}

static void http_free(na_channel *channel) {
  na_http_channel *http = http_of(channel);
  na_buffer_free(&http->in);
  free(http);
}

static const na_channel_kind kind = {
    .connected = connected, .ready = ready, .failed = failed, .in_use = in_use, .free = http_free};

static bool is_idle(const na_channel *channel) {
  return !in_use(channel) && !channel->io.connecting && !channel->io.readable;
}

static int open_channel(const na_channel_target *target, na_http_channel **out) {
  na_http_channel *http = calloc(1, sizeof *http);
  if (!http)
    return -ENOMEM;
  int error = na_channel_open(&http->channel, &kind, target);
  if (error)
    free(http);
  else
    *out = http;
  return error;
}

int na_http_call_start(na_http_call *call, const na_channel_target *target, bool fresh) {
  na_channel *channel = fresh ? NULL : na_channel_find(target, &kind, is_idle);
  na_http_channel *http = channel ? http_of(channel) : NULL;
  int error = http ? 0 : open_channel(target, &http);
  if (error)
    return error;
  http->reused = channel != NULL;
  http->head_bytes = http->scanned = http->fed = 0;
  if (http->reused && (error = na_stream_send(&http->channel.io, call->request, call->n))) {
    na_channel_close(channel, error);
    return fresh ? error : na_http_call_start(call, target, true);
  }
  http->call = call;
  call->channel = http;
  return 0;
}

void na_http_call_cancel(na_http_call *call) {
  na_http_channel *http = call->channel;
  if (!http)
    return;
  detach(http);
  na_channel_close(&http->channel, 0); /* an answer may be on its way */
}
