/* SPDX-License-Identifier: Apache-2.0
 *
 * What a CheckResponse does, as Envoy's ext_authz.cc has it: edits of the request, headers for its answer, metadata.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "callout.h"
#include "check_message.h"

/* Where edits go. */
typedef struct edited {
  na_authz *authz;
  na_h1_head *head;
} edited;

/* Headers that nobody may change are left as they are; an edit that makes no sense fails. */
static int edit(const edited *to, enum na_edit_op op, na_str name, na_str value) {
  bool pseudo = name.n && name.p[0] == ':' && !na_str_eq(name, ":path") && !na_str_eq(name, ":authority");
  if (pseudo || na_header_is_protected(name))
    return 0;
  return na_head_edit(&to->authz->edits, to->head, op, name, value);
}

static int apply_header(const edited *to, const na_check_header *header) {
  bool present = na_h1_find(&to->head->request, header->name) != NULL;
  switch ((enum na_check_append)header->how) {
  case NA_CHECK_SET:
    return edit(to, NA_EDIT_SET, header->name, header->value);
  case NA_CHECK_APPEND: /* as Envoy: to what is there, else to nothing */
    return present ? edit(to, NA_EDIT_APPEND, header->name, header->value) : 0;
  case NA_CHECK_ADD_IF_ABSENT:
    return present ? 0 : edit(to, NA_EDIT_ADD, header->name, header->value);
  case NA_CHECK_SET_IF_PRESENT:
    return present ? edit(to, NA_EDIT_SET, header->name, header->value) : 0;
  }
  return 0;
}

/* Pseudo-headers and Host make a request what it is: they stay. */
static int remove_header(const edited *to, na_str name) {
  if (!name.n || name.p[0] == ':' || na_str_ieq(name, "host"))
    return 0;
  return edit(to, NA_EDIT_REMOVE, name, (na_str){"", 0});
}

static int keep_for_answer(na_authz *authz, const na_check_header *header) {
  bool append = header->how == NA_CHECK_APPEND || header->how == NA_CHECK_ADD_IF_ABSENT;
  return na_authz_answer_header(authz, append ? NA_HEADER_ADD : NA_HEADER_SET, header->name, header->value);
}

/* ---- query parameters ---- */

static int without_parameter(const edited *to, na_str name) {
  return na_head_remove_parameter(&to->authz->edits, to->head, name);
}

static int with_parameter(const edited *to, na_str name, na_str value) {
  int rc = without_parameter(to, name);
  if (rc)
    return rc;
  na_str target = to->head->request.path_query;
  size_t size = (size_t)target.n + name.n + value.n + 2;
  char *text = malloc(size);
  if (!text)
    return -ENOMEM;
  na_out out = {.p = text, .size = size};
  na_out_str(&out, target);
  na_out_cstr(&out, memchr(target.p, '?', target.n) ? "&" : "?");
  na_out_str(&out, name);
  na_out_cstr(&out, "=");
  na_out_str(&out, value);
  rc = edit(to, NA_EDIT_SET, na_str_of(":path"), (na_str){text, (uint32_t)out.n});
  free(text);
  return rc;
}

/* ---- verdicts ---- */

static int apply_allowed(const edited *to, const na_check_response *answer) {
  int rc = 0;
  for (uint32_t i = 0; i < answer->headers.n && !rc; i++)
    rc = apply_header(to, &answer->headers.items[i]);
  for (uint32_t i = 0; i < answer->nremoved && !rc; i++)
    rc = remove_header(to, answer->removed[i]);
  for (uint32_t i = 0; i < answer->response.n && !rc; i++)
    rc = keep_for_answer(to->authz, &answer->response.items[i]);
  for (uint32_t i = 0; i < answer->nqueries && !rc; i++)
    rc = with_parameter(to, answer->queries[i].name, answer->queries[i].value);
  for (uint32_t i = 0; i < answer->nremoved_queries && !rc; i++)
    rc = without_parameter(to, answer->removed_queries[i]);
  return rc;
}

static int keep_metadata(na_authz *authz, json_t *metadata) {
  const char *name;
  json_t *value;
  json_object_foreach(metadata, name, value) if (na_metadata_set(&authz->metadata, NA_CALLOUT_FILTER, name,
                                                                 json_incref(value))) return -ENOMEM;
  return 0;
}

static void fill_refusal(const na_check_response *answer, na_refusal *refusal, na_header headers[NA_H1_MAX_HEADERS]) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < answer->headers.n && n < NA_H1_MAX_HEADERS; i++) {
    const na_check_header *header = &answer->headers.items[i];
    if (na_header_may_be_answered(header->name, header->value))
      headers[n++] = (na_header){.name = header->name, .value = header->value};
  }
  *refusal = (na_refusal){.status = answer->status,
                          .flags = NA_FLAG_UAEX,
                          .detail = "ext_authz_denied",
                          .body = answer->body,
                          .headers = headers,
                          .nheaders = n};
}

int na_callout_answer_grpc(na_authz *authz, na_h1_head *head, na_str message, enum na_verdict *verdict,
                           na_refusal *refusal, na_header headers[NA_H1_MAX_HEADERS]) {
  na_check_response answer;
  int rc = na_check_response_read(message, &answer);
  if (rc)
    return rc;
  const edited to = {authz, head};
  *verdict = answer.allowed ? NA_VERDICT_ALLOW : NA_VERDICT_DENY;
  if (answer.metadata)
    rc = keep_metadata(authz, answer.metadata);
  if (!rc && head && answer.allowed) /* a connection has no headers */
    rc = apply_allowed(&to, &answer);
  if (!answer.allowed)
    fill_refusal(&answer, refusal, headers);
  na_check_response_clear(&answer);
  return rc;
}
