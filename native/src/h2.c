/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/2 connections: handshake, frames in and out, keep-alive, the end.
 */
#include "h2.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>

/* Reads per event before other connections get their turn. */
#define READ_ROUNDS 4
/* RFC 9113 6.5.2 SETTINGS_MAX_FRAME_SIZE that we take. Larger ones would make streams wait for each other. */
#define MAX_FRAME_BYTES 65536
/* Frames that wait for a peer that does not read them (Envoy's max_outbound_frames). DATA does not count: windows. */
#define MAX_QUEUED_FRAMES 10000
/* How long a stream that everybody has left may take to end. */
#define LEFT_MS 60000
/* What is left to say when a connection ends is said within this time. */
#define FINISH_MS 1000
/* From the notice of a shutdown to the last word: what is on its way arrives by then. */
#define NOTICE_MS 1000

static void on_io(na_watch *watch, uint32_t events);

static void doom(na_h2 *h2, const char *why) {
  if (why && !h2->doom)
    h2->doom = why;
}

void na_h2_wake(na_h2 *h2) {
  na_loop_again(&h2->worker->loop, &h2->io.watch);
}

/* When to look at it again: for its keep-alive, and for its age. */
static uint32_t tick_ms(const na_h2 *h2) {
  const na_config *config = h2->worker->config;
  return config->hbone_ping_ms < config->hbone_idle_timeout_ms ? config->hbone_ping_ms : config->hbone_idle_timeout_ms;
}

/* ---- what nghttp2 tells ---- */

