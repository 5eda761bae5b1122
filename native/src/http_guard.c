/* SPDX-License-Identifier: Apache-2.0 */
#include "http_guard.h"

#include <assert.h>
#include <stdlib.h>

#include "conn_guard.h"

/* What concerns every connection to the workload. It was asked when this one began: since then the answer may have
 * become another one. */
static bool ask_every(na_http_request *request, const na_inbound *inbound) {
  const na_stage *every = na_inbound_every(inbound), *at;
  na_subject subject;
  na_refusal refusal;
  if (!every)
    return true;
  na_conn_subject(request->conn, &subject);
  subject.again = true;
  if (na_stages_ask(every, &subject, &refusal, &at) == NA_VERDICT_ALLOW)
    return true;
  na_worker_count(request->worker, NA_COUNTER_GUARDS_RESET);
  na_request_abort(request, refusal.flags, refusal.detail);
  return false;
}

/* ---- waiting ---- */

static bool ask(na_http_request *request, na_guards *guards, const na_stage *stage);

static void resumed(na_asker *asker, enum na_verdict verdict, const na_refusal *refusal) {
  na_authz *authz = na_container_of(asker, na_authz, asker);
  na_http_request *request = authz->request;
  const na_stage *stage = authz->stage;
  assert(stage && request->state == NA_REQUEST_PARKED);
  authz->stage = NULL;
  request->state = NA_REQUEST_STARTED;
  na_count_down(&request->worker->counters, NA_COUNTER_GUARDS_WAITING);
  if (verdict == NA_VERDICT_DENY)
    na_request_deny(request, refusal);
  else if (ask(request, authz->guards, stage->next))
    na_request_guarded(request);
}

/* Room for what a stage keeps; false for want of memory. */
static bool prepare(na_http_request *request, na_guards *guards) {
  if (request->authz || !guards->keeps)
    return true;
  request->authz = calloc(1, sizeof *request->authz);
  if (!request->authz)
    return false;
  request->authz->asker.resume = resumed;
  request->authz->request = request;
  request->authz->guards = na_guards_ref(guards);
  return true;
}

/* ---- asking ---- */

static enum na_verdict ask_stages(na_http_request *request, const na_stage *stage, na_refusal *refusal,
                                  const na_stage **at) {
  na_authz *authz = request->authz;
  na_subject subject;
  na_conn_subject(request->conn, &subject);
  na_h1_head *head = na_request_own_head(request);
  subject.request = request;
  subject.head = head;
  subject.facts.request = &head->request;
  subject.authz = authz;
  subject.asker = authz ? &authz->asker : NULL;
  subject.facts.metadata = authz ? &authz->metadata : NULL;
  return na_stages_ask(stage, &subject, refusal, at);
}

/* Ask the stages from this one on. */
static bool ask(na_http_request *request, na_guards *guards, const na_stage *stage) {
  const na_stage *at;
  na_refusal refusal;
  if (!prepare(request, guards)) {
    na_request_reply(request, 503, NA_FLAG_OM, "overload", "out of memory");
    return false;
  }
  enum na_verdict verdict = ask_stages(request, stage, &refusal, &at);
  if (verdict == NA_VERDICT_DENY) {
    na_request_deny(request, &refusal);
  } else if (verdict == NA_VERDICT_WAIT) {
    request->authz->stage = at;
    request->state = NA_REQUEST_PARKED;
    na_worker_count(request->worker, NA_COUNTER_GUARDS_WAITING);
  }
  return verdict == NA_VERDICT_ALLOW;
}

bool na_http_guard(na_http_request *request, const na_inbound *inbound) {
  na_guards *guards;
  if (!ask_every(request, inbound))
    return false;
  const na_stage *stage = na_inbound_stages(inbound, request->conn->local.port, NA_GUARDED_REQUEST, &guards);
  return !stage || ask(request, guards, stage);
}

void na_http_guard_again(na_http_request *request, const na_inbound *inbound) {
  na_guards *guards;
  na_subject subject;
  na_refusal refusal;
  if (!ask_every(request, inbound) || !request->tunnel)
    return;
  const na_stage *stage = na_inbound_stages(inbound, request->conn->local.port, NA_GUARDED_REQUEST, &guards), *at;
  if (!stage)
    return;
  na_conn_subject(request->conn, &subject);
  subject.again = true;
  subject.request = request;
  subject.head = na_request_own_head(request);
  subject.facts.request = &subject.head->request;
  subject.authz = request->authz;
  subject.facts.metadata = request->authz ? &request->authz->metadata : NULL;
  if (na_stages_ask(stage, &subject, &refusal, &at) == NA_VERDICT_ALLOW)
    return;
  na_worker_count(request->worker, NA_COUNTER_GUARDS_RESET);
  na_request_abort(request, refusal.flags, refusal.detail);
}
