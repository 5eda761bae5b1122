/* SPDX-License-Identifier: Apache-2.0 */
#include "conn_guard.h"

#include <assert.h>
#include <stdlib.h>

#include "ahead.h"
#include "hbone.h"
#include "http_guard.h"
#include "http_request.h"
#include "neighbours.h"
#include "tcp_proxy.h"

/* ---- who ---- */

na_str na_conn_principal(const na_conn *conn) {
  na_peer peer;
  return na_hbone_peer(&conn->stream, &peer) && peer.uri ? na_str_of(peer.uri) : (na_str){0};
}

void na_conn_subject(na_conn *conn, na_subject *out) {
  *out =
      (na_subject){.worker = conn->worker, .conn = conn, .facts = {.peer = &conn->peer, .destination = &conn->local}};
  na_facts_set_principal(&out->facts, na_conn_principal(conn));
}

/* ---- refusing ---- */

static bool is_unanswered_tunnel(const na_conn *conn) {
  return conn->kind == NA_LISTENER_HBONE && conn->phase == NA_CONN_CONNECTING;
}

static void deny(na_conn *conn, const na_refusal *refusal) {
  if (is_unanswered_tunnel(conn)) {
    na_worker_count(conn->worker, NA_COUNTER_HBONE_DENIED);
    na_hbone_refusal(conn, 401);
  }
  na_neighbours_refuse(&conn->stream);
  na_tcp_deny(conn, refusal->flags, refusal->detail);
}

/* ---- every connection ---- */

static enum na_verdict ask_every(na_conn *conn, const na_inbound *inbound, bool again, na_refusal *refusal) {
  const na_stage *every = na_inbound_every(inbound), *at;
  na_subject subject;
  if (!every)
    return NA_VERDICT_ALLOW;
  na_conn_subject(conn, &subject);
  subject.again = again;
  return na_stages_ask(every, &subject, refusal, &at);
}

bool na_conn_guard(na_conn *conn, const na_inbound *inbound) {
  na_refusal refusal;
  if (conn->every_asked || ask_every(conn, inbound, false, &refusal) == NA_VERDICT_ALLOW) {
    conn->every_asked = true;
    return true;
  }
  deny(conn, &refusal);
  return false;
}

/* ---- the port's guards, for TCP ---- */

static void go_on(na_conn *conn) {
  conn->guards_asked = true;
  if (is_unanswered_tunnel(conn))
    na_ahead_start(conn);
  else
    na_tcp_start(conn);
}

static void forget(na_conn *conn) {
  na_authz_free(conn->authz);
  conn->authz = NULL;
}

static void ask(na_conn *conn, na_guards *guards, const na_stage *stage);

static void resumed(na_asker *asker, enum na_verdict verdict, const na_refusal *refusal) {
  na_authz *authz = na_container_of(asker, na_authz, asker);
  na_conn *conn = authz->conn;
  const na_stage *stage = authz->stage;
  assert(!conn->dead && stage);
  authz->stage = NULL;
  na_count_down(&conn->worker->counters, NA_COUNTER_GUARDS_WAITING);
  if (verdict == NA_VERDICT_ALLOW)
    ask(conn, authz->guards, stage->next);
  else
    deny(conn, refusal);
}

/* Room for what a stage keeps; false for want of memory. */
static bool prepare(na_conn *conn, na_guards *guards) {
  if (conn->authz || !guards->keeps)
    return true;
  conn->authz = calloc(1, sizeof *conn->authz);
  if (!conn->authz)
    return false;
  conn->authz->asker.resume = resumed;
  conn->authz->conn = conn;
  conn->authz->guards = na_guards_ref(guards);
  return true;
}

static void wait(na_conn *conn, const na_stage *stage) {
  conn->authz->stage = stage;
  na_worker_count(conn->worker, NA_COUNTER_GUARDS_WAITING);
  na_conn_wait(conn);
}

