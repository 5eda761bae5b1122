/* SPDX-License-Identifier: Apache-2.0
 *
 * The sending side of HBONE: pooled tunnels, and the streams that are dialled through them.
 *
 *   call    a stream that somebody dials; waits for a tunnel, then for the answer to its CONNECT
 *   target  where tunnels of one kind lead (hbone_target.h); calls wait there, behind the one tunnel that is being made
 *   tunnel  a connection of a target
 */
#include "hbone.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "connect.h"
#include "hbone_headers.h"
#include "hbone_passage.h"
#include "hbone_sides.h"
#include "hbone_target.h"
#include "principals.h"

/* Streams that we open in one tunnel at most; the peer may allow fewer. */
#define MAX_STREAMS 200
/* The same before its SETTINGS told how many the peer takes, if no tunnel to it has told before. */
#define UNTOLD_STREAMS 16

typedef struct na_hbone_tunnel na_hbone_tunnel;

struct na_hbone_tunnel {
  na_h2 h2;
  na_link link; /* target->tunnels */
  na_hbone_target *target;
  na_identity *identity;
  uint32_t principal;
  bool ready;
  bool proven;         /* the peer has answered in it */
  int64_t expires;     /* when a certificate of either side runs out */
  char *why;           /* it ended */
  na_passage *passage; /* of an inner tunnel; else NULL */
};

typedef struct na_hbone_call {
  na_h2_stream stream;
  na_link waiting; /* target->calls */
  na_hbone_target *target;
  uint32_t principal;
  uint16_t status;
  bool retried;
  char *uri;     /* of the peer */
  char *failure; /* for people */
  char *baggage; /* that the peer answered with */
  char authority[NA_MAX_AUTHORITY + 1];
  char forwarded[384];
  char traceparent[NA_TRACEPARENT_TEXT];
} na_hbone_call;

static void assign(na_hbone_target *target);
static const na_h2_role role;

static na_hbone_tunnel *tunnel_of(const na_h2 *h2) {
  return na_container_of(h2, na_hbone_tunnel, h2);
}

static na_hbone_call *call_of(const na_h2_stream *stream) {
  return na_container_of(stream, na_hbone_call, stream);
}

/* ---- calls ---- */

static void fail_call(na_hbone_call *call, int error, const char *why) {
  free(call->failure);
  call->failure = strdup(why);
  call->stream.failure = error;
  na_h2_stream_tell(&call->stream, EPOLLERR);
}

static void fail_waiting(na_hbone_target *target, int error, const char *why) {
  while (!na_list_empty(&target->calls)) {
    na_hbone_call *call = na_container_of(target->calls.next, na_hbone_call, waiting);
    na_link_remove(&call->waiting);
    fail_call(call, error, why);
  }
}

/* Why a call that was given up got no answer: how far it came. */
static const char *waited_for(const na_hbone_call *call) {
  if (!na_link_in_list(&call->waiting))
    return "HBONE: no answer to the CONNECT in time";
  for (const na_link *link = call->target->tunnels.next; link != &call->target->tunnels; link = link->next) {
    const na_hbone_tunnel *tunnel = na_container_of(link, na_hbone_tunnel, link);
    if (!tunnel->ready && !tunnel->h2.io.connecting)
      return "HBONE: TLS handshake timeout";
  }
  return "HBONE: connection timeout";
}

static const char *failure(const na_h2_stream *stream) {
  const na_hbone_call *call = call_of(stream);
  return call->failure ? call->failure : waited_for(call);
}

static void call_free(na_grave *grave) {
  na_hbone_call *call = na_container_of(grave, na_hbone_call, stream.grave);
  free(call->uri);
  free(call->failure);
  free(call->baggage);
  free(call);
}

/* The caller has left, and no tunnel has the stream. */
static void stream_free(na_h2_stream *stream) {
  na_hbone_call *call = call_of(stream);
  if (na_link_in_list(&call->waiting)) {
    na_link_remove(&call->waiting);
    na_hbone_target_release(call->target);
  }
  na_loop_bury(stream->loop, &stream->grave, call_free);
}

