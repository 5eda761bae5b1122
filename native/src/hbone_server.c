/* SPDX-License-Identifier: Apache-2.0
 *
 * The receiving side of HBONE: tunnels that peers make to our workloads, and the requests in them.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ahead.h"
#include "conn_guard.h"
#include "hbone.h"
#include "hbone_authority.h"
#include "hbone_headers.h"
#include "hbone_sides.h"
#include "principals.h"
#include "report.h"
#include "tcp_proxy.h"

/* A tunnel. */
typedef struct na_hbone_server {
  na_h2 h2;
  na_link link; /* hbone->accepted */
  na_workload *workload;
  na_identity *identity;
  na_address peer;
  na_address local;
  uint32_t principal;
  bool authenticated;
  bool retired;    /* another certificate is in force: what is on its way is taken still, and nothing behind it */
  int64_t expires; /* when a certificate of either side runs out */
} na_hbone_server;

/* A request in it. */
typedef struct na_hbone_inbound {
  na_h2_stream stream;
  uint32_t principal;
  uint16_t status; /* of the answer if it comes to nothing */
  bool is_connect;
  bool proxied; /* the application is told of it by a PROXY header */
  na_address requested;
  char *uri; /* of the peer */
  char *authority;
  char *baggage;
  char *traceparent;
  char *forwarded;
} na_hbone_inbound;

static na_hbone_server *server_of(na_h2 *h2) {
  return na_container_of(h2, na_hbone_server, h2);
}

static na_hbone_inbound *inbound_of(const na_h2_stream *stream) {
  return na_container_of(stream, na_hbone_inbound, stream);
}

/* ---- whom it was made with ---- */

static na_identity *identity_now(const na_worker *worker, const na_workload *workload) {
  return na_snapshot_identity(worker->snapshot, na_workload_text(&workload->identity));
}

/* Whether the identities that the peers met with are good still. */
static bool is_valid(const na_hbone_server *server) {
  return time(NULL) < server->expires && identity_now(server->h2.worker, server->workload);
}

/* Whether it takes new streams: another certificate shall be met with another tunnel. */
static bool is_fresh(const na_hbone_server *server) {
  return is_valid(server) && identity_now(server->h2.worker, server->workload) == server->identity;
}

/* No new streams, and one request at most on those that are open: it may be on its way. The peer, who is told by
 * GOAWAY, ends those that it does not use; were they ended here, its request could meet the end and be lost. */
static void retire(na_hbone_server *server) {
  na_h2 *h2 = &server->h2;
  bool valid = is_valid(server);
  server->retired = !h2->drained;
  na_h2_drain(h2);
  for (na_link *link = h2->streams.next, *next; link != &h2->streams; link = next) {
    next = link->next;
    const na_h2_stream *stream = na_container_of(link, na_h2_stream, link);
    na_conn *conn = stream->user ? stream->user->owner : NULL;
    if (!conn || (conn->phase != NA_CONN_IDLE && conn->phase != NA_CONN_ACTIVE))
      continue;
    if (valid)
      conn->draining = true;
    else
      na_conn_drain(conn); /* it could not be served anyway */
  }
}

/* ---- answers ---- */

static int respond(na_h2_stream *stream, uint16_t status, const char *baggage, bool end) {
  char code[8];
  int n = snprintf(code, sizeof code, "%u", status);
  const nghttp2_nv headers[] = {na_h2_header(":status", code, (size_t)n),
                                na_h2_header("baggage", baggage, strlen(baggage))};
  return na_h2_stream_respond(stream, headers, *baggage ? 2 : 1, end);
}

static void unanswered(na_h2_stream *stream) {
  const na_hbone_inbound *inbound = inbound_of(stream);
  if (respond(stream, inbound->status, "", true) < 0)
    na_h2_stream_reset(stream, NGHTTP2_INTERNAL_ERROR);
}

int na_hbone_open(na_conn *conn) {
  na_h2_stream *stream = conn->stream.state;
  if (!stream->h2)
    return -ECONNRESET;
  return respond(stream, 200, na_workload_text(&conn->workload->baggage), false);
}

void na_hbone_refusal(na_conn *conn, uint16_t status) {
  if (conn->kind == NA_LISTENER_HBONE)
    inbound_of(conn->stream.state)->status = status;
}

bool na_hbone_is_proxied(const na_conn *conn) {
  return conn->kind == NA_LISTENER_HBONE && inbound_of(conn->stream.state)->proxied;
}

size_t na_hbone_proxy_header(const na_conn *conn, uint8_t out[NA_PROXY_HEADER_MAX]) {
  const na_hbone_inbound *inbound = inbound_of(conn->stream.state);
  return na_proxy_header(&conn->peer, &inbound->requested, inbound->uri, out);
}

