/* SPDX-License-Identifier: Apache-2.0
 *
 * Matchers and routes: which route takes a request. Semantics are Envoy's HeaderMatcher, QueryParameterMatcher and
 * RouteMatch.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http1_parse.h"
#include "regex.h"
#include "router_build.h"

/* Several values of one header are joined here before matching; more is joined on the heap. */
#define JOIN_BYTES 2048

/* ---- building ----------------------------------------------------------------------------------------------- */

void na_matcher_clear(na_matcher *matcher) {
  free(matcher->name);
  free(matcher->value);
  na_regex_free(matcher->regex);
  *matcher = (na_matcher){0};
}

static int fill(na_vhost *vhost, na_matcher *matcher, const char *name, const char *value) {
  bool ignore_case = matcher->flags & NA_MATCH_IGNORE_CASE;
  if (name && !(matcher->name = strdup(name)))
    return na_vhost_fail(vhost, -ENOMEM, "out of memory");
  matcher->name_n = name ? (uint32_t)strlen(name) : 0;
  if (matcher->kind == NA_MATCH_REGEX)
    return na_regex_new(value, ignore_case, &matcher->regex, vhost->error, sizeof vhost->error);
  matcher->value = ignore_case ? na_lower_copy(value) : strdup(value);
  if (!matcher->value)
    return na_vhost_fail(vhost, -ENOMEM, "out of memory");
  matcher->value_n = (uint32_t)strlen(value);
  return 0;
}

int na_matcher_init(na_vhost *vhost, na_matcher *matcher, enum na_match_kind kind, const char *name, const char *value,
                    uint32_t flags) {
  const uint32_t known = NA_MATCH_IGNORE_CASE | NA_MATCH_INVERT | NA_MATCH_MISSING_AS_EMPTY;
  *matcher = (na_matcher){.kind = (uint8_t)kind, .flags = (uint8_t)flags};
  if ((unsigned)kind > NA_MATCH_PATH_PREFIX || flags & ~known)
    return na_vhost_fail(vhost, -EINVAL, "unknown match kind %u or flags %u", (unsigned)kind, flags);
  if (name && !*name)
    return na_vhost_fail(vhost, -EINVAL, "a matcher needs a name");
  if (!value && kind != NA_MATCH_PRESENT)
    return na_vhost_fail(vhost, -EINVAL, "a matcher of this kind needs a value");
  int rc = fill(vhost, matcher, name, value ? value : "");
  if (rc)
    na_matcher_clear(matcher);
  return rc;
}

/* ---- strings ------------------------------------------------------------------------------------------------ */

/* Equal bytes; with ignore_case b is lower case already. */
static bool same(const char *a, const char *b, uint32_t n, bool ignore_case) {
  if (!ignore_case)
    return memcmp(a, b, n) == 0;
  for (uint32_t i = 0; i < n; i++)
    if (na_lower(a[i]) != b[i])
      return false;
  return true;
}

static bool contains(na_str text, const na_matcher *matcher, bool ignore_case) {
  if (!ignore_case)
    return memmem(text.p, text.n, matcher->value, matcher->value_n) != NULL;
  for (uint32_t i = 0; i + matcher->value_n <= text.n; i++)
    if (same(text.p + i, matcher->value, matcher->value_n, true))
      return true;
  return false;
}

static bool match_text(const na_matcher *matcher, na_str text) {
  const bool ignore_case = matcher->flags & NA_MATCH_IGNORE_CASE;
  const uint32_t n = matcher->value_n;
  switch ((enum na_match_kind)matcher->kind) {
  case NA_MATCH_EXACT:
    return text.n == n && same(text.p, matcher->value, n, ignore_case);
  case NA_MATCH_PREFIX:
    return text.n >= n && same(text.p, matcher->value, n, ignore_case);
  case NA_MATCH_REGEX:
    return na_regex_full(matcher->regex, text.p, text.n);
  case NA_MATCH_PRESENT:
    return true;
  case NA_MATCH_SUFFIX:
    return text.n >= n && same(text.p + text.n - n, matcher->value, n, ignore_case);
  case NA_MATCH_CONTAINS:
    return contains(text, matcher, ignore_case);
  case NA_MATCH_PATH_PREFIX:
    /* "/a/" means the same segments as "/a". */
    if (n > 1 && matcher->value[n - 1] == '/')
      return (text.n == n - 1 || (text.n >= n && text.p[n - 1] == '/')) &&
             same(text.p, matcher->value, n - 1, ignore_case);
    return text.n >= n && same(text.p, matcher->value, n, ignore_case) &&
           (text.n == n || text.p[n] == '/' || matcher->value[n - 1] == '/');
  }
  return false;
}

/* A named value that may be missing. Envoy: a missing value matches nothing, inverted or not, but presence; unless it
 * is to count as empty. */
static bool match_named(const na_matcher *matcher, const na_str *value) {
  const bool invert = matcher->flags & NA_MATCH_INVERT;
  if (matcher->kind == NA_MATCH_PRESENT)
    return (value != NULL) != invert;
  if (!value && !(matcher->flags & NA_MATCH_MISSING_AS_EMPTY))
    return false;
  return match_text(matcher, value ? *value : (na_str){"", 0}) != invert;
}