/* Append a header, unless there is nothing to say. */
static size_t say(nghttp2_nv *headers, size_t n, const char *name, const char *value) {
  if (value && *value)
    headers[n++] = na_h2_header(name, value, strlen(value));
  return n;
}

static int request(na_hbone_call *call, na_hbone_tunnel *tunnel) {
  const na_hbone_target *target = tunnel->target;
  nghttp2_nv headers[6];
  size_t n = say(headers, 0, ":method", "CONNECT");
  n = say(headers, n, ":authority", call->authority);
  n = say(headers, n, "forwarded", call->forwarded);
  n = say(headers, n, "traceparent", call->traceparent);
  n = say(headers, n, "baggage", na_workload_text(&target->workload->baggage));
  n = say(headers, n, "x-forwarded-network", target->place.network);
  call->principal = tunnel->principal;
  free(call->uri);
  call->uri = strdup(na_tls_peer(&tunnel->h2.io));
  int error = na_h2_stream_request(&tunnel->h2, &call->stream, headers, n);
  if (!error)
    na_worker_count(tunnel->h2.worker, NA_COUNTER_HBONE_STREAMS);
  return error;
}

/* ---- the answer to a call ---- */

static void header(na_h2_stream *stream, na_str name, na_str value) {
  na_hbone_call *call = call_of(stream);
  if (na_str_eq(name, ":status") && value.n == 3)
    call->status = (uint16_t)((value.p[0] - '0') * 100 + (value.p[1] - '0') * 10 + (value.p[2] - '0'));
  else if (na_str_eq(name, "baggage") && !call->baggage && value.n <= NA_HBONE_VALUE_MAX)
    call->baggage = strndup(value.p, value.n);
}

static const char *meaning_of(uint16_t status) {
  switch (status) {
  case 400:
    return "it does not take the request";
  case 401:
  case 403:
    return "its policy does not allow it";
  case 503:
    return "it cannot reach the application";
  default:
    return "unexpected";
  }
}

static void head(na_h2_stream *stream) {
  na_hbone_call *call = call_of(stream);
  tunnel_of(stream->h2)->proven = true;
  if (call->status >= 100 && call->status < 200) { /* RFC 9110 15.2: the answer is still to come */
    stream->head_done = false;
    return;
  }
  if (call->status >= 200 && call->status < 300) {
    stream->open = true;
    na_h2_stream_tell(stream, EPOLLOUT);
    return;
  }
  char why[128];
  bool by_policy = call->status == 401 || call->status == 403;
  snprintf(why, sizeof why, "HBONE: the peer answered %u: %s", call->status, meaning_of(call->status));
  fail_call(call, by_policy ? -EKEYREJECTED : -ECONNREFUSED, why);
}

/* The tunnel has let go of a call that was not answered. One that the peer did not look at may go through another one:
 * it was refused unprocessed (RFC 9113 8.7), or the tunnel had gone stale. */
static void lost(na_h2_stream *stream, na_h2 *h2) {
  na_hbone_call *call = call_of(stream);
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  bool unprocessed = stream->error == NGHTTP2_REFUSED_STREAM || (h2->dead && tunnel->proven);
  if (stream->failure)
    return;
  if (!unprocessed || call->retried) {
    fail_call(call, -ECONNRESET, tunnel->why ? tunnel->why : "HBONE: the peer reset the stream");
    return;
  }
  call->retried = true;
  stream->reset = stream->waiting = stream->rx_end = stream->head_done = false;
  na_list_push_back(&call->target->calls, &call->waiting);
  if (!h2->dead) /* else its end assigns what waits */
    assign(call->target);
}

/* ---- tunnels ---- */

static bool is_fresh(const na_hbone_tunnel *tunnel) {
  const na_worker *worker = tunnel->h2.worker;
  const char *name = na_workload_text(&tunnel->target->workload->identity);
  return tunnel->identity == na_snapshot_identity(worker->snapshot, name) && time(NULL) < tunnel->expires;
}

