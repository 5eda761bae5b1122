/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc.h"

#include <assert.h>
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>

/* Of a message: whether it is compressed, and its length. */
#define PREFIX_BYTES 5
/* Headers of a call besides its metadata. */
#define OWN_HEADERS  8
#define MAX_METADATA 64
/* Reads per event before others get their turn. */
#define READ_ROUNDS 8

struct na_grpc {
  na_channel channel;
  nghttp2_session *session;
  na_link calls;
  na_link over; /* calls that have ended, and are told so when nghttp2 has returned */
  uint32_t ncalls;
  bool feeding; /* within nghttp2 */
  bool suspect; /* a call had no answer in time */
};

static const na_channel_kind kind;

static na_grpc *grpc_of(const na_channel *channel) {
  return na_container_of((na_channel *)channel, na_grpc, channel);
}

/* ---- calls ---- */

static void leave(na_grpc_call *call) {
  na_grpc *grpc = call->grpc;
  call->grpc = NULL;
  na_link_remove(&call->link);
  free(call->request);
  call->request = NULL;
  grpc->ncalls--;
  if (!grpc->ncalls && !grpc->channel.dead)
    na_channel_rest(&grpc->channel);
}

/* Whether what came is one whole answer. */
static int judge(const na_grpc_call *call, na_str *message) {
  const unsigned char *p = (const unsigned char *)na_buffer_bytes(&call->answer);
  size_t n = na_buffer_length(&call->answer);
  if (call->error)
    return call->error;
  if (call->http_status != 200 || !call->is_grpc || call->grpc_status != 0)
    return -EPROTO;
  if (n < PREFIX_BYTES || p[0] != 0)
    return -EBADMSG;
  uint32_t length = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
  if (length != n - PREFIX_BYTES)
    return -EBADMSG;
  *message = (na_str){(const char *)p + PREFIX_BYTES, length};
  return 0;
}

static void tell(na_grpc_call *call) {
  na_str message = {"", 0};
  na_buffer answer = call->answer;
  int error = judge(call, &message);
  call->answer = (na_buffer){0};
  leave(call);
  call->done(call, error, message);
  na_buffer_free(&answer); /* the call may be gone */
}

/* Tell calls that they are over; one at a time, as each may do anything to the others. */
static void tell_over(na_grpc *grpc) {
  while (!na_list_empty(&grpc->over))
    tell(na_container_of(grpc->over.next, na_grpc_call, link));
}

static void end(na_grpc_call *call, int error) {
  call->error = error;
  na_link_remove(&call->link);
  na_list_push_back(&call->grpc->over, &call->link);
}

/* ---- nghttp2 ---- */

static na_grpc_call *call_of(nghttp2_session *session, int32_t stream) {
  return nghttp2_session_get_stream_user_data(session, stream);
}

static bool is_named(const uint8_t *name, size_t n, const char *wanted) {
  return n == strlen(wanted) && memcmp(name, wanted, n) == 0;
}

/* A decimal number below 1000; -1 for another text. */
static int small_number(const uint8_t *text, size_t n) {
  int value = 0;
  for (size_t i = 0; i < n; i++) {
    if (n > 3 || text[i] < '0' || text[i] > '9')
      return -1;
    value = value * 10 + (text[i] - '0');
  }
  return n ? value : -1;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                     const uint8_t *value, size_t value_n, uint8_t flags, void *context) {
  static const char type[] = "application/grpc";
  na_grpc_call *call = call_of(session, frame->hd.stream_id);
  if (!call)
    return 0;
  if (is_named(name, name_n, ":status"))
    call->http_status = (uint16_t)small_number(value, value_n);
  else if (is_named(name, name_n, "grpc-status"))
    call->grpc_status = small_number(value, value_n);
  else if (is_named(name, name_n, "content-type"))
    call->is_grpc = value_n >= sizeof type - 1 && memcmp(value, type, sizeof type - 1) == 0;
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *bytes, size_t n,
                   void *context) {
  na_grpc_call *call = call_of(session, stream);
  if (!call)
    return 0;
  int error =
      na_buffer_length(&call->answer) + n > NA_MAX_CALL_ANSWER ? -EMSGSIZE : na_buffer_append(&call->answer, bytes, n);
  if (!error)
    return 0;
  nghttp2_session_set_stream_user_data(session, stream, NULL);
  nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream, NGHTTP2_CANCEL);
  end(call, error);
  return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t code, void *context) {
  na_grpc_call *call = call_of(session, stream);
  if (call) /* NO_ERROR also when the service wanted no more of the request */
    end(call, code == NGHTTP2_NO_ERROR ? 0 : -ECONNRESET);
  return 0;
}