static void ask(na_conn *conn, na_guards *guards, const na_stage *stage) {
  const na_stage *at;
  na_subject subject;
  na_refusal refusal = {.flags = NA_FLAG_OM, .detail = "overload"};
  enum na_verdict verdict = NA_VERDICT_DENY;
  if (prepare(conn, guards)) {
    na_conn_subject(conn, &subject);
    subject.authz = conn->authz;
    subject.asker = conn->authz ? &conn->authz->asker : NULL;
    subject.facts.metadata = conn->authz ? &conn->authz->metadata : NULL;
    verdict = na_stages_ask(stage, &subject, &refusal, &at);
  }
  if (verdict == NA_VERDICT_WAIT) {
    wait(conn, at);
  } else if (verdict == NA_VERDICT_DENY) {
    deny(conn, &refusal);
  } else {
    forget(conn);
    go_on(conn);
  }
}

void na_conn_start_tcp(na_conn *conn) {
  const na_snapshot *snapshot = conn->worker->snapshot;
  const na_inbound *inbound =
      na_conn_inbound(conn) && !conn->guards_asked ? na_snapshot_inbound(snapshot, conn->workload->id) : NULL;
  na_guards *guards;
  const na_stage *stage = inbound ? na_inbound_stages(inbound, conn->local.port, NA_GUARDED_CONNECTION, &guards) : NULL;
  if (stage)
    ask(conn, guards, stage);
  else
    na_tcp_start(conn);
}

void na_conn_guard_tunnelled(na_conn *conn, const na_inbound *inbound) {
  na_guards *guards;
  uint32_t tag;
  uint16_t port = conn->local.port;
  enum na_protocol protocol = na_inbound_protocol(inbound, port, &tag);
  conn->tag = tag;
  if (!na_conn_guard(conn, inbound))
    return;
  /* What may turn out to be HTTP is asked for when it shows. */
  const na_stage *stage =
      protocol == NA_PROTOCOL_TCP ? na_inbound_stages(inbound, port, NA_GUARDED_CONNECTION, &guards) : NULL;
  if (stage)
    ask(conn, guards, stage);
  else
    na_ahead_start(conn);
}

bool na_conn_passes_http2(const na_conn *conn) {
  na_guards *guards;
  const na_inbound *inbound =
      na_conn_inbound(conn) ? na_snapshot_inbound(conn->worker->snapshot, conn->workload->id) : NULL;
  return !inbound || !na_inbound_stages(inbound, conn->local.port, NA_GUARDED_REQUEST, &guards);
}

/* ---- once more ---- */

/* What was asked of a TCP connection when it began. */
static enum na_verdict ask_port_again(na_conn *conn, const na_inbound *inbound, na_refusal *refusal) {
  na_guards *guards;
  const na_stage *stage = na_inbound_stages(inbound, conn->local.port, NA_GUARDED_CONNECTION, &guards), *at;
  na_subject subject;
  if (!stage)
    return NA_VERDICT_ALLOW;
  na_conn_subject(conn, &subject);
  subject.again = true;
  return na_stages_ask(stage, &subject, refusal, &at);
}

static bool may_stay(na_conn *conn, const na_inbound *inbound, na_refusal *refusal) {
  bool port_was_asked = conn->tcp || conn->guards_asked;
  if (ask_every(conn, inbound, true, refusal) != NA_VERDICT_ALLOW)
    return false;
  if (conn->protocol == NA_PROTOCOL_HTTP2_FORWARDED && !na_conn_passes_http2(conn)) {
    *refusal = (na_refusal){.detail = "http2_cannot_be_judged"};
    return false;
  }
  return !port_was_asked || ask_port_again(conn, inbound, refusal) == NA_VERDICT_ALLOW;
}

static void recheck(na_conn *conn, const na_inbound *inbound) {
  na_refusal refusal;
  conn->slashes = na_inbound_slashes(inbound, conn->local.port);
  if (conn->request) {
    na_http_guard_again(conn->request, inbound);
    return;
  }
  bool concerns = conn->known && conn->phase != NA_CONN_CLOSING;
  if (!concerns || may_stay(conn, inbound, &refusal))
    return;
  na_worker_count(conn->worker, NA_COUNTER_GUARDS_RESET);
  deny(conn, &refusal);
}

void na_conns_recheck(na_worker *worker, uint64_t since) {
  for (na_link *link = worker->conns.next, *next; link != &worker->conns; link = next) {
    next = link->next;
    na_conn *conn = na_container_of(link, na_conn, link);
    const na_inbound *inbound =
        na_conn_inbound(conn) ? na_snapshot_inbound(worker->snapshot, conn->workload->id) : NULL;
    if (inbound && inbound->generation > since)
      recheck(conn, inbound);
  }
}
