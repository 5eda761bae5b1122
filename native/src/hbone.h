/* SPDX-License-Identifier: Apache-2.0
 *
 * HBONE: connections between workloads as CONNECT streams of mutually authenticated HTTP/2 tunnels (Istio, port 15008).
 *
 * A stream that arrives becomes a na_conn like any other, of kind NA_LISTENER_HBONE, whose na_stream is the HTTP/2
 * stream; one that leaves is the na_stream of whoever dialled it. So all that is said and done about connections holds
 * for tunnelled ones too.
 */
#ifndef NODEAGENT_HBONE_H
#define NODEAGENT_HBONE_H

#include "cluster.h"
#include "conn.h"
#include "h2.h"
#include "proxy_protocol.h"

/* Per worker. */
struct na_hbone {
  na_link accepted; /* of na_hbone_server */
  na_map targets;   /* of na_hbone_target: where tunnels were or are */
  na_link resting;  /* targets without tunnels, kept for their TLS sessions; the oldest first */
  uint32_t nresting;
  na_map sessions; /* of mTLS without a tunnel, mtls.h */
};

/* What is known of the authenticated other end of a stream. Texts are valid while the stream is open. */
typedef struct na_peer {
  uint32_t principal;      /* na_engine_principal() */
  const char *uri;         /* its SPIFFE ID */
  const char *baggage;     /* or "" */
  const char *traceparent; /* or "" */
  const char *forwarded;   /* or "" */
} na_peer;

/* False for a stream that neither comes through a tunnel nor from a neighbour (neighbours.h) nor by mTLS (mtls.h). */
bool na_hbone_peer(const na_stream *stream, na_peer *out);

/* Whether another request may go by the identities that the stream's tunnel was made with: ours is in force still (what
 * we dial: no other one has come), and no certificate of either side has run out. For neighbours: both are in force.
 * Others are. */
bool na_hbone_is_current(const na_stream *stream);

int na_hbone_init(na_worker *worker);
/* All connections are gone. */
void na_hbone_free(na_worker *worker);
/* Let tunnels of the workload (NULL: all) end with their last stream; no new ones are taken from peers. */
void na_hbone_drain(na_worker *worker, const na_workload *workload);
/* Identities may have changed: let what came through tunnels of other ones end. */
void na_hbone_refresh(na_worker *worker);
/* Its connections are gone: end the tunnels. */
void na_hbone_finish(na_worker *worker, const na_workload *workload);
/* Whether no tunnel is left. */
bool na_hbone_idle(const na_worker *worker);

/* ---- hbone_server.c ---- */

/* Accept a tunnel: owns fd. `local` is the address that was connected to. */
void na_hbone_accept(na_worker *worker, na_workload *workload, int fd, const na_address *peer, const na_address *local);
/* The application is there: answer 200. -errno when the stream has gone. */
int na_hbone_open(na_conn *conn);
/* Whether the application is to get a PROXY header first (na_inbound_config.tunnel), and that header. */
bool na_hbone_is_proxied(const na_conn *conn);
size_t na_hbone_proxy_header(const na_conn *conn, uint8_t out[NA_PROXY_HEADER_MAX]);
/* What to answer if the connection is closed before that; 503 by default. */
void na_hbone_refusal(na_conn *conn, uint16_t status);

/* ---- hbone_client.c ---- */

typedef struct na_hbone_dial {
  na_worker *worker;
  na_workload *workload;
  const na_via *via;
  const na_address *remote; /* where the stream shall lead */
  const na_address *client; /* who asks: of the downstream connection; or NULL */
  na_str host;              /* the name that the client used, or empty */
  const char *traceparent;  /* to pass on, or NULL */
  bool http;                /* HTTP/1 will be spoken; else anything */
} na_hbone_dial;

/* Begin to connect `stream` (initialised, closed) as `via` says: by mTLS, or to a neighbour, else through a tunnel, one
 * that is there or another. It goes on as with a socket: EPOLLOUT or EPOLLERR is told, then transport->connected().
 * -ENOMEM. */
int na_hbone_connect(na_stream *stream, const na_hbone_dial *dial);

#endif
