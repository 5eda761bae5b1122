/* SPDX-License-Identifier: Apache-2.0
 *
 * An HTTP/2 connection over TLS whose streams are byte streams (CONNECT, RFC 9113 8.5): nghttp2 with our limits.
 *
 * One na_h2_stream stands between two owners: the connection, and the na_stream that somebody reads and writes
 * (na_transport_h2). Either may let go first; it is freed when both have. Bytes from the peer are kept in `rx` until
 * they are read, and only then may the peer send more (flow control); bytes to the peer are kept in `tx`, at most
 * NA_H2_TX_BYTES, until its window takes them.
 *
 * Frames are gathered over a turn of the loop and leave in one piece at its end.
 */
#ifndef NODEAGENT_H2_H
#define NODEAGENT_H2_H

#include <nghttp2/nghttp2.h>

#include "h2_guard.h"
#include "http1.h"
#include "tls.h"
#include "worker.h"

/* RFC 9113 6.5.2 SETTINGS_MAX_HEADER_LIST_SIZE: names, values and 32 for each, as decoded. */
#define NA_H2_HEADER_BYTES 65536
/* Kept of a stream while the peer does not take it. */
#define NA_H2_TX_BYTES 65536

typedef struct na_h2 na_h2;
typedef struct na_h2_stream na_h2_stream;

/* What the two sides of HBONE make of a connection. */
typedef struct na_h2_role {
  bool server;
  /* Server: the peer opened a stream; make one, zeroed but for what is the role's. NULL: refuse it. */
  na_h2_stream *(*opened)(na_h2 *h2);
  /* A header of the stream's first block; names are lower case (checked). */
  void (*header)(na_h2_stream *stream, na_str name, na_str value);
  /* The first header block is complete. Nothing may be read of the stream before this returned. */
  void (*head)(na_h2_stream *stream);
  /* Client: the connection let go of a stream that was never open, and that somebody waits for. */
  void (*lost)(na_h2_stream *stream, na_h2 *h2);
  /* Server: the user left a stream that has no answer yet: give one. */
  void (*unanswered)(na_h2_stream *stream);
  /* Why the stream failed, or NULL. */
  const char *(*failure)(const na_h2_stream *stream);
  /* Both owners have let go. */
  void (*free)(na_h2_stream *stream);
  /* The handshake is done, streams may be opened. */
  void (*ready)(na_h2 *h2);
  /* Now and then, when it is time to look for what has grown old. */
  void (*tick)(na_h2 *h2);
  /* Another stream has ended; or the peer will take no more of them (GOAWAY). */
  void (*changed)(na_h2 *h2);
  /* The connection is ending; its streams are told next. `why` is for people, and valid during the call. */
  void (*closing)(na_h2 *h2, int error, const char *why);
  /* The end. Free it by na_loop_bury(). */
  void (*closed)(na_h2 *h2);
} na_h2_role;

struct na_h2 {
  na_stream io;
  na_worker *worker;
  const na_h2_role *role;
  nghttp2_session *session; /* NULL until the handshake is done */
  union {
    na_timer timer; /* handshake; then keep-alive */
    na_grave grave;
  };
  na_link streams; /* of na_h2_stream.link */
  uint32_t nstreams;
  na_h2_guard guard;
  uint64_t received_ms;
  uint64_t pinged_ms; /* 0: no answer is due */
  uint64_t idle_ms;   /* since when it has no streams; the role's */
  const char *doom;   /* why it must end after what is going on now; NULL */
  bool feeding : 1;   /* within nghttp2: its callbacks must not free or feed it */
  bool no_more : 1;   /* takes no new streams */
  bool drained : 1;   /* the peer was told to send no more */
  bool finishing : 1; /* to end as soon as everything is sent; soon in any case */
  bool told : 1;      /* the peer's SETTINGS came, and with them its limits */
  bool violated : 1;  /* the peer broke the protocol, and was told so */
  bool dead : 1;
};

struct na_h2_stream {
  na_h2 *h2;       /* NULL: the connection has let go of it */
  na_link link;    /* h2->streams */
  na_stream *user; /* NULL: nobody reads or writes it (any more) */
  na_grave grave;
  na_buffer rx;
  na_buffer tx;
  const na_h2_role *role;
  na_loop *loop;
  uint64_t left_ms; /* when the user left */
  int32_t id;       /* 0: not opened yet */
  uint32_t header_bytes;
  uint32_t error;    /* of RST_STREAM */
  int failure;       /* -errno for the user's connect; 0: none */
  bool has_user : 1; /* a user is to come, or there */
  bool open : 1;     /* CONNECT was answered with 200 */
  bool head_done : 1;
  bool rx_end : 1;   /* the peer's end of data */
  bool tx_end : 1;   /* no more from us behind tx */
  bool tx_ended : 1; /* END_STREAM was handed out */
  bool waiting : 1;  /* nghttp2 was told that there is nothing to send */
  bool reset : 1;    /* ended in disorder */
};

extern const na_transport na_transport_h2;

/* h2.c: connections */

/* Begin on `io`, a TLS stream of na_tls_begin() (or, for fuzzing, a plain one); the handshake may take `timeout_ms`. */
void na_h2_begin(na_h2 *h2, na_worker *worker, const na_h2_role *role, uint32_t timeout_ms);
/* Have frames sent at the end of this turn. */
void na_h2_wake(na_h2 *h2);
/* Take no new streams, and tell the peer so (GOAWAY); it ends with its last stream. */
void na_h2_drain(na_h2 *h2);
/* Nobody needs it any more: send what there is to send, for a second at most, and end. */
void na_h2_finish(na_h2 *h2);
/* End it now. Streams see a reset. Not from within its own callbacks. */
void na_h2_close(na_h2 *h2, int error, const char *why);
/* Client: how many streams the peer takes at once, by its SETTINGS. */
uint32_t na_h2_peer_streams(const na_h2 *h2);
/* Client: how many more streams can be opened now. */
uint32_t na_h2_room(const na_h2 *h2, uint32_t limit);

/* h2_stream.c: streams */

/* Prepare a zeroed stream. */
void na_h2_stream_init(na_h2_stream *stream, const na_h2_role *role, na_loop *loop);
/* It is one of the connection's now. */
void na_h2_stream_add(na_h2 *h2, na_h2_stream *stream, int32_t id);
/* Client: send the request; a stream of its own. -errno. */
int na_h2_stream_request(na_h2 *h2, na_h2_stream *stream, const nghttp2_nv *headers, size_t n);
/* Server: answer. end: with nothing to follow; else the stream is open. */
int na_h2_stream_respond(na_h2_stream *stream, const nghttp2_nv *headers, size_t n, bool end);
/* Let the user hear of something: EPOLL* bits. */
void na_h2_stream_tell(na_h2_stream *stream, uint32_t events);
/* The connection lets go (nghttp2 closed the stream, or the connection ended). */
void na_h2_stream_detach(na_h2_stream *stream, uint32_t error);
/* Bytes came. */
int na_h2_stream_received(na_h2_stream *stream, const uint8_t *bytes, size_t n);
/* End it in disorder, from our side. */
void na_h2_stream_reset(na_h2_stream *stream, uint32_t error);

static inline nghttp2_nv na_h2_header(const char *name, const char *value, size_t value_n) {
  /* nghttp2 copies both. */
  return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), value_n, NGHTTP2_NV_FLAG_NONE};
}

#endif