/* No new streams: those that are open end in their time, pooled ones as soon as they are unused. */
static void retire(na_hbone_tunnel *tunnel) {
  na_h2_drain(&tunnel->h2);
  for (na_link *link = tunnel->h2.streams.next; link != &tunnel->h2.streams; link = link->next)
    na_h2_stream_tell(na_container_of(link, na_h2_stream, link), EPOLLRDHUP);
}

static void ready(na_h2 *h2) {
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  int64_t peer = na_tls_peer_not_after(&h2->io), own = tunnel->identity->not_after;
  tunnel->ready = true;
  tunnel->expires = peer < own ? peer : own;
  tunnel->principal = na_principals_intern(h2->worker->principals, na_tls_peer(&h2->io));
  h2->idle_ms = h2->worker->loop.now_ms;
  if (na_tls_resumed(&h2->io))
    na_worker_count(h2->worker, NA_COUNTER_HBONE_RESUMED);
  assign(tunnel->target);
}

static void changed(na_h2 *h2) {
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  if (h2->nstreams == 0)
    h2->idle_ms = h2->worker->loop.now_ms;
  if (h2->told)
    tunnel->target->most = na_h2_peer_streams(h2);
  if (h2->no_more && !h2->drained) /* GOAWAY */
    retire(tunnel);
  if (!na_list_empty(&tunnel->target->calls))
    assign(tunnel->target);
}

static void tick(na_h2 *h2) {
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  uint64_t idle = h2->worker->loop.now_ms - h2->idle_ms;
  if (!h2->drained && !is_fresh(tunnel))
    retire(tunnel);
  if (h2->nstreams == 0 && idle >= h2->worker->config->hbone_idle_timeout_ms)
    na_h2_finish(h2);
}

static void closing(na_h2 *h2, int error, const char *why) {
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  na_hbone_target *target = tunnel->target;
  struct ssl_session_st *session = tunnel->ready ? na_tls_take_session(&h2->io) : NULL;
  char text[224];
  if (session || !tunnel->proven) /* without: perhaps it was the session that the peer did not like */
    na_hbone_target_session(target, session, tunnel->identity);
  na_count_down(&h2->worker->counters, NA_COUNTER_HBONE_DIALED_ACTIVE);
  snprintf(text, sizeof text, "HBONE: %s", why);
  tunnel->why = strdup(text);
  na_link_remove(&tunnel->link);
  if (tunnel->ready)
    return;
  if (!h2->io.connecting)
    na_worker_count(h2->worker, NA_COUNTER_HBONE_HANDSHAKE_FAIL);
  fail_waiting(target, error ? error : -ECONNABORTED, text);
}

static void tunnel_free(na_grave *grave) {
  na_hbone_tunnel *tunnel = na_container_of(grave, na_hbone_tunnel, h2.grave);
  na_identity_unref(tunnel->identity);
  free(tunnel->why);
  free(tunnel);
}

static void closed(na_h2 *h2) {
  na_hbone_tunnel *tunnel = tunnel_of(h2);
  na_hbone_target *target = tunnel->target;
  na_worker *worker = h2->worker;
  assign(target); /* calls that it did not get to */
  na_hbone_target_release(target);
  if (tunnel->passage)
    na_passage_close(tunnel->passage);
  na_loop_bury(&worker->loop, &h2->grave, tunnel_free);
  na_worker_tunnel_gone(worker);
}

static const na_h2_role role = {
    .header = header,
    .head = head,
    .lost = lost,
    .failure = failure,
    .free = stream_free,
    .ready = ready,
    .tick = tick,
    .changed = changed,
    .closing = closing,
    .closed = closed,
};

/* ---- making tunnels ---- */

static void passage_lost(void *owner, int error, const char *why) {
  na_hbone_tunnel *tunnel = owner;
  char text[192];
  size_t prefix = strncmp(why, "HBONE: ", 7) == 0 ? 7 : 0; /* will be there once more */
  snprintf(text, sizeof text, "gateway: %s", why + prefix);
  na_h2_close(&tunnel->h2, error, text);
}

