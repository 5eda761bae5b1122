/* SPDX-License-Identifier: Apache-2.0
 *
 * A downstream connection, from accept to close. It goes through phases, each with its own watch function:
 *
 *   accepted -> (waiting for configuration) -> detecting -> HTTP server | TCP proxy -> lingering -> closed
 *
 * The struct is what an idle connection costs: keep it small.
 */
#ifndef NODEAGENT_CONN_H
#define NODEAGENT_CONN_H

#include "address.h"
#include "http_body.h"
#include "input.h"
#include "parking.h"
#include "worker.h"

typedef struct na_tcp_proxy na_tcp_proxy; /* tcp_proxy.h */
typedef struct na_ahead na_ahead;         /* ahead.h */
typedef struct na_h2_stream na_h2_stream; /* h2.h */

/* As na_connection_info.state has it. */
enum na_conn_phase {
  NA_CONN_DETECTING,
  NA_CONN_WAITING,
  NA_CONN_IDLE,
  NA_CONN_ACTIVE,
  NA_CONN_TCP,
  NA_CONN_CLOSING,
  NA_CONN_CONNECTING, /* tunnelled: not answered before the application is there; shown as NA_CONN_TCP */
  NA_CONN_GUARDED,    /* waiting for a verdict on it; shown as NA_CONN_WAITING */
};

/* na_stat_row.protocol */
enum {
  NA_PROTOCOL_OPAQUE = 0,
  NA_PROTOCOL_HTTP1 = 1,
  NA_PROTOCOL_GRPC = 2,
  NA_PROTOCOL_HTTP2_FORWARDED = 3,
};

typedef struct na_conn na_conn;

struct na_conn {
  na_stream stream;
  na_worker *worker;
  na_workload *workload;
  na_link link; /* worker->conns */
  union {
    na_timer timer;
    na_grave grave;
  };
  uint64_t deadline_ms;          /* the timer may fire earlier and is then set anew: spares arming per request */
  void (*expire)(na_conn *conn); /* at the deadline */
  uint64_t id;
  uint64_t start_us;
  na_address peer;
  na_address local; /* the original destination */
  uint32_t drawn;   /* captured: whose endpoint connect() drew for it (struct na_destination) */
  na_input in;
  union {
    na_waiter waiter; /* while waiting for configuration */
    na_h1_body body;  /* HTTP */
  };
  na_http_request *request; /* in progress, or NULL */
  na_tcp_proxy *tcp;
  struct na_authz *authz; /* while its guards wait for somebody, else NULL; authz.h */
  na_ahead *ahead;        /* connection to the application that is not used yet, or NULL */
  uint64_t bytes_in;
  uint64_t bytes_out;
  union {
    uint32_t scanned;   /* of an incomplete head */
    uint32_t swallowed; /* while lingering */
  };
  uint32_t tag;         /* of the destination or inbound port */
  uint32_t audit;       /* as in na_access_record, of the connection as such */
  uint8_t kind;         /* enum na_listener_kind */
  uint8_t phase;        /* enum na_conn_phase */
  uint8_t protocol;     /* as na_stat_row.protocol */
  uint8_t speaks;       /* enum na_protocol, as configured */
  uint8_t slashes;      /* how they are read in paths: NA_SLASHES_* */
  bool draining : 1;    /* the next answer is its last */
  bool ending : 1;      /* it ends as soon as nothing waits to be read */
  bool keep_alive : 1;  /* the client lets the connection live after this request */
  bool half_closed : 1; /* the client ended its side and waits for answers */
  bool http10 : 1;
  bool chunked_out : 1; /* the response's body is framed in chunks here */
  bool chunk_open : 1;  /* a chunk was sent, its final CRLF not yet */
  bool dead : 1;
  bool handshaking : 1;  /* a TLS handshake is in progress, greet.h */
  bool tcp_opened : 1;   /* reported as an opened TCP connection */
  bool known : 1;        /* who it is has been found out: guards can be asked (again) */
  bool every_asked : 1;  /* what concerns all connections to its workload allows it */
  bool guards_asked : 1; /* so do its port's guards for TCP */
};

static inline bool na_conn_inbound(const na_conn *conn) {
  return conn->kind == NA_LISTENER_INBOUND || conn->kind == NA_LISTENER_HBONE;
}

/* Whether the original destination is somewhere else. An explicit proxy was connected to itself: going there would be
 * to go round in circles. */
static inline bool na_conn_can_pass(const na_conn *conn) {
  return conn->kind != NA_LISTENER_PLAIN;
}

/* Accept a socket: owns fd. `drawn` is na_conn.drawn. */
void na_conn_accept(na_worker *worker, na_workload *workload, enum na_listener_kind kind, int fd,
                    const na_address *peer, const na_address *local, uint32_t drawn);
/* Make a connection of a tunnel's stream, which leads to `local`; it is not let in yet. NULL: no memory. */
na_conn *na_conn_tunnelled(na_worker *worker, na_workload *workload, na_h2_stream *stream, const na_address *peer,
                           const na_address *local);
/* It is known whether the client has an identity: go on. */
void na_conn_greeted(na_conn *conn);
/* The application is connected: let it in. */
void na_conn_admit(na_conn *conn);
/* The client's address, when the connection is inbound and the address is somebody else's; else NULL. */
const na_address *na_conn_source(const na_conn *conn);
/* Read nothing for now; in order, until somebody's verdict comes. A tunnel that is not answered yet waits as it is. */
void na_conn_wait(na_conn *conn);
/* Call `expire` at the deadline unless it is moved before. */
void na_conn_deadline(na_conn *conn, uint64_t deadline_ms, void (*expire)(na_conn *conn));
/* Close and free (at the end of the turn). */
void na_conn_close(na_conn *conn, bool reset);
/* Send what waits, end our side, and swallow what the client still sends for a moment: closing a socket with unread
 * data would reset the connection and destroy our answer on its way (RFC 9112 9.6). */
void na_conn_linger(na_conn *conn);
/* Begin to drain: idle connections close now, others when their work is done. */
void na_conn_drain(na_conn *conn);
/* End it, whatever it does. */
void na_conn_cut(na_conn *conn);

/* detect.c: find out what the client speaks, and go on as configured. */
void na_detect_start(na_conn *conn);
/* Go on as HTTP/1 or as TCP. */
void na_http_server_start(na_conn *conn);
void na_http_server_drain(na_conn *conn);
void na_http_server_cut(na_conn *conn);

#endif