static na_h2_stream *stream_of(nghttp2_session *session, int32_t id) {
  return id > 0 ? nghttp2_session_get_stream_user_data(session, id) : NULL;
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *context) {
  na_h2 *h2 = context;
  uint64_t now = h2->worker->loop.now_ms;
  bool ends = hd->type != NGHTTP2_CONTINUATION && hd->flags & NGHTTP2_FLAG_END_STREAM;
  switch (hd->type) {
  case NGHTTP2_PRIORITY:
    doom(h2, na_h2_guard_priority(&h2->guard));
    break;
  case NGHTTP2_WINDOW_UPDATE:
    doom(h2, na_h2_guard_window_update(&h2->guard));
    break;
  case NGHTTP2_PING:
  case NGHTTP2_SETTINGS:
    doom(h2, na_h2_guard_control(&h2->guard, now));
    break;
  case NGHTTP2_DATA:
  case NGHTTP2_HEADERS:
  case NGHTTP2_CONTINUATION:
    doom(h2, na_h2_guard_payload(&h2->guard, hd->length > 0 || ends));
    break;
  default:
    break;
  }
  return 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *context) {
  na_h2 *h2 = context;
  int32_t id = frame->hd.stream_id;
  if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
    return 0;
  na_h2_stream *stream = h2->doom ? NULL : h2->role->opened(h2);
  if (!stream) {
    h2->guard.streams++;
    (void)nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_REFUSED_STREAM);
    return 0;
  }
  na_h2_stream_add(h2, stream, id);
  nghttp2_session_set_stream_user_data(session, id, stream);
  return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                     const uint8_t *value, size_t value_n, uint8_t flags, void *context) {
  na_h2 *h2 = context;
  na_h2_stream *stream = stream_of(session, frame->hd.stream_id);
  if (!stream)
    return 0;
  /* Charged as decoded, whatever becomes of it: a few compressed bytes may stand for many. */
  uint64_t bytes = (uint64_t)stream->header_bytes + name_n + value_n + 32;
  stream->header_bytes = bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX;
  if (bytes > NA_H2_HEADER_BYTES) {
    na_worker_count(h2->worker, NA_COUNTER_HBONE_HEADERS_TOO_LARGE);
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  if (!stream->head_done)
    stream->role->header(stream, (na_str){(const char *)name, (uint32_t)name_n},
                         (na_str){(const char *)value, (uint32_t)value_n});
  return 0;
}

static void peer_ended(na_h2_stream *stream) {
  stream->rx_end = true;
  na_h2_stream_tell(stream, EPOLLIN | EPOLLRDHUP);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *context) {
  na_h2 *h2 = context;
  na_h2_stream *stream = stream_of(session, frame->hd.stream_id);
  bool payload = frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA;
  if (stream && frame->hd.type == NGHTTP2_HEADERS && !stream->head_done) {
    stream->head_done = true;
    stream->role->head(stream);
  }
  if (stream && payload && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
    peer_ended(stream);
  if (frame->hd.type == NGHTTP2_GOAWAY)
    h2->no_more = true;
  if (frame->hd.type == NGHTTP2_SETTINGS && !(frame->hd.flags & NGHTTP2_FLAG_ACK))
    h2->told = true;
  if (frame->hd.type == NGHTTP2_GOAWAY || frame->hd.type == NGHTTP2_SETTINGS)
    h2->role->changed(h2);
  return 0;
}

/* nghttp2 ends connections that break the protocol by itself. */
static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *context) {
  na_h2 *h2 = context;
  if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
    h2->violated = true;
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t n, void *context) {
  na_h2 *h2 = context;
  na_h2_stream *stream = stream_of(session, id);
  if (!stream) {
    (void)nghttp2_session_consume(session, id, n);
    return 0;
  }
  if (na_h2_stream_received(stream, bytes, n) < 0) {
    (void)nghttp2_session_consume(session, id, n);
    na_h2_stream_reset(stream, NGHTTP2_INTERNAL_ERROR);
    na_worker_count(h2->worker, NA_COUNTER_HBONE_NO_MEMORY);
  }
  return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *context) {
  na_h2 *h2 = context;
  na_h2_stream *stream = stream_of(session, id);
  bool premature = error != NGHTTP2_NO_ERROR && (!stream || !stream->open);
  if (h2->role->server)
    doom(h2, na_h2_guard_end(&h2->guard, premature, h2->worker->loop.now_ms));
  if (stream)
    na_h2_stream_detach(stream, error);
  h2->role->changed(h2);
  return 0;
}

/* ---- what nghttp2 sends: gathered into one piece ---- */

static ssize_t on_send(nghttp2_session *session, const uint8_t *bytes, size_t n, int flags, void *context) {
  na_gather *gather = &((na_h2 *)context)->worker->gather;
  size_t room = NA_GATHER_BYTES - gather->n, part = n < room ? n : room;
  if (part == 0)
    return NGHTTP2_ERR_WOULDBLOCK;
  memcpy(gather->bytes + gather->n, bytes, part);
  gather->n += part;
  return (ssize_t)part;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t n,
                        nghttp2_data_source *source, void *context) {
  na_h2 *h2 = context;
  na_gather *gather = &h2->worker->gather;
  na_h2_stream *stream = source->ptr;
  if (NA_GATHER_BYTES - gather->n < 9 + n) /* RFC 9113 4.1: a frame header is 9 bytes */
    return NGHTTP2_ERR_WOULDBLOCK;
  assert(frame->data.padlen == 0 && n <= na_buffer_length(&stream->tx));
  memcpy(gather->bytes + gather->n, head, 9);
  if (n)
    memcpy(gather->bytes + gather->n + 9, na_buffer_bytes(&stream->tx), n);
  gather->n += 9 + n;
  h2->guard.data_sent++;
  if (n)
    na_buffer_consume(&stream->tx, n);
  if (stream->user && na_stream_blocked(stream->user) && na_buffer_length(&stream->tx) <= NA_H2_TX_BYTES / 2)
    na_h2_stream_tell(stream, EPOLLOUT);
  return 0;
}

/* ---- sessions ---- */

static nghttp2_session_callbacks *callbacks;
static nghttp2_option *options;

static void make_callbacks(void) {
  if (nghttp2_session_callbacks_new(&callbacks) || nghttp2_option_new(&options)) {
    callbacks = NULL;
    return;
  }
  nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
  nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
  nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
  nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
  nghttp2_option_set_no_auto_window_update(options, 1);
  nghttp2_option_set_no_closed_streams(options, 1);
  nghttp2_option_set_peer_max_concurrent_streams(options, 100);
  nghttp2_option_set_max_continuations(options, 8);
}

static int submit_settings(na_h2 *h2) {
  const na_config *config = h2->worker->config;
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, config->hbone_stream_window},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, MAX_FRAME_BYTES},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NA_H2_HEADER_BYTES},
      {h2->role->server ? NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS : NGHTTP2_SETTINGS_ENABLE_PUSH,
       h2->role->server ? config->hbone_max_streams : 0},
  };
  int error = nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof *settings);
  if (!error)
    error = nghttp2_session_set_local_window_size(h2->session, NGHTTP2_FLAG_NONE, 0, (int32_t)config->hbone_window);
  return error ? -ENOMEM : 0;
}