/* A socket that leads to the target, or through its gateway's tunnel. */
static int open_socket(na_hbone_tunnel *tunnel) {
  na_hbone_target *target = tunnel->target;
  if (!target->place.outer)
    return na_connect(target->worker, target->workload, &target->place.address, NULL);
  na_via via = {.port = target->place.address.port,
                .identities = (char *)target->place.outer,
                .authority = (char *)target->place.authority};
  memcpy(via.address, target->place.address.ip, sizeof via.address);
  const na_hbone_dial dial = {
      .worker = target->worker, .workload = target->workload, .via = &via, .remote = &target->place.address};
  return na_passage_open(&dial, passage_lost, tunnel, &tunnel->passage);
}

static int open_io(na_hbone_tunnel *tunnel) {
  na_hbone_target *target = tunnel->target;
  na_worker *worker = target->worker;
  na_stream *io = &tunnel->h2.io;
  na_stream_init(io, &worker->loop, NULL, NULL);
  int fd = open_socket(tunnel);
  int error = fd < 0 ? fd : na_stream_connect(io, fd, &na_transport_tcp);
  if (error)
    return error;
  const na_tls_args args = {.memory = &worker->tls,
                            .identity = tunnel->identity,
                            .expected = target->place.identities,
                            .session = target->session_identity == tunnel->identity ? target->session : NULL};
  error = na_tls_begin(io, &args);
  if (error)
    na_stream_close(io, true);
  return error;
}

static int open_tunnel(na_hbone_target *target, na_identity *identity) {
  na_worker *worker = target->worker;
  na_hbone_tunnel *tunnel = calloc(1, sizeof *tunnel);
  if (!tunnel)
    return -ENOMEM;
  tunnel->target = target;
  tunnel->identity = identity;
  int error = open_io(tunnel);
  if (error) {
    if (tunnel->passage)
      na_passage_close(tunnel->passage);
    free(tunnel);
    return error;
  }
  na_identity_ref(identity);
  na_list_push_back(&target->tunnels, &tunnel->link);
  na_worker_count(worker, NA_COUNTER_HBONE_DIALED);
  na_worker_count(worker, NA_COUNTER_HBONE_DIALED_ACTIVE);
  na_h2_begin(&tunnel->h2, worker, &role, NA_DEFAULT_CONNECT_TIMEOUT_MS);
  return 0;
}

/* Make another tunnel for the calls that wait, or fail them. */
static void provide(na_hbone_target *target) {
  na_worker *worker = target->worker;
  const char *name = na_workload_text(&target->workload->identity);
  na_identity *identity = na_snapshot_identity(worker->snapshot, name);
  char why[192];
  if (!identity || na_identity_expired(identity, time(NULL))) {
    na_worker_count(worker, NA_COUNTER_HBONE_NO_IDENTITY);
    snprintf(why, sizeof why, "HBONE: %s own certificate%s%s", identity ? "expired" : "no", *name ? " of " : "", name);
    fail_waiting(target, -ENOKEY, why);
  } else if (worker->counters.values[NA_COUNTER_HBONE_DIALED_ACTIVE] >= worker->config->hbone_max_tunnels) {
    na_worker_count(worker, NA_COUNTER_HBONE_OVERFLOW);
    fail_waiting(target, -EUSERS, "HBONE: too many tunnels");
  } else {
    int error = open_tunnel(target, identity);
    if (error)
      fail_waiting(target, error, strerrordesc_np(-error));
  }
}

/* Streams to have in a tunnel at most. One beyond what the peer takes would be refused, and tried again in vain. */
static uint32_t limit_of(const na_hbone_tunnel *tunnel) {
  uint32_t most = tunnel->target->most ? tunnel->target->most : UNTOLD_STREAMS;
  return tunnel->h2.told || most > MAX_STREAMS ? MAX_STREAMS : most;
}

