/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers of authorization services, as they come, and what they do to a request: whatever they say, it stays one that
 * can be sent.
 */
#include <stdlib.h>
#include <string.h>

#include "callout.h"
#include "check_message.h"
#include "http1_parse.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char request[] =
    "GET /a/b?c=d&e=f&c=g HTTP/1.1\r\nhost: back\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 5\r\n\r\n";

static void check_header(const na_header *header) {
  CHECK(header->name.n && na_h1_span(header->name.p, header->name.n, NA_C_TOKEN) == header->name.n);
  CHECK(na_h1_span(header->value.p, header->value.n, NA_C_VALUE) == header->value.n);
}

static void check_head(const na_h1_head *head) {
  const na_request *r = &head->request;
  uint32_t framing = 0;
  CHECK(head->nheaders <= NA_H1_MAX_HEADERS && r->nheaders == head->nheaders);
  for (uint32_t i = 0; i < head->nheaders; i++) {
    check_header(&head->headers[i]);
    framing += na_header_is_protected(head->headers[i].name);
  }
  CHECK(framing == 1); /* Content-Length, as it was */
  CHECK(head->index[NA_HDR_HOST] >= 0 && na_h1_valid_authority(r->authority, false));
  CHECK(r->path_query.n && r->path_query.p[0] == '/');
  CHECK(na_h1_span(r->path_query.p, r->path_query.n, NA_C_TARGET) == r->path_query.n);
  CHECK(r->path.n + r->query.n <= r->path_query.n);
}

static na_h1_head *parse(na_h1_head *head) {
  const na_h1_limits limits = {60000, 100, 8000};
  na_h1_error error;
  uint32_t scanned = 0;
  CHECK(na_h1_parse_request(request, sizeof request - 1, &scanned, &limits, head, &error) == sizeof request - 1);
  return head;
}

static void check_answer(na_str message) {
  static na_h1_head head, again;
  na_authz authz = {.request = NULL};
  na_refusal refusal = {0};
  na_header headers[NA_H1_MAX_HEADERS];
  enum na_verdict verdict = NA_VERDICT_WAIT;
  int rc = na_callout_answer_grpc(&authz, parse(&head), message, &verdict, &refusal, headers);
  check_head(&head);
  if (!rc)
    CHECK(verdict == NA_VERDICT_ALLOW || (refusal.status >= 200 && refusal.status < 600));
  for (uint32_t i = 0; !rc && i < refusal.nheaders; i++)
    check_header(&refusal.headers[i]);
  /* Made again, the edits come to the same. */
  na_head_edits_apply(&authz.edits, parse(&again));
  CHECK(again.nheaders == head.nheaders && again.request.path_query.n == head.request.path_query.n);
  for (uint32_t i = 0; i < head.nheaders; i++)
    CHECK(head.headers[i].value.n == again.headers[i].value.n &&
          memcmp(head.headers[i].value.p, again.headers[i].value.p, head.headers[i].value.n) == 0);
  na_authz_clear(&authz);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  char *copy = malloc(n ? n : 1);
  if (n)
    memcpy(copy, data, n);
  check_answer((na_str){copy, (uint32_t)n});
  (void)na_utf8_valid((na_str){copy, (uint32_t)n});
  free(copy);
  return 0;
}
