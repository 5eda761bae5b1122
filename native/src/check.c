/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The prefix of IPv4-mapped addresses. */
#define MAPPED_BITS 96

/* ---- evaluating --------------------------------------------------------------------------------------------- */

void na_facts_set_principal(na_facts *facts, na_str principal) {
  facts->principal = principal;
  facts->id = (na_spiffe){0};
  if (principal.n && !na_spiffe_parse(principal.p, principal.n, &facts->id))
    facts->principal = (na_str){0}; /* nobody is vouched for by what is no SPIFFE ID */
}

/* An empty text is one that is not there. */
static bool text_holds(const na_matcher *matcher, na_str text) {
  return na_matcher_named(matcher, text.n ? &text : NULL);
}

/* `namespace/name`, which the path of Istio's IDs has as `/ns/<namespace>/sa/<name>`. */
static bool service_account_holds(const na_matcher *matcher, const na_spiffe *id) {
  char text[NA_SPIFFE_MAX];
  na_out out = {.p = text, .size = sizeof text};
  if (!id->service_account.n)
    return text_holds(matcher, id->service_account);
  na_out_str(&out, id->namespace);
  na_out_bytes(&out, "/", 1);
  na_out_str(&out, id->service_account);
  assert(!out.over); /* its parts are of a text of at most NA_SPIFFE_MAX */
  return text_holds(matcher, (na_str){text, (uint32_t)out.n});
}

static bool matches(const void *matcher, na_str text) {
  return na_matcher_named(matcher, &text);
}

static bool metadata_holds(const na_matcher *matcher, const na_metadata *metadata, enum na_metadata_kind kind) {
  return metadata && na_metadata_any(metadata, matcher->name, kind, matches, matcher);
}

static bool check_text(const na_check *check, const na_facts *facts) {
  const na_request *request = facts->request;
  switch ((enum na_attribute)check->what) {
  case NA_ATTRIBUTE_PRINCIPAL:
    return text_holds(&check->text, facts->principal);
  case NA_ATTRIBUTE_NAMESPACE:
    return text_holds(&check->text, facts->id.namespace);
  case NA_ATTRIBUTE_SERVICE_ACCOUNT:
    return service_account_holds(&check->text, &facts->id);
  case NA_ATTRIBUTE_TRUST_DOMAIN:
    return text_holds(&check->text, facts->id.trust_domain);
  case NA_ATTRIBUTE_HEADER:
    return request && na_matcher_header(&check->text, request);
  case NA_ATTRIBUTE_PATH:
    return request && text_holds(&check->text, request->path);
  case NA_ATTRIBUTE_SNI:
    return text_holds(&check->text, facts->sni);
  case NA_ATTRIBUTE_METADATA:
    return metadata_holds(&check->text, facts->metadata, NA_METADATA_TEXT);
  case NA_ATTRIBUTE_LITERAL:
    return metadata_holds(&check->text, facts->metadata, NA_METADATA_LITERAL);
  }
  return false;
}

/* The last member of a list; empty if the list ends in a comma. */
static na_str last_member(na_str list) {
  const char *end = list.p + list.n, *begin = end;
  while (begin > list.p && begin[-1] != ',')
    begin--;
  while (begin < end && (*begin == ' ' || *begin == '\t'))
    begin++;
  return (na_str){begin, (uint32_t)(end - begin)};
}

/* Who sent the request before it was forwarded to the peer, by the peer's word. False: nobody is named. */
static bool forwarded_for(const na_request *request, uint8_t ip[16]) {
  const na_header *last = NULL;
  for (uint32_t i = 0; request && i < request->nheaders; i++)
    if (request->headers[i].id == NA_HDR_X_FORWARDED_FOR && !request->headers[i].hop)
      last = &request->headers[i];
  na_str member = last ? last_member(last->value) : (na_str){0};
  return member.n && na_ip_parse(member.p, member.n, ip);
}

static bool check_address(const na_check *check, const na_facts *facts) {
  uint8_t client[16];
  const uint8_t *ip = (check->what == NA_PLACE_DESTINATION ? facts->destination : facts->peer)->ip;
  if (check->what == NA_PLACE_CLIENT && forwarded_for(facts->request, client))
    ip = client;
  uint32_t bytes = check->n / 8, bits = check->n % 8;
  if (check->n < MAPPED_BITS && na_ip_is_v4(ip)) /* a range of IPv6 holds no address of IPv4, as wide as it may be */
    return false;
  if (memcmp(ip, check->address, bytes) != 0)
    return false;
  return !bits || (ip[bytes] ^ check->address[bytes]) >> (8 - bits) == 0;
}

bool na_check_holds(const na_check *check, const na_facts *facts) {
  const na_check *operand = check + 1;
  switch ((enum na_check_kind)check->kind) {
  case NA_CHECK_ALWAYS:
    return true;
  case NA_CHECK_ALL:
    for (uint32_t i = 0; i < check->n; i++, operand += operand->size)
      if (!na_check_holds(operand, facts))
        return false;
    return true;
  case NA_CHECK_ANY:
    for (uint32_t i = 0; i < check->n; i++, operand += operand->size)
      if (na_check_holds(operand, facts))
        return true;
    return false;
  case NA_CHECK_NOT:
    return !na_check_holds(operand, facts);
  case NA_CHECK_TEXT:
    return check_text(check, facts);
  case NA_CHECK_ADDRESS:
    return check_address(check, facts);
  case NA_CHECK_PORT:
    return facts->destination->port >= check->port.low && facts->destination->port <= check->port.high;
  }
  return false;
}

/* ---- building ----------------------------------------------------------------------------------------------- */

static uint32_t operands_of(const na_check *check) {
  switch ((enum na_check_kind)check->kind) {
  case NA_CHECK_ALL:
  case NA_CHECK_ANY:
    return check->n;
  case NA_CHECK_NOT:
    return 1;
  default:
    return 0;
  }
}

/* Size of the expression that begins at `at`; -errno. */
static int measure(na_expression *expression, uint32_t at, uint32_t depth) {
  if (at >= expression->n)
    return -EINVAL;
  if (depth > NA_MAX_CHECK_DEPTH)
    return -E2BIG;
  na_check *check = &expression->checks[at];
  check->size = 1;
  for (uint32_t i = operands_of(check); i; i--) {
    int size = measure(expression, at + check->size, depth + 1);
    if (size < 0)
      return size;
    check->size += (uint32_t)size;
  }
  return (int)check->size;
}

int na_expression_seal(na_expression *expression) {
  int size = measure(expression, 0, 1);
  if (size < 0)
    return size;
  return (uint32_t)size == expression->n ? 0 : -EINVAL;
}

void na_expression_clear(na_expression *expression) {
  for (uint32_t i = 0; i < expression->n; i++)
    if (expression->checks[i].kind == NA_CHECK_TEXT)
      na_matcher_clear(&expression->checks[i].text);
  free(expression->checks);
  *expression = (na_expression){0};
}
