/* SPDX-License-Identifier: Apache-2.0 */
#include "mtls.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "connect.h"

/* ---- what is remembered of servers ---- */

/* A server: whom we are there, where it is, and who it must be. */
typedef struct server_memo {
  na_tls_memo memo; /* first: they are one object */
  uint32_t key_n;
  char key[];
} server_memo;

const na_map_ops na_mtls_memo_ops = {na_tls_memo_ref, na_tls_memo_unref};

static server_memo *new_memo(const na_hbone_dial *dial) {
  const char *identities = dial->via->identities;
  size_t n = strlen(identities), head = sizeof dial->workload->id + sizeof *dial->remote;
  server_memo *memo = calloc(1, sizeof *memo + head + n);
  if (!memo)
    return NULL;
  memo->memo.refs = 1;
  memo->key_n = (uint32_t)(head + n);
  memcpy(memo->key, &dial->workload->id, sizeof dial->workload->id);
  memcpy(memo->key + sizeof dial->workload->id, dial->remote, sizeof *dial->remote);
  memcpy(memo->key + head, identities, n);
  return memo;
}

/* The memo of where the dial leads, with a reference; NULL: no memory, nothing is remembered. */
static na_tls_memo *memo_for(const na_hbone_dial *dial) {
  na_map *sessions = &dial->worker->hbone->sessions;
  server_memo *memo = new_memo(dial);
  if (!memo)
    return NULL;
  server_memo *known = na_map_find(sessions, memo->key, memo->key_n);
  if (known) {
    na_tls_memo_unref(memo);
    na_tls_memo_ref(known);
    return &known->memo;
  }
  if (sessions->count >= NA_MTLS_MAX_SESSIONS) {
    na_map_clear(sessions);
    na_map_init(sessions, &na_mtls_memo_ops);
  }
  na_tls_memo_ref(memo);
  if (na_map_put(sessions, memo->key, memo->key_n, memo) < 0) { /* which took that reference */
    na_tls_memo_unref(memo);
    return NULL;
  }
  return &memo->memo;
}

/* ---- dialling ---- */

na_identity *na_mtls_identity(const na_worker *worker, const na_workload *workload) {
  na_identity *identity = na_snapshot_identity(worker->snapshot, na_workload_text(&workload->identity));
  return identity && !na_identity_expired(identity, time(NULL)) ? identity : NULL;
}

int na_mtls_connect(na_stream *stream, const na_hbone_dial *dial) {
  na_worker *worker = dial->worker;
  na_identity *identity = na_mtls_identity(worker, dial->workload);
  if (!identity) {
    na_worker_count(worker, NA_COUNTER_HBONE_NO_IDENTITY);
    return -ENOKEY;
  }
  int fd = na_connect(worker, dial->workload, dial->remote, NULL);
  int error = fd < 0 ? fd : na_stream_connect(stream, fd, &na_transport_tcp);
  if (error)
    return error;
  na_tls_memo *memo = memo_for(dial);
  const na_tls_args args = {.memory = &worker->tls,
                            .identity = identity,
                            .expected = dial->via->identities,
                            .use = dial->http ? NA_TLS_MESH_HTTP : NA_TLS_MESH_TCP,
                            .principals = worker->principals,
                            .memo = memo,
                            .budget = &worker->handshakes_left};
  error = na_tls_begin(stream, &args);
  na_tls_memo_unref(memo);
  if (error)
    na_stream_close(stream, true);
  else
    na_worker_count(worker, NA_COUNTER_MTLS_DIALED);
  return error;
}

/* ---- who it is ---- */

bool na_mtls_peer(const na_stream *stream, na_peer *out) {
  if (stream->transport != &na_transport_tls)
    return false;
  *out = (na_peer){.principal = na_tls_principal(stream),
                   .uri = na_tls_peer(stream),
                   .baggage = "",
                   .traceparent = "",
                   .forwarded = ""};
  return true;
}

/* A server may go on with the certificate that it began with, as long as it has one at all; a client takes the new one,
 * which its server then sees. */
static bool is_in_force(const na_worker *worker, const na_identity *own, bool server) {
  const na_identity *now = na_snapshot_identity(worker->snapshot, own->name);
  return server ? now != NULL : now == own;
}

bool na_mtls_is_current(const na_stream *stream) {
  if (stream->transport != &na_transport_tls)
    return true;
  const na_worker *worker = na_container_of(stream->loop, na_worker, loop);
  const na_identity *own = na_tls_identity(stream);
  int64_t now = time(NULL);
  return !na_identity_expired(own, now) && now < na_tls_peer_not_after(stream) &&
         is_in_force(worker, own, na_tls_is_server(stream));
}
