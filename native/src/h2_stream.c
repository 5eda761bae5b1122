/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams of an HTTP/2 connection as a transport of na_stream.
 */
#include <assert.h>
#include <errno.h>

#include "h2.h"

/* ---- between owners ---- */

void na_h2_stream_init(na_h2_stream *stream, const na_h2_role *role, na_loop *loop) {
  stream->role = role;
  stream->loop = loop;
  na_link_init(&stream->link);
}

void na_h2_stream_add(na_h2 *h2, na_h2_stream *stream, int32_t id) {
  stream->h2 = h2;
  stream->id = id;
  na_list_push_back(&h2->streams, &stream->link);
  h2->nstreams++;
  h2->guard.streams++;
}

void na_h2_stream_tell(na_h2_stream *stream, uint32_t events) {
  if (stream->user)
    na_loop_tell(stream->user->loop, &stream->user->watch, events);
}

static void free_if_left(na_h2_stream *stream) {
  if (stream->h2 || stream->has_user)
    return;
  na_buffer_free(&stream->rx);
  na_buffer_free(&stream->tx);
  stream->role->free(stream);
}

void na_h2_stream_detach(na_h2_stream *stream, uint32_t error) {
  na_h2 *h2 = stream->h2;
  stream->h2 = NULL;
  na_link_remove(&stream->link);
  h2->nstreams--;
  stream->error = error;
  stream->reset = error != NGHTTP2_NO_ERROR || !stream->rx_end;
  if (h2->session && na_buffer_length(&stream->rx))
    (void)nghttp2_session_consume_connection(h2->session, na_buffer_length(&stream->rx));
  na_buffer_free(&stream->tx);
  if (!stream->open && stream->has_user && stream->role->lost)
    stream->role->lost(stream, h2);
  else
    na_h2_stream_tell(stream, stream->reset ? EPOLLIN | EPOLLERR : EPOLLIN | EPOLLOUT | EPOLLRDHUP);
  free_if_left(stream);
}

void na_h2_stream_reset(na_h2_stream *stream, uint32_t error) {
  na_h2 *h2 = stream->h2;
  if (!h2 || !h2->session)
    return;
  (void)nghttp2_submit_rst_stream(h2->session, NGHTTP2_FLAG_NONE, stream->id, error);
  na_h2_wake(h2);
}

int na_h2_stream_received(na_h2_stream *stream, const uint8_t *bytes, size_t n) {
  nghttp2_session *session = stream->h2->session;
  if (!stream->has_user) { /* what comes after everybody has left */
    (void)nghttp2_session_consume(session, stream->id, n);
    if (stream->tx_ended)
      na_h2_stream_reset(stream, NGHTTP2_CANCEL);
    return 0;
  }
  int error = na_buffer_append(&stream->rx, bytes, n);
  if (!error)
    na_h2_stream_tell(stream, EPOLLIN);
  return error;
}

/* ---- sending ---- */

/* nghttp2 asks how much there is for a DATA frame; the bytes themselves go by send_data in h2.c, uncopied. */
static ssize_t read_data(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t size, uint32_t *flags,
                         nghttp2_data_source *source, void *context) {
  na_h2_stream *stream = source->ptr;
  size_t n = na_buffer_length(&stream->tx);
  if (n == 0 && !stream->tx_end) {
    stream->waiting = true;
    return NGHTTP2_ERR_DEFERRED;
  }
  *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
  if (n <= size && stream->tx_end) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    stream->tx_ended = true;
  }
  return (ssize_t)(n < size ? n : size);
}

static nghttp2_data_provider provider_of(na_h2_stream *stream) {
  return (nghttp2_data_provider){.source.ptr = stream, .read_callback = read_data};
}

static void more_to_send(na_h2_stream *stream) {
  if (stream->waiting)
    (void)nghttp2_session_resume_data(stream->h2->session, stream->id);
  stream->waiting = false;
  na_h2_wake(stream->h2);
}

int na_h2_stream_request(na_h2 *h2, na_h2_stream *stream, const nghttp2_nv *headers, size_t n) {
  nghttp2_data_provider provider = provider_of(stream);
  int32_t id = nghttp2_submit_request(h2->session, NULL, headers, n, &provider, stream);
  if (id < 0)
    return id == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
  na_h2_stream_add(h2, stream, id);
  na_h2_wake(h2);
  return 0;
}

