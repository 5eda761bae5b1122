/* SPDX-License-Identifier: Apache-2.0 */
#include "matcher.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "http1_parse.h"
#include "regex.h"

/* ---- building ----------------------------------------------------------------------------------------------- */

void na_matcher_clear(na_matcher *matcher) {
  free(matcher->name);
  free(matcher->value);
  na_regex_free(matcher->regex);
  *matcher = (na_matcher){0};
}

static int fail(char *error, size_t error_size, int rc, const char *format, ...) __attribute__((format(printf, 4, 5)));

static int fail(char *error, size_t error_size, int rc, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(error, error_size, format, args);
  va_end(args);
  return rc;
}

static int fill(na_matcher *matcher, const char *name, const char *value, char *error, size_t error_size) {
  bool ignore_case = matcher->flags & NA_MATCH_IGNORE_CASE;
  if (name && !(matcher->name = strdup(name)))
    return fail(error, error_size, -ENOMEM, "out of memory");
  matcher->name_n = name ? (uint32_t)strlen(name) : 0;
  if (matcher->kind == NA_MATCH_REGEX)
    return na_regex_new(value, ignore_case, &matcher->regex, error, error_size);
  matcher->value = ignore_case ? na_lower_copy(value) : strdup(value);
  if (!matcher->value)
    return fail(error, error_size, -ENOMEM, "out of memory");
  matcher->value_n = (uint32_t)strlen(value);
  return 0;
}

int na_matcher_init(na_matcher *matcher, enum na_match_kind kind, const char *name, const char *value, uint32_t flags,
                    char *error, size_t error_size) {
  const uint32_t known = NA_MATCH_IGNORE_CASE | NA_MATCH_INVERT | NA_MATCH_MISSING_AS_EMPTY;
  *matcher = (na_matcher){.kind = (uint8_t)kind, .flags = (uint8_t)flags};
  if ((unsigned)kind > NA_MATCH_PATH_PREFIX || flags & ~known)
    return fail(error, error_size, -EINVAL, "unknown match kind %u or flags %u", (unsigned)kind, flags);
  if (name && !*name)
    return fail(error, error_size, -EINVAL, "a matcher needs a name");
  if (!value && kind != NA_MATCH_PRESENT)
    return fail(error, error_size, -EINVAL, "a matcher of this kind needs a value");
  int rc = fill(matcher, name, value ? value : "", error, error_size);
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

bool na_matcher_text(const na_matcher *matcher, na_str text) {
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

bool na_matcher_named(const na_matcher *matcher, const na_str *value) {
  const bool invert = matcher->flags & NA_MATCH_INVERT;
  if (matcher->kind == NA_MATCH_PRESENT)
    return (value != NULL) != invert;
  if (!value && !(matcher->flags & NA_MATCH_MISSING_AS_EMPTY))
    return false;
  return na_matcher_text(matcher, value ? *value : (na_str){"", 0}) != invert;
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

bool na_matcher_header(const na_matcher *matcher, const na_request *request) {
  const na_matcher plain = {.kind = matcher->kind,
                            .flags = matcher->flags & (uint8_t)~NA_MATCH_INVERT,
                            .value = matcher->value,
                            .value_n = matcher->value_n,
                            .regex = matcher->regex};
  na_str value;
  bool found = false, any = false;
  if (matcher->name[0] == ':')
    return na_matcher_named(matcher, pseudo_header(request, matcher, &value) ? &value : NULL);
  for (uint32_t i = 0; i < request->nheaders && !any; i++) {
    if (!is_named(&request->headers[i], matcher))
      continue;
    found = true;
    any = na_matcher_named(&plain, &request->headers[i].value);
  }
  return found ? any != ((matcher->flags & NA_MATCH_INVERT) != 0) : na_matcher_named(matcher, NULL);
}
