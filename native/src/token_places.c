/* SPDX-License-Identifier: Apache-2.0
 *
 * Where tokens are in requests: Envoy's Extractor, but that of a parameter or cookie that is there several times each
 * one counts. All tokens of a request must be good: the application may read another one than we do.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "query.h"
#include "tokens.h"

static void add(na_found_tokens *found, const na_token_place *place, na_str text) {
  if (found->n == NA_MAX_TOKENS)
    found->overflow = true;
  else
    found->items[found->n++] = (na_found_token){place, text};
}

bool na_token_place_eq(const na_token_place *a, const na_token_place *b) {
  return a->kind == b->kind && strcmp(a->name, b->name) == 0 && strcmp(a->prefix, b->prefix) == 0;
}

/* ---- headers ---- */

static bool may_begin_token(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

/* What follows the prefix, wherever that is in the value; false when it is not. */
static bool after_prefix(na_str value, const char *prefix, na_str *out) {
  size_t n = strlen(prefix);
  const char *at = n ? memmem(value.p, value.n, prefix, n) : value.p;
  if (!at)
    return false;
  at += n;
  const char *end = value.p + value.n;
  while (n && at < end && !may_begin_token(*at))
    at++;
  *out = (na_str){at, (uint32_t)(end - at)};
  return true;
}

static void find_in_headers(na_found_tokens *found, const na_token_place *place, const na_request *request) {
  for (uint32_t i = 0; i < request->nheaders; i++) {
    const na_header *header = &request->headers[i];
    na_str text;
    if (!header->hop && na_str_ieq(header->name, place->name) && after_prefix(header->value, place->prefix, &text))
      add(found, place, text);
  }
}

/* ---- query parameters ---- */

static int decode_value(na_found_tokens *found, na_str *value) {
  if (!value->n || !memchr(value->p, '%', value->n) || found->ndecoded == NA_MAX_TOKENS)
    return 0;
  char *decoded = malloc(value->n);
  if (!decoded)
    return -ENOMEM;
  found->decoded[found->ndecoded++] = decoded;
  *value = (na_str){decoded, na_percent_decode(*value, decoded)};
  return 0;
}

static int find_in_query(na_found_tokens *found, const na_token_place *place, const na_request *request) {
  na_str rest = request->query, item, name, value;
  while (na_pair_next(&rest, '&', &item, &name, &value)) {
    if (!na_parameter_is(name, na_str_of(place->name)))
      continue;
    int rc = decode_value(found, &value);
    if (rc)
      return rc;
    add(found, place, value);
  }
  return 0;
}

/* ---- cookies ---- */

static na_str trimmed(na_str text) {
  while (text.n && (text.p[0] == ' ' || text.p[0] == '\t'))
    text.p++, text.n--;
  while (text.n && (text.p[text.n - 1] == ' ' || text.p[text.n - 1] == '\t'))
    text.n--;
  if (text.n >= 2 && text.p[0] == '"' && text.p[text.n - 1] == '"') /* RFC 6265 4.1.1 */
    text = (na_str){text.p + 1, text.n - 2};
  return text;
}

static void find_in_cookies(na_found_tokens *found, const na_token_place *place, const na_request *request) {
  for (uint32_t i = 0; i < request->nheaders; i++) {
    const na_header *header = &request->headers[i];
    if (header->hop || !na_str_ieq(header->name, "cookie"))
      continue;
    na_str rest = header->value, item, name, value;
    while (na_pair_next(&rest, ';', &item, &name, &value))
      if (na_str_eq(trimmed(name), place->name))
        add(found, place, trimmed(value));
  }
}

/* ---- from outside ---- */

int na_tokens_find(na_found_tokens *found, const na_token_place *place, const na_request *request) {
  for (uint32_t i = 0; i < found->n; i++)
    if (na_token_place_eq(found->items[i].place, place))
      return 0;
  switch ((enum na_token_place_kind)place->kind) {
  case NA_TOKEN_HEADER:
    find_in_headers(found, place, request);
    return 0;
  case NA_TOKEN_PARAM:
    return find_in_query(found, place, request);
  case NA_TOKEN_COOKIE:
    find_in_cookies(found, place, request);
    return 0;
  }
  return 0;
}

void na_found_tokens_clear(na_found_tokens *found) {
  while (found->ndecoded)
    free(found->decoded[--found->ndecoded]);
  *found = (na_found_tokens){0};
}