int na_h2_stream_respond(na_h2_stream *stream, const nghttp2_nv *headers, size_t n, bool end) {
  na_h2 *h2 = stream->h2;
  if (!h2)
    return -ECONNRESET;
  nghttp2_data_provider provider = provider_of(stream);
  int error = nghttp2_submit_response(h2->session, stream->id, headers, n, end ? NULL : &provider);
  if (error)
    return error == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
  stream->open = !end;
  stream->tx_ended = end;
  na_h2_wake(h2);
  return 0;
}

/* ---- the transport ---- */

static int stream_connected(na_stream *user) {
  const na_h2_stream *stream = user->state;
  if (stream->failure)
    return stream->failure;
  if (stream->open)
    return stream->reset ? -ECONNRESET : 0;
  return -EINPROGRESS;
}

static ssize_t stream_recv(na_stream *user, void *buffer, size_t size) {
  na_h2_stream *stream = user->state;
  size_t have = na_buffer_length(&stream->rx), n = have < size ? have : size;
  user->readable = have > n || stream->rx_end;
  if (n == 0) {
    if (stream->rx_end)
      return 0;
    return stream->reset ? -ECONNRESET : -EAGAIN;
  }
  memcpy(buffer, na_buffer_bytes(&stream->rx), n);
  na_buffer_consume(&stream->rx, n);
  if (stream->h2) {
    (void)nghttp2_session_consume(stream->h2->session, stream->id, n);
    if (nghttp2_session_want_write(stream->h2->session))
      na_h2_wake(stream->h2);
  } else if (have == n) {
    user->readable = true; /* the end, orderly or not, is still to be told */
  }
  return (ssize_t)n;
}

static ssize_t stream_send(na_stream *user, const struct iovec *iov, int n) {
  na_h2_stream *stream = user->state;
  if (!stream->h2 || stream->tx_end)
    return -EPIPE;
  size_t sent = 0;
  for (int i = 0; i < n; i++) {
    size_t room = NA_H2_TX_BYTES - na_buffer_length(&stream->tx);
    size_t part = iov[i].iov_len < room ? iov[i].iov_len : room;
    if (na_buffer_append(&stream->tx, iov[i].iov_base, part) < 0)
      return -ENOMEM;
    sent += part;
    if (part < iov[i].iov_len)
      break;
  }
  if (sent)
    more_to_send(stream);
  return sent ? (ssize_t)sent : -EAGAIN;
}

static int stream_shutdown(na_stream *user) {
  na_h2_stream *stream = user->state;
  if (!stream->h2)
    return -ENOTCONN;
  stream->tx_end = true;
  more_to_send(stream);
  return 0;
}

/* The user leaves a stream that the connection has. RFC 9113 8.5: a failed TCP connection is a CONNECT_ERROR. */
static void leave(na_h2_stream *stream, bool reset) {
  na_h2 *h2 = stream->h2;
  stream->left_ms = h2->worker->loop.now_ms;
  if (na_buffer_length(&stream->rx))
    (void)nghttp2_session_consume(h2->session, stream->id, na_buffer_length(&stream->rx));
  na_buffer_free(&stream->rx);
  if (!stream->open && stream->role->server) {
    stream->role->unanswered(stream);
  } else if (reset || !stream->open) {
    na_buffer_free(&stream->tx);
    na_h2_stream_reset(stream, stream->role->server ? NGHTTP2_CONNECT_ERROR : NGHTTP2_CANCEL);
  } else {
    stream->tx_end = true;
    more_to_send(stream);
  }
}

static void stream_close(na_stream *user, bool reset) {
  na_h2_stream *stream = user->state;
  user->state = NULL;
  stream->user = NULL;
  stream->has_user = false;
  if (stream->h2)
    leave(stream, reset);
  free_if_left(stream);
}

static const char *stream_failure(const na_stream *user) {
  const na_h2_stream *stream = user->state;
  return stream->role->failure ? stream->role->failure(stream) : NULL;
}

static int stream_socket(const na_stream *user) {
  const na_h2_stream *stream = user->state;
  return stream->h2 ? stream->h2->io.watch.fd : -1;
}

const na_transport na_transport_h2 = {
    .name = "h2",
    .connected = stream_connected,
    .recv = stream_recv,
    .send = stream_send,
    .shutdown = stream_shutdown,
    .close = stream_close,
    .failure = stream_failure,
    .socket = stream_socket,
};