/* ---- requests ---- */

/* Whether the peer may open another stream: not once the workload leaves, nor by certificates that are good no more. */
static bool takes_streams(const na_hbone_server *server) {
  const na_h2 *h2 = &server->h2;
  bool leaving = h2->worker->stopping || atomic_load_explicit(&server->workload->removed, memory_order_relaxed);
  return !h2->no_more && !leaving && (!h2->drained || server->retired) && is_valid(server);
}

static na_h2_stream *opened(na_h2 *h2) {
  na_hbone_server *server = server_of(h2);
  if (!takes_streams(server)) { /* the peer comes back, and both show what they have now */
    na_h2_drain(h2);
    return NULL;
  }
  na_hbone_inbound *inbound = calloc(1, sizeof *inbound);
  if (!inbound)
    return NULL;
  na_h2_stream_init(&inbound->stream, h2->role, &h2->worker->loop);
  inbound->status = 503;
  inbound->principal = server->principal;
  inbound->uri = strdup(na_tls_peer(&h2->io));
  na_worker_count(h2->worker, NA_COUNTER_HBONE_STREAMS);
  return &inbound->stream;
}

/* Keep a header's value: the first one of the name, if it is of a decent length. */
static void keep(char **field, na_str value) {
  if (!*field && value.n <= NA_HBONE_VALUE_MAX)
    *field = strndup(value.p, value.n);
}

static void header(na_h2_stream *stream, na_str name, na_str value) {
  na_hbone_inbound *inbound = inbound_of(stream);
  if (na_str_eq(name, ":method"))
    inbound->is_connect = na_str_eq(value, "CONNECT");
  else if (na_str_eq(name, ":authority"))
    keep(&inbound->authority, value);
  else if (na_str_eq(name, "baggage"))
    keep(&inbound->baggage, value);
  else if (na_str_eq(name, "traceparent") && na_traceparent_valid(value))
    keep(&inbound->traceparent, value);
  else if (na_str_eq(name, "forwarded"))
    keep(&inbound->forwarded, value);
}

/* Ports of the agent itself: to go there would be to go round in circles. */
static bool is_own_port(uint16_t port) {
  return port == 15001 || port == 15006 || port == 15008;
}

/* What is asked for, as an address of this workload's or (of a proxy) of anybody's; false if that is not here. */
static bool find_requested(const na_hbone_server *server, const na_hbone_inbound *inbound, const na_inbound *in_force,
                           na_address *out) {
  na_hbone_authority authority;
  if (!inbound->is_connect || !inbound->authority ||
      !na_hbone_parse_authority(na_str_of(inbound->authority), &authority))
    return false;
  *out = authority.address;
  if (!authority.host.n)
    return true;
  memcpy(out->ip, server->local.ip, sizeof out->ip);
  out->port = in_force ? na_inbound_target(in_force, authority.host, authority.address.port) : 0;
  return out->port != 0;
}

/* Where the request leads to; false if that is not here. */
static bool find_destination(const na_hbone_server *server, na_hbone_inbound *inbound, na_address *out) {
  const na_worker *worker = server->h2.worker;
  const na_inbound *in_force = na_snapshot_inbound(worker->snapshot, server->workload->id);
  if (!find_requested(server, inbound, in_force, out))
    return false;
  inbound->requested = *out;
  inbound->proxied = in_force && in_force->config.tunnel == NA_APPLICATION_TUNNEL_PROXY;
  if (inbound->proxied) {
    memcpy(out->ip, server->local.ip, sizeof out->ip);
    out->port = in_force->config.tunnel_port ? (uint16_t)in_force->config.tunnel_port : out->port;
  }
  return !is_own_port(out->port) && na_workload_serves(server->workload, out->port) &&
         memcmp(out->ip, server->local.ip, sizeof out->ip) == 0;
}

static void answer(na_h2_stream *stream, uint16_t status) {
  if (respond(stream, status, "", true) < 0)
    na_h2_stream_reset(stream, NGHTTP2_INTERNAL_ERROR);
}

/* Whether policy is about requests, which go unseen behind a PROXY header. */
static bool asks_requests(const na_inbound *in_force, uint16_t port) {
  na_guards *guards;
  return na_inbound_stages(in_force, port, NA_GUARDED_REQUEST, &guards) != NULL;
}