static int make_session(na_h2 *h2) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_callbacks);
  if (!callbacks)
    return -ENOMEM;
  int error = h2->role->server ? nghttp2_session_server_new2(&h2->session, callbacks, h2, options)
                               : nghttp2_session_client_new2(&h2->session, callbacks, h2, options);
  return error ? -ENOMEM : submit_settings(h2);
}

/* ---- the end ---- */

static int write_frames(na_h2 *h2);

static void say_goodbye(na_h2 *h2, int error) {
  bool can = h2->session && !h2->io.broken && !h2->io.connecting && !na_stream_blocked(&h2->io);
  if (!can)
    return;
  uint32_t code = error == 0             ? NGHTTP2_NO_ERROR
                  : error == -EPROTO     ? NGHTTP2_PROTOCOL_ERROR
                  : error == -EDQUOT     ? NGHTTP2_ENHANCE_YOUR_CALM
                  : error == -ECONNRESET ? NGHTTP2_NO_ERROR
                                         : NGHTTP2_INTERNAL_ERROR;
  if (nghttp2_session_terminate_session(h2->session, code) == 0)
    (void)write_frames(h2);
}

void na_h2_close(na_h2 *h2, int error, const char *why) {
  assert(!h2->feeding);
  if (h2->dead)
    return;
  char text[192];
  snprintf(text, sizeof text, "%s", why ? why : na_stream_failure(&h2->io, error));
  say_goodbye(h2, error);
  h2->dead = true;
  h2->no_more = true;
  na_timer_disarm(&h2->timer);
  nghttp2_session_del(h2->session);
  h2->session = NULL;
  h2->role->closing(h2, error, text);
  while (!na_list_empty(&h2->streams))
    na_h2_stream_detach(na_container_of(h2->streams.next, na_h2_stream, link), NGHTTP2_INTERNAL_ERROR);
  na_stream_close(&h2->io, false);
  h2->role->closed(h2);
}

void na_h2_drain(na_h2 *h2) {
  if (h2->dead || h2->drained)
    return;
  h2->drained = true;
  h2->no_more = !h2->role->server; /* a server takes what is on its way */
  if (!h2->session) {
    h2->no_more = true;
    return;
  }
  if (h2->role->server) {
    (void)nghttp2_submit_shutdown_notice(h2->session);
    na_timer_arm(&h2->worker->loop.wheel, &h2->timer, h2->worker->loop.now_ms + NOTICE_MS);
  }
  na_h2_wake(h2);
}

/* The last word of a server that drains. */
static void stop_taking(na_h2 *h2) {
  h2->no_more = true;
  (void)nghttp2_submit_goaway(h2->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(h2->session),
                              NGHTTP2_NO_ERROR, NULL, 0);
  na_h2_wake(h2);
}

void na_h2_finish(na_h2 *h2) {
  if (h2->dead || h2->finishing)
    return;
  na_loop *loop = &h2->worker->loop;
  h2->finishing = h2->drained = true;
  na_timer_arm(&loop->wheel, &h2->timer, loop->now_ms + (h2->session ? FINISH_MS : 0));
  if (h2->session)
    stop_taking(h2);
  h2->no_more = true;
}

