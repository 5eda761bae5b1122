/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor: the least that a one-hop relay in user space can do, to compare proxies with. One thread, no timers, no
 * statistics, no routing, no retries, one upstream. What makes it quick: one recv and one send a direction, no second
 * read after a short one, no epoll_ctl on the way of a request, the upstream connection used last is taken first, and
 * one I/O buffer for all: idle connections own none.
 *
 * TLS 1.3 on either side, by OpenSSL through memory: one recv for all records and one send for all (floor_tls.c).
 *
 * A head must arrive in one piece and a body must have a Content-Length; anything else ends the connection.
 */
#ifndef NODEAGENT_BENCH_FLOOR_H
#define NODEAGENT_BENCH_FLOOR_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FLOOR_IO_BYTES ((size_t)64 * 1024)
/* Plaintext of a record of which the last read had a part. */
#define FLOOR_RECORD_BYTES ((size_t)16 * 1024)
#define FLOOR_PIPE_BYTES   ((size_t)256 * 1024)
/* Queued for a slow reader before its peer is no longer read. */
#define FLOOR_QUEUE_BYTES ((size_t)128 * 1024)

typedef struct floor_side floor_side;
struct ssl_st;
struct ssl_ctx_st;

/* What is done with what comes; -1: the pair is to end. */
typedef struct floor_mode {
  const char *name;
  bool pairs; /* the upstream connection is made with the downstream one, and lives as long */
  int (*readable)(floor_side *side);
  int (*room)(floor_side *side); /* after the queue is empty; may be NULL */
} floor_mode;

/* One connection, of a client or to the upstream. */
struct floor_side {
  int fd;
  bool client, connecting, paused, wants_room, dead;
  bool in_body, close_after;
  uint64_t body_left;
  floor_side *peer; /* whom it is being relayed with; NULL: idle */
  floor_side *next; /* in the pool, or among the dead */
  char *queue;      /* what the other end has not taken; NULL mostly */
  size_t queued;
  int pipe[2]; /* splice: on its way from this side to the peer */
  size_t in_pipe;
  struct ssl_st *ssl; /* NULL: plaintext */
  bool shaking;       /* amid the handshake: `queue` is plaintext that waits for its end */
};

extern const floor_mode floor_http, floor_tcp, floor_splice;
/* The buffer that everything is read into. */
extern char floor_io[FLOOR_IO_BYTES + FLOOR_RECORD_BYTES];

/* An upstream connection: a pooled one or a new one; NULL if there is none to be had. */
floor_side *floor_upstream(void);
/* Give an upstream connection back. */
void floor_pool(floor_side *side);
/* recv(2) into floor_io; of what is encrypted the plaintext. */
ssize_t floor_receive(floor_side *side);
/* Send, or queue what cannot be sent now; -1: broken. */
int floor_send(floor_side *side, const char *bytes, size_t n);
/* The same for what is on the socket as it is. */
int floor_send_raw(floor_side *side, const char *bytes, size_t n);
/* Stop or go on reading. */
void floor_pause(floor_side *side, bool paused);
/* Wait until there is room to send, or no longer. */
void floor_want_room(floor_side *side, bool want);
/* End a connection, and the one that it is relayed with. */
void floor_end(floor_side *side);

/* Speak TLS on a side, as its server to clients. */
void floor_tls_open(floor_side *side, struct ssl_ctx_st *context);
/* Go on with the handshake; -1: it failed. */
int floor_tls_shake(floor_side *side);
/* As floor_receive() and floor_send(), after the handshake or amid it (receive). */
ssize_t floor_tls_receive(floor_side *side);
int floor_tls_send(floor_side *side, const char *bytes, size_t n);
/* Tell the other end that this is the end. */
void floor_tls_close(floor_side *side);

#endif
