/* SPDX-License-Identifier: Apache-2.0
 *
 * The load generator's parts. load.c reads the options and prints the result; load_run.c keeps connections busy, in a
 * closed loop (as fast as answers come) or an open one (at a fixed rate, whatever comes); a protocol says what to send
 * and judges what comes back.
 */
#ifndef NODEAGENT_BENCH_LOAD_H
#define NODEAGENT_BENCH_LOAD_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"

#define LOAD_HEAD_LIMIT 8192

/* What can go wrong with a request. */
enum load_error {
  LOAD_CONNECT, /* no connection */
  LOAD_CLOSED,  /* closed or reset before the answer was whole */
  LOAD_STATUS,  /* not the status that was expected */
  LOAD_FRAMING, /* not the length that was expected, or none */
  LOAD_CONTENT, /* other bytes than were expected */
  LOAD_ERRORS,
};

typedef struct load_connection load_connection;
typedef struct load load;

/* What a protocol makes of bytes that came. */
enum load_verdict { LOAD_MORE, LOAD_ANSWERED, LOAD_WRONG };

typedef struct load_protocol {
  const char *name;
  bool streams;  /* there are no requests: all that comes is counted */
  bool one_shot; /* the server closes after each answer */
  bool connects; /* a connection is all there is to a request: load_connects() makes them, one at a time */
  /* The bytes of a request; the same ones for all. */
  const char *(*request)(const load *l, size_t *n);
  /* Judge bytes that came for the request in progress. LOAD_WRONG: load_fail() has been told why. */
  enum load_verdict (*consume)(load *l, load_connection *c, const char *bytes, size_t n);
} load_protocol;

typedef struct load_options {
  const load_protocol *protocol;
  struct sockaddr_in target;
  uint32_t connections;
  uint64_t rate; /* requests a second; 0: closed loop */
  double warm_up, seconds;
  uint64_t body;    /* bytes that are asked for */
  const char *host; /* of HTTP requests */
  const char *tls;  /* prefix of the files of our certificate; NULL: no TLS */
  bool resume;      /* the latest TLS session */
  bool hold;        /* one request on each connection, then keep them open until standard input ends */
} load_options;

struct load_connection {
  int fd;
  struct ssl_st *ssl; /* NULL: plaintext */
  bool connecting, shaking, busy, answered, writing;
  uint64_t since;     /* when the request in progress was to be sent, ns */
  uint64_t sent;      /* bytes of the request that are sent */
  uint64_t received;  /* bytes of the body, or of the stream */
  uint64_t expected;  /* bytes of the body */
  size_t head_length; /* bytes of the response head held in `head` */
  bool in_body;
  char *head;            /* a head that came in pieces; NULL mostly */
  load_connection *next; /* in the list of idle ones */
};

struct load {
  load_options options;
  int epoll_fd;
  struct ssl_ctx_st *tls;
  load_connection *connections;
  load_connection *idle;
  /* Open loop: requests that were due while no connection was free, a ring of their times. */
  uint64_t *due;
  uint32_t due_first, due_count;
  uint64_t next_due;
  bool measuring;
  uint64_t requests, bytes, opened, missed;
  uint64_t errors[LOAD_ERRORS];
  char first_error[160];
  histogram latency;
};

extern const load_protocol load_http, load_http_close, load_echo, load_stream, load_connect;

/* Count an error; the first one is kept in words. */
__attribute__((format(printf, 3, 4))) void load_fail(load *l, enum load_error kind, const char *format, ...);
/* Run warm-up and measurement; `begin` is called between them. */
void load_run(load *l, void (*begin)(void));
/* Open all connections with one request each, call `begin`, keep them until standard input ends; returns how many are
 * still open then. */
uint32_t load_hold(load *l, void (*begin)(void));
/* As load_run(), for protocols that connect and no more. */
void load_connects(load *l, void (*begin)(void));
/* Forget what was counted until now. */
void load_forget(load *l);

#endif