/* A tunnel with room for another stream; *coming tells of one that is being made. */
static na_hbone_tunnel *find_tunnel(na_hbone_target *target, bool *coming) {
  *coming = false;
  for (na_link *link = target->tunnels.next, *next; link != &target->tunnels; link = next) {
    next = link->next;
    na_hbone_tunnel *tunnel = na_container_of(link, na_hbone_tunnel, link);
    if (!tunnel->ready)
      *coming = *coming || !tunnel->h2.no_more;
    else if (!tunnel->h2.drained && !is_fresh(tunnel))
      retire(tunnel);
    else if (na_h2_room(&tunnel->h2, limit_of(tunnel)))
      return tunnel;
    else if (!tunnel->h2.told && !tunnel->h2.no_more)
      *coming = true; /* there will be more room, perhaps */
  }
  return NULL;
}

/* Give calls that wait to tunnels, as far as these have room. */
static void assign(na_hbone_target *target) {
  while (!na_list_empty(&target->calls)) {
    bool coming;
    na_hbone_tunnel *tunnel = find_tunnel(target, &coming);
    if (!tunnel) {
      if (!coming)
        provide(target);
      return;
    }
    na_hbone_call *call = na_container_of(target->calls.next, na_hbone_call, waiting);
    na_link_remove(&call->waiting);
    int error = request(call, tunnel);
    if (error)
      fail_call(call, error, "HBONE: the request cannot be sent");
  }
}

/* ---- dialling ---- */

static na_hbone_call *new_call(const na_hbone_dial *dial) {
  na_worker *worker = dial->worker;
  na_hbone_call *call = calloc(1, sizeof *call);
  if (!call)
    return NULL;
  na_h2_stream_init(&call->stream, &role, &worker->loop);
  na_link_init(&call->waiting);
  if (dial->via->authority)
    snprintf(call->authority, sizeof call->authority, "%s", dial->via->authority);
  else
    na_address_format(dial->remote, call->authority);
  if (dial->client)
    na_forwarded_format(dial->client, dial->host, call->forwarded, sizeof call->forwarded);
  if (dial->traceparent)
    snprintf(call->traceparent, sizeof call->traceparent, "%s", dial->traceparent);
  else
    na_traceparent_new(na_random(worker), na_random(worker), na_random(worker), call->traceparent);
  return call;
}

int na_hbone_client_connect(na_stream *stream, const na_hbone_dial *dial) {
  na_hbone_call *call = new_call(dial);
  na_hbone_target *target = call ? na_hbone_target_for(dial) : NULL;
  if (!target) {
    free(call);
    return -ENOMEM;
  }
  call->target = target;
  call->stream.user = stream;
  call->stream.has_user = true;
  na_stream_attach(stream, &na_transport_h2, &call->stream);
  na_list_push_back(&target->calls, &call->waiting);
  assign(target);
  na_hbone_target_release(target); /* if it has failed already */
  return 0;
}

/* ---- all of them ---- */

static void finish_tunnels(na_hbone_target *target) {
  for (na_link *link = target->tunnels.next; link != &target->tunnels; link = link->next)
    na_h2_finish(&na_container_of(link, na_hbone_tunnel, link)->h2);
}

void na_hbone_client_finish(na_worker *worker, const na_workload *workload) {
  na_hbone_targets_forget(worker, workload);
  uint32_t at = 0;
  for (na_hbone_target *target; (target = na_map_next(&worker->hbone->targets, &at));)
    if (!workload || target->workload == workload)
      finish_tunnels(target);
}

bool na_hbone_client_peer(const na_h2_stream *stream, na_peer *out) {
  if (stream->role != &role)
    return false;
  const na_hbone_call *call = call_of(stream);
  *out = (na_peer){.principal = call->principal,
                   .uri = call->uri ? call->uri : "",
                   .baggage = call->baggage ? call->baggage : "",
                   .traceparent = call->traceparent,
                   .forwarded = ""};
  return true;
}

bool na_hbone_client_is_current(const na_h2_stream *stream) {
  return is_fresh(tunnel_of(stream->h2));
}