static ssize_t read_request(nghttp2_session *session, int32_t stream, uint8_t *out, size_t size, uint32_t *flags,
                            nghttp2_data_source *source, void *context) {
  na_grpc_call *call = call_of(session, stream);
  if (!call)
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  size_t n = call->request_n - call->sent;
  if (n > size)
    n = size;
  memcpy(out, call->request + call->sent, n);
  call->sent += n;
  if (call->sent == call->request_n)
    *flags |= NGHTTP2_DATA_FLAG_EOF;
  return (ssize_t)n;
}

static int make_session(na_grpc *grpc) {
  nghttp2_session_callbacks *callbacks;
  const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
  if (nghttp2_session_callbacks_new(&callbacks))
    return -ENOMEM;
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
  int error = nghttp2_session_client_new(&grpc->session, callbacks, grpc);
  nghttp2_session_callbacks_del(callbacks);
  if (error)
    return -ENOMEM;
  return nghttp2_submit_settings(grpc->session, NGHTTP2_FLAG_NONE, settings, 1) ? -ENOMEM : 0;
}

/* ---- the connection ---- */

/* Send what nghttp2 has, as far as it is taken. */
static int flush(na_grpc *grpc) {
  na_stream *io = &grpc->channel.io;
  while (!na_stream_blocked(io)) {
    const uint8_t *bytes;
    ssize_t n = nghttp2_session_mem_send(grpc->session, &bytes);
    if (n <= 0)
      return n ? -EPROTO : 0;
    int error = na_stream_send(io, bytes, (size_t)n);
    if (error)
      return error;
  }
  return 0;
}

static int feed(na_grpc *grpc) {
  na_worker *worker = grpc->channel.worker;
  na_stream *io = &grpc->channel.io;
  for (int round = 0; io->readable; round++) {
    if (round == READ_ROUNDS) {
      na_loop_again(&worker->loop, &io->watch);
      return 0;
    }
    ssize_t n = na_stream_recv(io, worker->io, worker->io_size);
    if (n == -EAGAIN)
      return 0;
    if (n <= 0)
      return n ? (int)n : -ECONNRESET;
    if (nghttp2_session_mem_recv(grpc->session, (const uint8_t *)worker->io, (size_t)n) < 0)
      return -EPROTO;
  }
  return 0;
}

/* Read, answer and tell; the connection may be closed afterwards. */
static void turn(na_grpc *grpc) {
  grpc->feeding = true;
  int error = feed(grpc);
  if (!error || error == -ECONNRESET) {
    int failed = flush(grpc);
    error = error ? error : failed;
  }
  grpc->feeding = false;
  if (!error && !nghttp2_session_want_read(grpc->session) && !nghttp2_session_want_write(grpc->session))
    error = -ECONNRESET;
  tell_over(grpc);
  if (error)
    na_channel_close(&grpc->channel, error);
}

static void ready(na_channel *channel) {
  turn(grpc_of(channel));
}

static void failed(na_channel *channel, int error) {
  na_grpc *grpc = grpc_of(channel);
  while (!na_list_empty(&grpc->calls)) {
    na_grpc_call *call = na_container_of(grpc->calls.next, na_grpc_call, link);
    if (call->submitted)
      nghttp2_session_set_stream_user_data(grpc->session, call->stream, NULL);
    end(call, error ? error : -ECONNRESET);
  }
  tell_over(grpc);
}

static bool in_use(const na_channel *channel) {
  return grpc_of(channel)->ncalls > 0;
}

static void grpc_free(na_channel *channel) {
  na_grpc *grpc = grpc_of(channel);
  nghttp2_session_del(grpc->session);
  free(grpc);
}

static const na_channel_kind kind = {
    .connected = ready, .ready = ready, .failed = failed, .in_use = in_use, .free = grpc_free};

