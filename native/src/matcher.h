/* SPDX-License-Identifier: Apache-2.0
 *
 * Conditions on texts and headers. Semantics are Envoy's StringMatcher and HeaderMatcher.
 */
#ifndef NODEAGENT_MATCHER_H
#define NODEAGENT_MATCHER_H

#include <nodeagent/engine.h>

#include "http1.h"

typedef struct na_regex na_regex; /* regex.h: RE2 behind a C seam */

/* A string or regex condition on a named value. */
typedef struct na_matcher {
  uint8_t kind;  /* enum na_match_kind */
  uint8_t flags; /* NA_MATCH_* */
  char *name;    /* lower case; NULL for the path */
  uint32_t name_n;
  char *value; /* lower case when NA_MATCH_IGNORE_CASE */
  uint32_t value_n;
  na_regex *regex;
} na_matcher;

/* Fill a matcher. name NULL: the path. -EINVAL or -ENOMEM with the reason in `error`; the matcher is empty then. */
int na_matcher_init(na_matcher *matcher, enum na_match_kind kind, const char *name, const char *value, uint32_t flags,
                    char *error, size_t error_size);
void na_matcher_clear(na_matcher *matcher);
/* Whether the text meets the condition; NA_MATCH_INVERT is not looked at. */
bool na_matcher_text(const na_matcher *matcher, na_str text);
/* The same for a value that may be missing (NULL), inverted or not. Envoy: a missing value matches nothing, inverted or
 * not, but presence; unless it is to count as empty. */
bool na_matcher_named(const na_matcher *matcher, const na_str *value);
/* The same for a header or pseudo-header of the name, of several values any: in a joined one a client could hide one
 * behind another (Envoy: match_headers_individually). */
bool na_matcher_header(const na_matcher *matcher, const na_request *request);

#endif
