/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage of rules: Envoy's RBAC filters for connections and requests.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "conn.h"
#include "http_request.h"
#include "principals.h"

/* The number of a policy for which there was no room among the names. */
#define NA_UNNAMED_POLICY UINT32_MAX

/* Envoy: rbac_filter.cc */
#define RBAC_METADATA "envoy.filters.http.rbac"
#define BODY          "RBAC: access denied"
#define NONE_MATCHED  "rbac_access_denied_matched_policy[none]"
#define DETAIL_FORMAT "rbac_access_denied_matched_policy[]"

static const na_rules *rules_of(const na_stage *stage) {
  return na_container_of((na_stage *)stage, na_rules, stage);
}

/* ---- asking ---- */

static const na_policy *first_match(const na_rules *rules, const na_facts *facts) {
  for (uint32_t i = 0; i < rules->n; i++)
    if (na_check_holds(rules->policies[i].check.checks, facts))
      return &rules->policies[i];
  return NULL;
}

/* Count a decision, for all and by its policy; NULL: that none matched. */
static void count(const na_subject *subject, const na_policy *matched, enum na_outcome outcome) {
  static const enum na_counter_id counters[] = {NA_COUNTER_RBAC_ALLOWED, NA_COUNTER_RBAC_DENIED,
                                                NA_COUNTER_RBAC_SHADOW_ALLOWED, NA_COUNTER_RBAC_SHADOW_DENIED,
                                                NA_COUNTER_RBAC_LOGGED};
  na_worker *worker = subject->worker;
  if (!worker || subject->again)
    return;
  na_worker_count(worker, counters[outcome]);
  const na_stat_key key = {.kind = NA_STAT_POLICY,
                           .workload = subject->conn->workload->id,
                           .cluster_tag = matched ? matched->id : 0,
                           .flags = outcome,
                           .inbound = 1,
                           .protocol = subject->request ? NA_PROTOCOL_HTTP1 : NA_PROTOCOL_OPAQUE};
  bool decided = matched || outcome == NA_OUTCOME_DENIED || outcome == NA_OUTCOME_SHADOW_DENIED;
  na_stat_row *row = decided ? na_stats_row(&worker->stats, &key) : NULL;
  if (row)
    row->count++;
}

/* Have the access record say who wanted to know. */
static void mark(const na_subject *subject, const na_policy *matched) {
  if (!subject->conn || subject->again)
    return;
  uint32_t *audit = subject->request ? &subject->request->audit : &subject->conn->audit;
  if (!*audit)
    *audit = matched->id;
}

/* Keep what a shadow found for later stages. */
static int keep_outcome(const na_rules *rules, na_authz *authz, const na_policy *matched, bool allowed) {
  na_metadata *metadata = &authz->metadata;
  int rc = 0;
  if (matched)
    rc = na_metadata_set_text(metadata, RBAC_METADATA, rules->effective, na_str_of(matched->name));
  if (!rc)
    rc = na_metadata_set_text(metadata, RBAC_METADATA, rules->result, na_str_of(allowed ? "allowed" : "denied"));
  return rc;
}

static na_refusal refusal_of(const char *detail) {
  return (na_refusal){.status = 403, .detail = detail, .body = na_str_of(BODY)};
}

static enum na_verdict ask(const na_stage *stage, na_subject *subject, na_refusal *refusal) {
  const na_rules *rules = rules_of(stage);
  const na_policy *matched = first_match(rules, &subject->facts);
  if (rules->action == NA_RULE_LOG) {
    if (matched) {
      count(subject, matched, NA_OUTCOME_LOGGED);
      mark(subject, matched);
    }
    return NA_VERDICT_ALLOW;
  }
  bool allowed = (rules->action == NA_RULE_ALLOW) == (matched != NULL);
  if (rules->shadow) {
    count(subject, matched, allowed ? NA_OUTCOME_SHADOW_ALLOWED : NA_OUTCOME_SHADOW_DENIED);
    if (!subject->authz || keep_outcome(rules, subject->authz, matched, allowed) == 0)
      return NA_VERDICT_ALLOW;
    *refusal = refusal_of("rbac_access_denied_no_memory"); /* later stages would go by what they do not see */
    return NA_VERDICT_DENY;
  }
  count(subject, matched, allowed ? NA_OUTCOME_ALLOWED : NA_OUTCOME_DENIED);
  if (allowed)
    return NA_VERDICT_ALLOW;
  *refusal = refusal_of(matched ? matched->detail : NONE_MATCHED);
  return NA_VERDICT_DENY;
}

/* ---- explaining ---- */

static const char *action_name(uint8_t action) {
  static const char *const names[] = {"allow", "deny", "log"};
  return names[action];
}

static void explain(const na_stage *stage, const na_subject *subject, na_out *out) {
  const na_rules *rules = rules_of(stage);
  na_out_cstr(out, "stage\t");
  na_out_cstr(out, rules->shadow ? "shadow " : "");
  na_out_cstr(out, action_name(rules->action));
  na_out_cstr(out, "\n");
  for (uint32_t i = 0; i < rules->n; i++) {
    na_out_cstr(out, "policy\t");
    na_out_cstr(out, rules->policies[i].name);
    na_out_cstr(out,
                na_check_holds(rules->policies[i].check.checks, &subject->facts) ? "\tmatched\n" : "\tnot matched\n");
  }
}

/* ---- building ---- */

/* Envoy puts `_` for white space, so that a detail is one word in an access log. */
static char *detail_of(const char *name) {
  size_t n = strlen(name) + sizeof DETAIL_FORMAT;
  char *detail = malloc(n);
  if (!detail)
    return NULL;
  na_out out = {.p = detail, .size = n};
  na_out_bytes(&out, DETAIL_FORMAT, sizeof DETAIL_FORMAT - 2);
  for (const char *p = name; *p; p++)
    na_out_bytes(&out, strchr(" \t\r\n\v\f", *p) ? "_" : p, 1);
  na_out_bytes(&out, "]", 2);
  return detail;
}

static void enlist(na_stage *stage, na_names *names) {
  na_rules *rules = na_container_of(stage, na_rules, stage);
  for (uint32_t i = 0; i < rules->n; i++) {
    uint32_t id = na_principals_intern(names, rules->policies[i].name);
    rules->policies[i].id = id ? id : NA_UNNAMED_POLICY;
  }
}

static int seal(na_guards *guards, na_stage *stage) {
  na_rules *rules = na_container_of(stage, na_rules, stage);
  for (uint32_t i = 0; i < rules->n; i++) {
    na_policy *policy = &rules->policies[i];
    policy->detail = detail_of(policy->name);
    if (!policy->detail)
      return na_guards_fail(guards, -ENOMEM, "out of memory");
  }
  return 0;
}

static void rules_free(na_stage *stage) {
  na_rules *rules = na_container_of(stage, na_rules, stage);
  for (uint32_t i = 0; i < rules->n; i++) {
    free(rules->policies[i].name);
    free(rules->policies[i].detail);
    na_expression_clear(&rules->policies[i].check);
  }
  free(rules->policies);
  free(rules->effective);
  free(rules->result);
  free(rules);
}

const na_stage_kind na_stage_rules = {
    .name = "rules", .ask = ask, .explain = explain, .seal = seal, .enlist = enlist, .free = rules_free};