/* The peer takes another stream: it has not said that it is going away, and is not full. */
static bool has_room(const na_channel *channel) {
  const na_grpc *grpc = grpc_of(channel);
  return !grpc->suspect && nghttp2_session_check_request_allowed(grpc->session) &&
         grpc->ncalls < nghttp2_session_get_remote_settings(grpc->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

static int open_channel(const na_channel_target *target, na_grpc **out) {
  na_grpc *grpc = calloc(1, sizeof *grpc);
  if (!grpc)
    return -ENOMEM;
  na_link_init(&grpc->calls);
  na_link_init(&grpc->over);
  int error = make_session(grpc);
  if (!error)
    error = na_channel_open(&grpc->channel, &kind, target);
  if (error) {
    nghttp2_session_del(grpc->session);
    free(grpc);
    return error;
  }
  *out = grpc;
  return 0;
}

/* ---- starting a call ---- */

static nghttp2_nv pair(const char *name, na_str value) {
  /* nghttp2 copies both. */
  return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value.p, strlen(name), value.n, NGHTTP2_NV_FLAG_NONE};
}

static int submit(na_grpc *grpc, na_grpc_call *call, const na_grpc_args *args) {
  nghttp2_nv headers[OWN_HEADERS + MAX_METADATA];
  char timeout[24];
  size_t n = 0;
  snprintf(timeout, sizeof timeout, "%um", args->timeout_ms);
  headers[n++] = pair(":method", na_str_of("POST"));
  headers[n++] = pair(":scheme", na_str_of("http"));
  headers[n++] = pair(":path", na_str_of(args->path));
  headers[n++] = pair(":authority", args->authority);
  headers[n++] = pair("content-type", na_str_of("application/grpc"));
  headers[n++] = pair("te", na_str_of("trailers"));
  headers[n++] = pair("grpc-timeout", na_str_of(timeout));
  headers[n++] = pair("user-agent", na_str_of("nodeagent"));
  for (uint32_t i = 0; i < args->nmetadata && i < MAX_METADATA; i++) {
    const na_header *header = &args->metadata[i];
    headers[n++] = (nghttp2_nv){(uint8_t *)header->name.p, (uint8_t *)header->value.p, header->name.n, header->value.n,
                                NGHTTP2_NV_FLAG_NONE};
  }
  const nghttp2_data_provider provider = {.read_callback = read_request};
  int32_t stream = nghttp2_submit_request(grpc->session, NULL, headers, n, &provider, call);
  if (stream < 0)
    return -EPROTO;
  call->stream = stream;
  call->submitted = true;
  return 0;
}

static int frame_request(na_grpc_call *call, na_str message) {
  call->request = malloc(PREFIX_BYTES + message.n);
  if (!call->request)
    return -ENOMEM;
  const unsigned char prefix[PREFIX_BYTES] = {0, (unsigned char)(message.n >> 24), (unsigned char)(message.n >> 16),
                                              (unsigned char)(message.n >> 8), (unsigned char)message.n};
  memcpy(call->request, prefix, sizeof prefix);
  if (message.n)
    memcpy(call->request + PREFIX_BYTES, message.p, message.n);
  call->request_n = PREFIX_BYTES + message.n;
  return 0;
}

int na_grpc_start(na_grpc_call *call, const na_grpc_args *args) {
  assert(!call->grpc);
  na_channel *channel = na_channel_find(&args->target, &kind, has_room);
  na_grpc *grpc = channel ? grpc_of(channel) : NULL;
  int error = frame_request(call, args->message);
  if (!error && !grpc)
    error = open_channel(&args->target, &grpc);
  if (!error)
    error = submit(grpc, call, args);
  if (error) {
    free(call->request);
    call->request = NULL;
    if (grpc && !grpc->ncalls)
      na_channel_rest(&grpc->channel);
    return error;
  }
  call->grpc = grpc;
  call->grpc_status = -1;
  grpc->ncalls++;
  na_list_push_back(&grpc->calls, &call->link);
  if (!grpc->channel.io.connecting)
    na_loop_again(&grpc->channel.worker->loop, &grpc->channel.io.watch); /* sent at the end of this turn */
  return 0;
}

void na_grpc_cancel(na_grpc_call *call, bool timed_out) {
  na_grpc *grpc = call->grpc;
  if (!grpc)
    return;
  grpc->suspect = grpc->suspect || timed_out;
  if (nghttp2_session_get_stream_user_data(grpc->session, call->stream) == call) { /* it has not ended yet */
    nghttp2_session_set_stream_user_data(grpc->session, call->stream, NULL);
    nghttp2_submit_rst_stream(grpc->session, NGHTTP2_FLAG_NONE, call->stream, NGHTTP2_CANCEL);
  }
  na_buffer_free(&call->answer);
  leave(call);
  if (!grpc->channel.dead && !grpc->channel.io.connecting)
    na_loop_again(&grpc->channel.worker->loop, &grpc->channel.io.watch);
}