/* Whether nothing is left to do. */
static bool is_over(const na_h2 *h2) {
  if (na_stream_blocked(&h2->io))
    return false;
  bool wants = nghttp2_session_want_read(h2->session) || nghttp2_session_want_write(h2->session);
  return !wants || (h2->no_more && h2->nstreams == 0 && !nghttp2_session_want_write(h2->session));
}

/* ---- moving frames ---- */

static int read_frames(na_h2 *h2) {
  na_worker *worker = h2->worker;
  for (int round = 0; h2->io.readable && !h2->doom; round++) {
    if (round == READ_ROUNDS) {
      na_h2_wake(h2);
      break;
    }
    ssize_t n = na_stream_recv(&h2->io, worker->io, worker->io_size);
    if (n == -EAGAIN)
      break;
    if (n <= 0)
      return n ? (int)n : -ECONNRESET;
    h2->received_ms = worker->loop.now_ms;
    h2->pinged_ms = 0;
    h2->feeding = true;
    ssize_t used = nghttp2_session_mem_recv(h2->session, (const uint8_t *)worker->io, (size_t)n);
    h2->feeding = false;
    if (used < 0) {
      doom(h2, nghttp2_strerror((int)used));
      return used == NGHTTP2_ERR_FLOODED ? -EDQUOT : -EPROTO;
    }
  }
  if (!h2->doom && nghttp2_session_get_outbound_queue_size(h2->session) > MAX_QUEUED_FRAMES)
    doom(h2, "too many frames wait to be sent");
  return h2->doom ? -EDQUOT : 0;
}

static int write_frames(na_h2 *h2) {
  na_gather *gather = &h2->worker->gather;
  bool full = true;
  while (full && !na_stream_blocked(&h2->io)) {
    gather->n = 0;
    h2->feeding = true;
    int failed = nghttp2_session_send(h2->session);
    h2->feeding = false;
    if (failed)
      return failed == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
    full = nghttp2_session_want_write(h2->session) && gather->n > NA_GATHER_BYTES / 2;
    if (gather->n == 0)
      break;
    int error = na_stream_send(&h2->io, gather->bytes, gather->n);
    if (error)
      return error;
  }
  return 0;
}

/* ---- the handshake ---- */

static void begin_session(na_h2 *h2) {
  na_loop *loop = &h2->worker->loop;
  int error = make_session(h2);
  if (error) {
    na_h2_close(h2, error, NULL);
    return;
  }
  h2->received_ms = loop->now_ms;
  na_timer_arm(&loop->wheel, &h2->timer, loop->now_ms + tick_ms(h2));
  h2->role->ready(h2);
}

/* The asymmetric cryptography of a handshake takes most of a millisecond: a crowd of them waits in turns. */
static bool may_handshake(na_h2 *h2) {
  if (h2->worker->handshakes_left == 0) {
    na_h2_wake(h2);
    return false;
  }
  h2->worker->handshakes_left--;
  return true;
}

static void handshake(na_h2 *h2, uint32_t events) {
  if (h2->io.connecting) {
    int error = events ? na_transport_tcp.connected(&h2->io) : -EINPROGRESS;
    if (error == -EINPROGRESS)
      return;
    if (error) {
      na_h2_close(h2, error, strerrordesc_np(-error));
      return;
    }
    h2->io.connecting = false;
  }
  if (!may_handshake(h2))
    return;
  int error = h2->io.transport->connected(&h2->io);
  if (error == 0)
    begin_session(h2);
  else if (error != -EINPROGRESS)
    na_h2_close(h2, error, NULL);
}

/* ---- events ---- */

