/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "syscalls.h"

static int tcp_connected(na_stream *stream) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(stream->watch.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
    return -errno;
  return -error;
}

static ssize_t tcp_recv(na_stream *stream, void *buffer, size_t size) {
  ssize_t n = na_sys_recv(stream->watch.fd, buffer, size);
  /* A short read drained the socket; reading on to EAGAIN would cost a system call for nothing. Not so when the end of
   * data is known to follow: no further edge will tell of it. */
  if ((size_t)n != size)
    stream->readable = n > 0 && stream->peer_closing;
  return n < 0 ? -errno : n;
}

static ssize_t tcp_send(na_stream *stream, const struct iovec *iov, int n) {
  ssize_t sent;
  int flags = MSG_NOSIGNAL | (stream->ending ? MSG_MORE : 0);
  if (n == 1) {
    sent = na_sys_send(stream->watch.fd, iov->iov_base, iov->iov_len, flags);
  } else {
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n};
    sent = na_sys_sendmsg(stream->watch.fd, &message, flags);
  }
  return sent < 0 ? -errno : sent;
}

static int tcp_shutdown(na_stream *stream) {
  return shutdown(stream->watch.fd, SHUT_WR) < 0 ? -errno : 0;
}

const na_transport na_transport_tcp = {
    .name = "tcp",
    .connected = tcp_connected,
    .recv = tcp_recv,
    .send = tcp_send,
    .shutdown = tcp_shutdown,
    .raw = true,
};

void na_stream_init(na_stream *stream, na_loop *loop, na_watch_fn *fn, void *owner) {
  *stream = (na_stream){.loop = loop, .owner = owner};
  na_watch_init(&stream->watch, fn);
}

static int attach(na_stream *stream, int fd, const na_transport *transport, uint32_t interest) {
  int error = na_loop_watch(stream->loop, &stream->watch, fd, interest);
  if (error)
    close(fd);
  else
    stream->transport = transport;
  return error;
}

int na_stream_open(na_stream *stream, int fd, const na_transport *transport) {
  return attach(stream, fd, transport, 0);
}

int na_stream_open_late(na_stream *stream, int fd, const na_transport *transport) {
  int error = na_loop_watch_late(stream->loop, &stream->watch, fd);
  if (error) {
    close(fd);
    return error;
  }
  stream->transport = transport;
  stream->readable = true;
  return 0;
}

int na_stream_connect(na_stream *stream, int fd, const na_transport *transport) {
  int one = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  stream->connecting = true;
  return attach(stream, fd, transport, EPOLLOUT);
}

void na_stream_attach(na_stream *stream, const na_transport *transport, void *state) {
  stream->transport = transport;
  stream->state = state;
  stream->connecting = true;
}

static int shut_now(na_stream *stream) {
  stream->shut = true;
  return stream->transport->shutdown(stream);
}

/* Send what waits, as far as it is taken. */
static int flush(na_stream *stream) {
  struct iovec iov = {na_buffer_bytes(&stream->out), na_buffer_length(&stream->out)};
  ssize_t n = stream->watch.fd >= 0 ? tcp_send(stream, &iov, 1) : stream->transport->send(stream, &iov, 1);
  if (n == -EAGAIN || n == -EINTR)
    return 0;
  if (n < 0)
    return (int)n;
  na_buffer_consume(&stream->out, (size_t)n);
  if (!na_stream_blocked(stream) && stream->shut_wanted && !stream->shut)
    return shut_now(stream);
  return 0;
}

int na_stream_events(na_stream *stream, uint32_t events) {
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    stream->readable = true;
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    stream->peer_closing = true;
  if (events & EPOLLERR)
    stream->broken = true;
  /* While connecting, what waits is the user's; but records of a handshake. */
  bool may_send = !stream->connecting || (stream->watch.fd >= 0 && stream->state);
  if ((events & (EPOLLOUT | EPOLLERR)) && na_stream_blocked(stream) && may_send)
    return flush(stream);
  return 0;
}

ssize_t na_stream_recv(na_stream *stream, void *buffer, size_t size) {
  assert(size > 0);
  ssize_t n = stream->transport->recv(stream, buffer, size);
  if (n == -EINTR)
    n = -EAGAIN;
  if (n == 0)
    stream->eof = true;
  else if (n < 0 && n != -EAGAIN)
    stream->broken = true;
  return n;
}

/* Keep what was not sent, and ask to hear when there is room. */
static int keep(na_stream *stream, const struct iovec *iov, int n, size_t sent) {
  for (int i = 0; i < n; i++) {
    size_t skip = sent < iov[i].iov_len ? sent : iov[i].iov_len;
    sent -= skip;
    int error = na_buffer_append(&stream->out, (char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
    if (error)
      return error;
  }
  return stream->watch.fd >= 0 ? na_loop_watch_writable(stream->loop, &stream->watch) : 0;
}

int na_stream_send_raw(na_stream *stream, const void *bytes, size_t n, size_t limit) {
  struct iovec iov = {(void *)bytes, n};
  ssize_t sent = na_stream_blocked(stream) ? 0 : tcp_send(stream, &iov, 1);
  if (sent == -EAGAIN || sent == -EINTR)
    sent = 0;
  if (sent < 0)
    return (int)sent;
  if ((size_t)sent == n)
    return 0;
  return na_buffer_length(&stream->out) + n - (size_t)sent > limit ? -ENOBUFS : keep(stream, &iov, 1, (size_t)sent);
}

static int send_all(na_stream *stream, const struct iovec *iov, int n) {
  assert(!stream->shut && !stream->shut_wanted);
  assert(!stream->connecting || stream->watch.fd < 0 ||
         !stream->state); /* it would leave as it is, under any transport */
  size_t total = 0;
  for (int i = 0; i < n; i++)
    total += iov[i].iov_len;
  if (total == 0)
    return 0;
  ssize_t sent = 0;
  if (!na_stream_blocked(stream) && !stream->connecting) {
    sent = stream->transport->send(stream, iov, n);
    if (sent == -EAGAIN || sent == -EINTR)
      sent = 0;
    if (sent < 0) {
      stream->broken = true;
      return (int)sent;
    }
  }
  return (size_t)sent == total ? 0 : keep(stream, iov, n, (size_t)sent);
}

int na_stream_send(na_stream *stream, const void *bytes, size_t n) {
  struct iovec iov = {(void *)bytes, n};
  return send_all(stream, &iov, 1);
}

int na_stream_send2(na_stream *stream, const void *a, size_t an, const void *b, size_t bn) {
  struct iovec iov[2] = {{(void *)a, an}, {(void *)b, bn}};
  return send_all(stream, iov, bn ? 2 : 1);
}

int na_stream_shutdown(na_stream *stream) {
  stream->shut_wanted = true;
  if (stream->shut || na_stream_blocked(stream) || stream->connecting)
    return 0;
  return shut_now(stream);
}

void na_stream_close(na_stream *stream, bool reset) {
  if (stream->transport && stream->transport->close)
    stream->transport->close(stream, reset);
  stream->transport = NULL;
  int fd = stream->watch.fd;
  na_loop_unwatch(stream->loop, &stream->watch);
  na_buffer_free(&stream->out);
  if (fd < 0)
    return;
  if (reset) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  }
  close(fd);
}

int na_stream_socket(const na_stream *stream) {
  bool own = !stream->transport || !stream->transport->socket;
  return own ? stream->watch.fd : stream->transport->socket(stream);
}

const char *na_stream_failure(const na_stream *stream, int error) {
  const char *text = stream->transport && stream->transport->failure ? stream->transport->failure(stream) : NULL;
  return text ? text : strerrordesc_np(-error);
}
