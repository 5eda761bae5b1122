/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking by HTTP: Envoy's ext_authz_http_impl.cc. The question is the request's own head, as far as it may be told; the
 * status of the answer is the verdict.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "callout.h"
#include "http1_parse.h"

/* ---- the question ---- */

static bool is_extra(const na_callout *callout, na_str name) {
  const na_own_pairs *extra = &callout->pairs[NA_CALLOUT_EXTRA];
  for (uint32_t i = 0; i < extra->n; i++)
    if (na_str_ieq2(extra->items[i].name, name))
      return true;
  return false;
}

static bool is_told(const na_callout *callout, const na_header *header) {
  if (header->hop || header->id == NA_HDR_HOST || na_header_is_protected(header->name) ||
      is_extra(callout, header->name) || na_str_ieq(header->name, NA_PARTIAL_BODY_HEADER) ||
      na_header_names_has(&callout->names[NA_CALLOUT_HIDE], header->name))
    return false;
  return na_str_ieq(header->name, "authorization") ||
         na_header_names_has(&callout->names[NA_CALLOUT_SEND], header->name);
}

static size_t question_size(const na_callout *callout, const na_request *request, const na_sent_body *body) {
  size_t size = 256 + strlen(callout->path_prefix) + request->method.n + request->path_query.n + request->authority.n +
                strlen(callout->authority) + body->bytes.n;
  for (uint32_t i = 0; i < request->nheaders; i++)
    size += (size_t)request->headers[i].name.n + request->headers[i].value.n + 4;
  for (uint32_t i = 0; i < callout->pairs[NA_CALLOUT_EXTRA].n; i++) {
    const na_header *header = &callout->pairs[NA_CALLOUT_EXTRA].items[i];
    size += (size_t)header->name.n + header->value.n + 4;
  }
  return size;
}

static void write_headers(const na_callout *callout, const na_request *request, const na_sent_body *body, na_out *out) {
  na_out_header(out, na_str_of("host"), request->authority.n ? request->authority : na_str_of(callout->authority));
  na_out_cstr(out, "content-length: ");
  na_out_u64(out, body->bytes.n);
  na_out_cstr(out, "\r\n");
  if (body->wanted)
    na_out_header(out, na_str_of(NA_PARTIAL_BODY_HEADER), na_str_of(body->partial ? "true" : "false"));
  for (uint32_t i = 0; i < request->nheaders; i++)
    if (is_told(callout, &request->headers[i]))
      na_out_header(out, request->headers[i].name, request->headers[i].value);
  for (uint32_t i = 0; i < callout->pairs[NA_CALLOUT_EXTRA].n; i++) {
    const na_header *header = &callout->pairs[NA_CALLOUT_EXTRA].items[i];
    na_out_header(out, header->name, header->value);
  }
}

char *na_callout_question_http(const na_callout *callout, const na_request *request, const na_sent_body *body,
                               size_t *n) {
  na_out out = {.size = question_size(callout, request, body)};
  out.p = malloc(out.size);
  if (!out.p)
    return NULL;
  na_out_str(&out, request->method);
  na_out_cstr(&out, " ");
  na_out_cstr(&out, callout->path_prefix);
  na_out_str(&out, request->path_query);
  na_out_cstr(&out, " HTTP/1.1\r\n");
  write_headers(callout, request, body, &out);
  na_out_cstr(&out, "\r\n");
  na_out_str(&out, body->bytes);
  *n = out.n;
  if (!out.over)
    return out.p;
  free(out.p);
  return NULL;
}

/* ---- the answer ---- */

static bool is_before(const na_h1_head *answer, uint32_t at) {
  for (uint32_t i = 0; i < at; i++)
    if (na_str_ieq2(answer->headers[i].name, answer->headers[at].name))
      return true;
  return false;
}

/* What one header of an allowing answer does. `again`: there was one of its name before it. */
static int apply_header(const na_callout *callout, na_authz *authz, na_h1_head *head, const na_header *header,
                        bool again) {
  const na_header_names *names = callout->names;
  int rc = 0;
  if (na_header_names_has(&names[NA_CALLOUT_KEEP], header->name))
    rc = na_head_edit(&authz->edits, head, again ? NA_EDIT_ADD : NA_EDIT_SET, header->name, header->value);
  if (!rc && na_header_names_has(&names[NA_CALLOUT_KEEP_APPEND], header->name) &&
      na_h1_find(&head->request, header->name))
    rc = na_head_edit(&authz->edits, head, NA_EDIT_APPEND, header->name, header->value);
  if (!rc && na_header_names_has(&names[NA_CALLOUT_ANSWER_ALLOWED], header->name))
    rc = na_authz_answer_header(authz, again ? NA_HEADER_ADD : NA_HEADER_SET, header->name, header->value);
  if (!rc && na_header_names_has(&names[NA_CALLOUT_TO_METADATA], header->name)) {
    char name[256];
    na_out out = {.p = name, .size = sizeof name - 1};
    for (uint32_t i = 0; i < header->name.n; i++)
      na_out_bytes(&out, &(char){na_lower(header->name.p[i])}, 1);
    name[out.n] = '\0';
    rc = out.over ? -E2BIG : na_metadata_set_text(&authz->metadata, NA_CALLOUT_FILTER, name, header->value);
  }
  return rc;
}

/* Take headers over to the request, and to its answer. */
static int apply_allowed(const na_callout *callout, na_authz *authz, na_h1_head *head, const na_h1_head *answer) {
  int rc = 0;
  for (uint32_t i = 0; i < answer->nheaders && !rc; i++) {
    const na_header *header = &answer->headers[i];
    if (!header->hop && !na_header_is_protected(header->name))
      rc = apply_header(callout, authz, head, header, is_before(answer, i));
  }
  return rc;
}

/* Whether a header of a refusal goes to the client. Date and Server are our own. */
static bool is_answered(const na_callout *callout, const na_header *header) {
  const na_header_names *names = &callout->names[NA_CALLOUT_ANSWER];
  if (header->hop || header->id == NA_HDR_DATE || header->id == NA_HDR_SERVER ||
      !na_header_may_be_answered(header->name, header->value))
    return false;
  return !names->n || na_header_names_has(names, header->name) || na_str_ieq(header->name, "www-authenticate") ||
         na_str_ieq(header->name, "location");
}

int na_callout_answer_http(const na_callout *callout, na_authz *authz, na_h1_head *head, const na_h1_head *answer,
                           na_str body, enum na_verdict *verdict, na_refusal *refusal,
                           na_header headers[NA_H1_MAX_HEADERS]) {
  if (answer->status >= 500)
    return -EPROTO;
  *verdict = answer->status == 200 ? NA_VERDICT_ALLOW : NA_VERDICT_DENY;
  if (*verdict == NA_VERDICT_ALLOW)
    return apply_allowed(callout, authz, head, answer);
  uint32_t n = 0;
  for (uint32_t i = 0; i < answer->nheaders; i++)
    if (is_answered(callout, &answer->headers[i]))
      headers[n++] = answer->headers[i];
  *refusal = (na_refusal){.status = answer->status,
                          .flags = NA_FLAG_UAEX,
                          .detail = "ext_authz_denied",
                          .body = body,
                          .headers = headers,
                          .nheaders = n};
  return 0;
}
