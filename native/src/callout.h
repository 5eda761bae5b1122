/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage that asks somebody else: Envoy's ext_authz filters (v3), by gRPC and by HTTP. Built by callout_build.c;
 * callout.c asks and waits; what an answer does to a request is callout_answer.c (gRPC) and callout_http.c.
 */
#ifndef NODEAGENT_CALLOUT_H
#define NODEAGENT_CALLOUT_H

#include "authz.h"
#include "list.h"
#include "slots.h"

/* Bounds; above them -E2BIG. */
#define NA_MAX_CALLOUT_ITEMS 64         /* matches or headers of one kind */
#define NA_MAX_CALLOUT_BODY  (1u << 20) /* body_bytes */

typedef struct na_header_names {
  na_matcher *items;
  uint32_t n;
} na_header_names;

/* Headers with memory of their own. */
typedef struct na_own_pairs {
  na_header *items;
  uint32_t n;
} na_own_pairs;

struct na_callout {
  na_stage stage;
  bool grpc;
  bool fail_open;
  bool body_partial;
  bool body_raw;
  bool mark_open;
  bool conditional; /* `when` is to be looked at */
  uint16_t status_on_error;
  uint32_t timeout_ms;
  uint32_t body_bytes;
  char *cluster;
  char *authority;
  char *path_prefix;
  na_slots *slots; /* where the cluster's slot is held; NULL: not yet */
  uint32_t slot;
  na_expression when;
  na_header_names names[7]; /* by enum na_callout_names */
  na_own_pairs pairs[2];    /* by enum na_callout_headers */
};

static inline const na_callout *na_callout_of(const na_stage *stage) {
  return na_container_of((na_stage *)stage, na_callout, stage);
}

/* callout_build.c */
int na_callout_bind(na_guards *guards, na_stage *stage, na_slots *cluster_names);
void na_callout_free(na_stage *stage);

static inline bool na_header_names_has(const na_header_names *names, na_str name) {
  for (uint32_t i = 0; i < names->n; i++)
    if (na_matcher_text(&names->items[i], name))
      return true;
  return false;
}

/* Metadata of answers. */
#define NA_CALLOUT_FILTER "envoy.filters.http.ext_authz"
/* Tells whether the body is sent along as a whole; clients do not write it. */
#define NA_PARTIAL_BODY_HEADER "x-envoy-auth-partial-body"

/* ---- callout_answer.c, callout_http.c: a request's body, its question, and the answer ---- */

/* What is sent along of a request's body. */
typedef struct na_sent_body {
  bool wanted;
  bool partial;
  na_str bytes;
} na_sent_body;

/* The answer as a verdict. ALLOW: the request, with its head in `head`, is changed as it says. -errno: the answer
 * cannot be put in force. */
int na_callout_answer_grpc(na_authz *authz, na_h1_head *head, na_str message, enum na_verdict *verdict,
                           na_refusal *refusal, na_header headers[NA_H1_MAX_HEADERS]);
int na_callout_answer_http(const na_callout *callout, na_authz *authz, na_h1_head *head, const na_h1_head *answer,
                           na_str body, enum na_verdict *verdict, na_refusal *refusal,
                           na_header headers[NA_H1_MAX_HEADERS]);
/* The question by HTTP; to be freed. NULL for want of memory. */
char *na_callout_question_http(const na_callout *callout, const na_request *request, const na_sent_body *body,
                               size_t *n);

#endif