/* What a peer said before it closed tells more than that it did: an alert may be there to be read. */
static void broke(na_h2 *h2, int error) {
  if (!h2->doom && error == -EPIPE) {
    h2->io.readable = true;
    int reason = read_frames(h2);
    error = reason ? reason : error;
  }
  na_h2_close(h2, error, h2->doom);
}

static void on_io(na_watch *watch, uint32_t events) {
  na_stream *io = na_stream_of(watch);
  na_h2 *h2 = io->owner;
  if (h2->dead)
    return;
  int error = na_stream_events(io, events);
  if (!h2->session && !error)
    handshake(h2, events);
  if (h2->dead || (!h2->session && !error))
    return;
  if (!error)
    error = read_frames(h2);
  if (!error)
    error = write_frames(h2);
  if (error)
    broke(h2, error);
  else if (is_over(h2))
    na_h2_close(h2, h2->violated ? -EPROTO : 0, h2->violated ? "HTTP/2 protocol error" : "the tunnel was closed");
}

static void sweep(na_h2 *h2) {
  uint64_t now = h2->worker->loop.now_ms;
  for (na_link *link = h2->streams.next; link != &h2->streams; link = link->next) {
    na_h2_stream *stream = na_container_of(link, na_h2_stream, link);
    if (!stream->has_user && now - stream->left_ms >= LEFT_MS)
      na_h2_stream_reset(stream, NGHTTP2_CANCEL);
  }
}

static void keep_alive(na_h2 *h2) {
  uint64_t now = h2->worker->loop.now_ms;
  uint32_t ping_ms = h2->worker->config->hbone_ping_ms;
  if (h2->pinged_ms && now - h2->pinged_ms >= 2 * (uint64_t)ping_ms) {
    na_worker_count(h2->worker, NA_COUNTER_HBONE_PING_TIMEOUT);
    na_h2_close(h2, -ETIMEDOUT, "no answer to HTTP/2 PING");
    return;
  }
  if (!h2->pinged_ms && now - h2->received_ms >= ping_ms && ping_ms != NA_NEVER) {
    h2->pinged_ms = now;
    (void)nghttp2_submit_ping(h2->session, NGHTTP2_FLAG_NONE, NULL);
    na_h2_wake(h2);
  }
  sweep(h2);
  na_timer_arm(&h2->worker->loop.wheel, &h2->timer, now + tick_ms(h2));
  h2->role->tick(h2);
}

static void on_timer(na_timer *timer) {
  na_h2 *h2 = na_container_of(timer, na_h2, timer);
  if (!h2->session && !h2->finishing) {
    na_worker_count(h2->worker, NA_COUNTER_HBONE_HANDSHAKE_TIMEOUT);
    na_h2_close(h2, -ETIMEDOUT, h2->io.connecting ? "connection timeout" : "TLS handshake timeout");
    return;
  }
  if (h2->finishing) {
    na_h2_close(h2, 0, "the workload is gone");
    return;
  }
  if (h2->drained && !h2->no_more)
    stop_taking(h2);
  keep_alive(h2);
}

void na_h2_begin(na_h2 *h2, na_worker *worker, const na_h2_role *role, uint32_t timeout_ms) {
  h2->worker = worker;
  h2->role = role;
  na_link_init(&h2->streams);
  na_timer_init(&h2->timer, on_timer);
  h2->io.owner = h2;
  h2->io.watch.fn = on_io;
  na_timer_arm(&worker->loop.wheel, &h2->timer, worker->loop.now_ms + timeout_ms);
  na_h2_wake(h2);
}

uint32_t na_h2_peer_streams(const na_h2 *h2) {
  return h2->session ? nghttp2_session_get_remote_settings(h2->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) : 0;
}

uint32_t na_h2_room(const na_h2 *h2, uint32_t limit) {
  if (h2->dead || h2->no_more || h2->doom || !h2->session || !nghttp2_session_check_request_allowed(h2->session))
    return 0;
  uint32_t most = na_h2_peer_streams(h2);
  most = most < limit ? most : limit;
  return most > h2->nstreams ? most - h2->nstreams : 0;
}