/* ---- headers ------------------------------------------------------------------------------------------------ */

/* Headers of the connection are no part of the request, except that an upgrade shows in them. */
static bool is_visible(const na_header *header) {
  return !header->hop || header->id == NA_HDR_UPGRADE || header->id == NA_HDR_CONNECTION || header->id == NA_HDR_TE;
}

static bool is_named(const na_header *header, const na_matcher *matcher) {
  if (header->name.n != matcher->name_n || na_lower(header->name.p[0]) != matcher->name[0])
    return false;
  return same(header->name.p, matcher->name, matcher->name_n, true) && is_visible(header);
}

/* The value of a pseudo-header; false when there is no such. */
static bool pseudo_header(const na_request *request, const na_matcher *matcher, na_str *value) {
  if (strcmp(matcher->name, ":method") == 0)
    *value = request->method;
  else if (strcmp(matcher->name, ":path") == 0)
    *value = request->path_query;
  else if (strcmp(matcher->name, ":authority") == 0)
    *value = request->authority;
  else if (strcmp(matcher->name, ":scheme") == 0)
    *value = request->scheme;
  else
    return false;
  return true;
}

/* How many headers have the name; *bytes is the length of their values joined by commas, *first the first one. */
static uint32_t count_values(const na_request *request, const na_matcher *matcher, size_t *bytes, uint32_t *first) {
  uint32_t count = 0;
  *bytes = 0;
  for (uint32_t i = 0; i < request->nheaders; i++) {
    if (!is_named(&request->headers[i], matcher))
      continue;
    if (!count)
      *first = i;
    *bytes += request->headers[i].value.n + (count ? 1 : 0);
    count++;
  }
  return count;
}

static bool match_joined(const na_request *request, const na_matcher *matcher, uint32_t first, size_t bytes) {
  char small[JOIN_BYTES], *joined = small;
  if (bytes > sizeof small && !(joined = malloc(bytes)))
    return false;
  na_out out = {.p = joined, .size = bytes};
  for (uint32_t i = first; i < request->nheaders; i++) {
    if (!is_named(&request->headers[i], matcher))
      continue;
    if (i != first)
      na_out_bytes(&out, ",", 1);
    na_out_str(&out, request->headers[i].value);
  }
  assert(!out.over && out.n == bytes);
  na_str value = {joined, (uint32_t)bytes};
  bool matches = match_named(matcher, &value);
  if (joined != small)
    free(joined);
  return matches;
}

static bool match_header(const na_matcher *matcher, const na_request *request) {
  na_str value;
  if (matcher->name[0] == ':')
    return match_named(matcher, pseudo_header(request, matcher, &value) ? &value : NULL);
  size_t bytes;
  uint32_t first = 0;
  uint32_t count = count_values(request, matcher, &bytes, &first);
  if (count > 1)
    return match_joined(request, matcher, first, bytes);
  return match_named(matcher, count ? &request->headers[first].value : NULL);
}

/* ---- query parameters --------------------------------------------------------------------------------------- */

/* The first value of a parameter, as sent (no decoding, as Envoy); false when it is not there. */
static bool find_parameter(na_str query, const na_matcher *matcher, na_str *value) {
  const char *p = query.p, *end = query.p + query.n;
  while (p < end) {
    const char *next = memchr(p, '&', (size_t)(end - p));
    const char *stop = next ? next : end;
    const char *equals = memchr(p, '=', (size_t)(stop - p));
    const char *name_end = equals ? equals : stop;
    if ((size_t)(name_end - p) == matcher->name_n && memcmp(p, matcher->name, matcher->name_n) == 0) {
      *value = equals ? (na_str){equals + 1, (uint32_t)(stop - equals - 1)} : (na_str){stop, 0};
      return true;
    }
    p = stop + 1;
  }
  return false;
}

static bool match_query(const na_matcher *matcher, const na_request *request) {
  na_str value;
  return match_named(matcher, find_parameter(request->query, matcher, &value) ? &value : NULL);
}

/* ---- routes ------------------------------------------------------------------------------------------------- */

static bool match_route(const na_route *route, const na_request *request) {
  if (route->has_path && !match_text(&route->path, request->path))
    return false;
  for (uint32_t i = 0; i < route->nheaders; i++)
    if (!match_header(&route->headers[i], request))
      return false;
  for (uint32_t i = 0; i < route->nqueries; i++)
    if (!match_query(&route->queries[i], request))
      return false;
  return true;
}

const na_route *na_vhost_match(const na_vhost *vhost, const na_request *request) {
  for (const na_route *route = vhost->routes; route; route = route->next)
    if (match_route(route, request))
      return route;
  return NULL;
}

const na_route_destination *na_route_pick(const na_route *route, uint64_t random) {
  if (!route->total_weight)
    return NULL;
  /* Lemire's multiply-shift: each weight gets its share to within 2^-64 of the total. */
  uint64_t at = (uint64_t)(((__uint128_t)random * route->total_weight) >> 64);
  for (uint32_t i = 0; i < route->ndestinations; i++) {
    if (at < route->destinations[i].weight)
      return &route->destinations[i];
    at -= route->destinations[i].weight;
  }
  return NULL;
}
