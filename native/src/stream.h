/* SPDX-License-Identifier: Apache-2.0
 *
 * A non-blocking byte stream with a peer: a socket, the transport spoken over it, and the bytes that a short send left.
 * The owner follows three rules, by which memory is bounded:
 *   - it sends at most one I/O buffer and one head while na_stream_blocked() is false, and nothing while it is true;
 *   - it reads only what it can pass on at once, or holds back within its own limit;
 *   - it hears of readiness once (edge), and looks at `readable` from then on.
 */
#ifndef NODEAGENT_STREAM_H
#define NODEAGENT_STREAM_H

#include <sys/types.h>
#include <sys/uio.h>

#include "buffer.h"
#include "loop.h"

typedef struct na_stream na_stream;

/* The seam to what carries the bytes: TCP, TLS over it, a stream of an HBONE tunnel. Results are counts or -errno. */
typedef struct na_transport {
  const char *name;
  /* After the first EPOLLOUT: 0 when the peer can be talked to, -EINPROGRESS for "not yet", -errno when it failed. */
  int (*connected)(na_stream *stream);
  /* Also says in stream->readable whether another read may give something. */
  ssize_t (*recv)(na_stream *stream, void *buffer, size_t size);
  ssize_t (*send)(na_stream *stream, const struct iovec *iov, int n);
  int (*shutdown)(na_stream *stream); /* no more from us */
  /* The stream is closing: let go of stream->state. The descriptor, if there is one, is closed afterwards. NULL: there
   * is nothing to do. */
  void (*close)(na_stream *stream, bool reset);
  /* Why it failed, for people; valid until the close. NULL, or NULL returned: as the errno says. */
  const char *(*failure)(const na_stream *stream);
  /* The socket underneath, to ask for its addresses. NULL: the stream's own. */
  int (*socket)(const na_stream *stream);
  bool raw; /* bytes on the socket are the payload: splice(2) is possible */
} na_transport;

extern const na_transport na_transport_tcp;

struct na_stream {
  na_watch watch;                /* its descriptor is -1 for a transport that has none */
  const na_transport *transport; /* NULL: closed */
  void *state;                   /* the transport's */
  void *owner;
  na_loop *loop;
  na_buffer out; /* what waits to be sent: to the socket as it is; without a socket, to the transport */
  bool connecting : 1;
  bool readable : 1;     /* a read may give something */
  bool peer_closing : 1; /* the peer's end of data is on its way: behind what can still be read */
  bool eof : 1;          /* the peer's end of data was read */
  bool broken : 1;       /* reset or failed */
  bool shut_wanted : 1;  /* shut down our side when `out` is empty */
  bool shut : 1;         /* our side is shut down */
  bool ending : 1;       /* what is sent is the last, and the end follows at once: it may leave with that */
};

void na_stream_init(na_stream *stream, na_loop *loop, na_watch_fn *fn, void *owner);
static inline na_stream *na_stream_of(na_watch *watch) {
  return na_container_of(watch, na_stream, watch);
}
/* Take over an accepted, non-blocking socket; TCP_NODELAY is its listener's. */
int na_stream_open(na_stream *stream, int fd, const na_transport *transport);
/* The same for a stream that is read at once, and perhaps closed before there is anything else to hear of it. Whoever
 * waits for more calls na_stream_settle(). */
int na_stream_open_late(na_stream *stream, int fd, const na_transport *transport);
static inline void na_stream_settle(na_stream *stream) {
  if (stream->watch.late)
    na_loop_settle(stream->loop, &stream->watch);
}
/* Take over a socket whose connect is in progress. */
int na_stream_connect(na_stream *stream, int fd, const na_transport *transport);
/* Be a stream without a descriptor, connecting: the transport tells the rest by na_loop_tell(). */
void na_stream_attach(na_stream *stream, const na_transport *transport, void *state);
/* Note what the loop told and send what waits; 0, or -errno when the stream is of no more use for sending. Call first
 * in every watch function. */
int na_stream_events(na_stream *stream, uint32_t events);
/* Read; count, 0 at the end of data, -EAGAIN, -errno. */
ssize_t na_stream_recv(na_stream *stream, void *buffer, size_t size);
/* Send all: what the kernel does not take now is kept. 0 or -errno. */
int na_stream_send(na_stream *stream, const void *bytes, size_t n);
int na_stream_send2(na_stream *stream, const void *a, size_t an, const void *b, size_t bn);
/* Whether bytes wait to be sent. */
static inline bool na_stream_blocked(const na_stream *stream) {
  return stream->out.data != NULL;
}
/* End our side once everything is sent. */
int na_stream_shutdown(na_stream *stream);
/* Close now, dropping what waits; reset: the peer shall see a RST rather than an orderly end. */
void na_stream_close(na_stream *stream, bool reset);
static inline bool na_stream_is_open(const na_stream *stream) {
  return stream->transport != NULL;
}
/* The socket that carries it, perhaps with others. */
int na_stream_socket(const na_stream *stream);
/* Why it failed: what the transport knows, else what the errno (negative) says. */
const char *na_stream_failure(const na_stream *stream, int error);
/* Transports: send bytes to the socket as they are; what it does not take is kept and sent when there is room. 0 or
 * -errno; -ENOBUFS when more than `limit` bytes would wait. */
int na_stream_send_raw(na_stream *stream, const void *bytes, size_t n, size_t limit);

#endif