/* The request is one for this workload: make a connection of it. */
static void admit(na_hbone_server *server, na_hbone_inbound *inbound, const na_address *destination) {
  na_worker *worker = server->h2.worker;
  na_conn *conn = na_conn_tunnelled(worker, server->workload, &inbound->stream, &server->peer, destination);
  if (!conn) {
    answer(&inbound->stream, 503);
    return;
  }
  conn->draining = server->retired; /* one request will do */
  const na_inbound *in_force = na_snapshot_inbound_port(worker->snapshot, conn->workload->id, destination->port);
  if (!in_force || (inbound->proxied && asks_requests(in_force, destination->port))) {
    na_worker_count(worker, NA_COUNTER_DOWNSTREAM_CX_NOT_IN_FORCE);
    na_tcp_refuse(conn, NA_FLAG_NC);
  } else if (in_force->guards) {
    na_conn_guard_tunnelled(conn, in_force);
  } else {
    na_ahead_start(conn);
  }
}

/* It asks for something else than this workload, or not by CONNECT. */
static void refuse_request(na_hbone_server *server, na_hbone_inbound *inbound) {
  char why[192];
  snprintf(why, sizeof why, "HBONE: request for '%.128s' is not for this workload",
           inbound->authority ? inbound->authority : "");
  na_worker_count(server->h2.worker, NA_COUNTER_HBONE_BAD_REQUEST);
  na_report_tunnel_refused(server->h2.worker, server->workload, &server->peer, &server->local, "hbone_bad_request",
                           why);
  answer(&inbound->stream, 400);
}

static void head(na_h2_stream *stream) {
  na_hbone_inbound *inbound = inbound_of(stream);
  na_hbone_server *server = server_of(stream->h2);
  na_worker *worker = stream->h2->worker;
  na_address destination;
  if (!find_destination(server, inbound, &destination)) {
    refuse_request(server, inbound);
  } else if (!inbound->uri ||
             worker->counters.values[NA_COUNTER_DOWNSTREAM_CX_ACTIVE] >= worker->config->max_connections) {
    na_worker_count(worker, NA_COUNTER_DOWNSTREAM_CX_OVERFLOW);
    answer(stream, 503);
  } else {
    admit(server, inbound, &destination);
  }
}

static void inbound_free(na_grave *grave) {
  na_hbone_inbound *inbound = na_container_of(grave, na_hbone_inbound, stream.grave);
  free(inbound->uri);
  free(inbound->authority);
  free(inbound->baggage);
  free(inbound->traceparent);
  free(inbound->forwarded);
  free(inbound);
}

static void stream_free(na_h2_stream *stream) {
  na_loop_bury(stream->loop, &stream->grave, inbound_free);
}

/* ---- tunnels ---- */

static void ready(na_h2 *h2) {
  na_hbone_server *server = server_of(h2);
  na_worker *worker = h2->worker;
  int64_t peer = na_tls_peer_not_after(&h2->io), own = server->identity->not_after;
  server->authenticated = true;
  server->expires = peer < own ? peer : own;
  server->principal = na_principals_intern(worker->principals, na_tls_peer(&h2->io));
  na_count_down(&worker->counters, NA_COUNTER_HBONE_HANDSHAKES);
}

static void changed(na_h2 *h2) {
  if (h2->nstreams == 0)
    h2->idle_ms = h2->worker->loop.now_ms;
}

/* Clients close what they do not need; one that does not, and stays away twice as long as ours would, is let go. */
static void tick(na_h2 *h2) {
  na_hbone_server *server = server_of(h2);
  if (server->authenticated && !h2->drained && !is_fresh(server))
    retire(server);
  uint64_t idle = h2->worker->loop.now_ms - h2->idle_ms;
  if (h2->nstreams == 0 && idle >= 2 * (uint64_t)h2->worker->config->hbone_idle_timeout_ms)
    na_h2_drain(h2);
}

static void closing(na_h2 *h2, int error, const char *why) {
  na_hbone_server *server = server_of(h2);
  na_worker *worker = h2->worker;
  if (server->authenticated) {
    if (error == -EPROTO || error == -EDQUOT)
      na_worker_count(worker, NA_COUNTER_HBONE_ABUSE);
    return;
  }
  na_count_down(&worker->counters, NA_COUNTER_HBONE_HANDSHAKES);
  if (error == 0)
    return;
  na_worker_count(worker, NA_COUNTER_HBONE_HANDSHAKE_FAIL);
  na_report_tunnel_refused(worker, server->workload, &server->peer, &server->local, "downstream_transport_failure",
                           why);
}

static void server_free(na_grave *grave) {
  na_hbone_server *server = na_container_of(grave, na_hbone_server, h2.grave);
  na_identity_unref(server->identity);
  free(server);
}

static void closed(na_h2 *h2) {
  na_hbone_server *server = server_of(h2);
  na_worker *worker = h2->worker;
  na_link_remove(&server->link);
  na_count_down(&worker->counters, NA_COUNTER_HBONE_ACCEPTED_ACTIVE);
  na_workload_unref(server->workload);
  na_loop_bury(&worker->loop, &h2->grave, server_free);
  na_worker_tunnel_gone(worker);
}

static const na_h2_role role = {
    .server = true,
    .opened = opened,
    .header = header,
    .head = head,
    .unanswered = unanswered,
    .free = stream_free,
    .ready = ready,
    .tick = tick,
    .changed = changed,
    .closing = closing,
    .closed = closed,
};

/* ---- accepting ---- */

static void refuse(na_worker *worker, int fd, enum na_counter_id why) {
  struct linger linger = {.l_onoff = 1, .l_linger = 0};
  na_worker_count(worker, why);
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  close(fd);
}

/* The certificate to accept with; NULL: none that is valid. */
static na_identity *identity_of(const na_worker *worker, const na_workload *workload) {
  na_identity *identity = identity_now(worker, workload);
  return identity && !na_identity_expired(identity, time(NULL)) ? identity : NULL;
}

static int begin(na_hbone_server *server, na_worker *worker, int fd) {
  const na_tls_args args = {.memory = &worker->tls, .identity = server->identity};
  na_stream_init(&server->h2.io, &worker->loop, NULL, NULL);
  int error = na_stream_open(&server->h2.io, fd, &na_transport_tcp);
  if (error)
    return error;
  error = na_tls_begin(&server->h2.io, &args);
  if (error)
    na_stream_close(&server->h2.io, true);
  return error;
}

void na_hbone_accept(na_worker *worker, na_workload *workload, int fd, const na_address *peer,
                     const na_address *local) {
  const na_config *config = worker->config;
  na_identity *identity = identity_of(worker, workload);
  if (!identity) {
    refuse(worker, fd, NA_COUNTER_HBONE_NO_IDENTITY);
    na_report_tunnel_refused(worker, workload, peer, local, "downstream_transport_failure",
                             "the workload has no valid certificate");
    return;
  }
  if (worker->counters.values[NA_COUNTER_HBONE_ACCEPTED_ACTIVE] >= config->hbone_max_tunnels) {
    refuse(worker, fd, NA_COUNTER_HBONE_OVERFLOW);
    return;
  }
  if (worker->counters.values[NA_COUNTER_HBONE_HANDSHAKES] >= config->hbone_max_handshakes) {
    refuse(worker, fd, NA_COUNTER_HBONE_HANDSHAKE_OVERFLOW);
    return;
  }
  na_hbone_server *server = calloc(1, sizeof *server);
  if (!server) {
    close(fd);
    return;
  }
  server->identity = na_identity_ref(identity);
  server->peer = *peer;
  server->local = *local;
  if (begin(server, worker, fd) < 0) {
    na_identity_unref(server->identity);
    free(server);
    return;
  }
  server->workload = na_workload_ref(workload);
  na_list_push_back(&worker->hbone->accepted, &server->link);
  na_worker_count(worker, NA_COUNTER_HBONE_ACCEPTED);
  na_worker_count(worker, NA_COUNTER_HBONE_ACCEPTED_ACTIVE);
  na_worker_count(worker, NA_COUNTER_HBONE_HANDSHAKES);
  na_h2_begin(&server->h2, worker, &role, config->hbone_handshake_timeout_ms);
}

/* ---- all of them ---- */

typedef void visit_fn(na_h2 *h2);

static void visit(na_worker *worker, const na_workload *workload, visit_fn *fn) {
  na_link *accepted = &worker->hbone->accepted;
  for (na_link *link = accepted->next; link != accepted; link = link->next) {
    na_hbone_server *server = na_container_of(link, na_hbone_server, link);
    if (!workload || server->workload == workload)
      fn(&server->h2);
  }
}

void na_hbone_server_drain(na_worker *worker, const na_workload *workload) {
  visit(worker, workload, na_h2_drain);
}

void na_hbone_server_finish(na_worker *worker, const na_workload *workload) {
  visit(worker, workload, na_h2_finish);
}

void na_hbone_server_refresh(na_worker *worker) {
  na_link *accepted = &worker->hbone->accepted;
  for (na_link *link = accepted->next; link != accepted; link = link->next) {
    na_hbone_server *server = na_container_of(link, na_hbone_server, link);
    if (server->authenticated && !server->h2.dead && !is_fresh(server))
      retire(server);
  }
}

bool na_hbone_server_is_current(const na_h2_stream *stream) {
  return is_valid(server_of(stream->h2));
}

bool na_hbone_server_peer(const na_h2_stream *stream, na_peer *out) {
  if (stream->role != &role)
    return false;
  const na_hbone_inbound *inbound = inbound_of(stream);
  *out = (na_peer){.principal = inbound->principal,
                   .uri = inbound->uri,
                   .baggage = inbound->baggage ? inbound->baggage : "",
                   .traceparent = inbound->traceparent ? inbound->traceparent : "",
                   .forwarded = inbound->forwarded ? inbound->forwarded : ""};
  return true;
}
