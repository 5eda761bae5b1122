/* SPDX-License-Identifier: Apache-2.0 */
#include "uri_template.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "http1.h"

/* Envoy's bounds. */
#define MAX_NAMES 5
#define MAX_NAME  16

/* What a segment of a template may hold besides letters and digits: RFC 3986 3.3 pchar, less `*`. */
#define SEGMENT_BYTES "-._~%!$&'()+,;:@="
/* What operators stand for, of RE2: all of pchar, or what a DENY says could be avoided by an asterisk. */
#define ONE_SEGMENT  "[a-zA-Z0-9-._~%!$&'()+,;:@=*]+"
#define ANY_SEGMENTS "[a-zA-Z0-9-._~%!$&'()+,;:@=*/]*"

typedef struct parser {
  const char *at; /* what is left of it */
  na_out pattern; /* of RE2, so far */
  na_str names[MAX_NAMES];
  uint32_t nnames;
  bool any_segments; /* `**` was there */
  bool slash;        /* the last byte was a slash */
  bool word;         /* it was another literal */
  char *error;
  size_t error_size;
} parser;

static int refuse(parser *t, const char *why) {
  snprintf(t->error, t->error_size, "invalid path template at '%.40s': %s", t->at, why);
  return -EINVAL;
}

static bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_segment_byte(char c) {
  return is_letter(c) || (c >= '0' && c <= '9') || (c && strchr(SEGMENT_BYTES, c));
}

/* A byte that stands for itself. */
static int literal(parser *t) {
  char c = *t->at;
  if (c == '/' && t->slash)
    return refuse(t, "two slashes in a row");
  if (c != '/' && !is_segment_byte(c))
    return refuse(t, "a byte that no path has");
  t->slash = c == '/';
  t->word = !t->slash;
  if (strchr(".$()+", c))
    na_out_bytes(&t->pattern, "\\", 1);
  na_out_bytes(&t->pattern, &c, 1);
  t->at++;
  return 0;
}

/* `*` or `**`, of which `n` bytes are written as the operator. */
static int put_operator(parser *t, size_t n) {
  if (t->any_segments)
    return refuse(t, "an operator after `**`");
  t->any_segments = n == 2;
  t->slash = t->word = false;
  na_out_cstr(&t->pattern, n == 2 ? ANY_SEGMENTS : ONE_SEGMENT);
  return 0;
}

static int bare_operator(parser *t) {
  size_t n = t->at[1] == '*' ? 2 : 1;
  if (t->word)
    return refuse(t, "an operator after a literal must be in braces");
  int rc = put_operator(t, n);
  t->at += n;
  return rc;
}

/* Take the name that stands before `=` or `}`. */
static int name(parser *t) {
  const char *p = t->at;
  while (is_letter(*p) || (p > t->at && ((*p >= '0' && *p <= '9') || *p == '_')))
    p++;
  na_str name = {t->at, (uint32_t)(p - t->at)};
  if (name.n == 0 || name.n > MAX_NAME)
    return refuse(t, "a name has 1 to 16 letters, digits and `_`, a letter first");
  for (uint32_t i = 0; i < t->nnames; i++)
    if (t->names[i].n == name.n && memcmp(t->names[i].p, name.p, name.n) == 0)
      return refuse(t, "a name is there twice");
  if (t->nnames == MAX_NAMES)
    return refuse(t, "more than five names");
  t->names[t->nnames++] = name;
  t->at = p;
  return 0;
}

/* What stands between `=` and `}`: operators and literals, an operator by itself in its segment. */
static int named_pattern(parser *t) {
  bool after_operator = false;
  t->word = false;
  if (*t->at == '}')
    return refuse(t, "an empty pattern");
  while (*t->at && *t->at != '}') {
    bool is_operator = *t->at == '*' && !after_operator;
    if (after_operator && *t->at != '/')
      return refuse(t, "an operator in a name's pattern is a whole segment");
    int rc = is_operator ? bare_operator(t) : literal(t);
    if (rc)
      return rc;
    after_operator = is_operator;
  }
  return 0;
}

/* `{*}`, `{**}`, `{name}` or `{name=pattern}`. */
static int braces(parser *t) {
  int rc;
  t->at++;
  if (*t->at == '*') {
    t->word = false;
    rc = bare_operator(t);
  } else {
    rc = name(t);
    if (!rc && *t->at == '=') {
      t->at++;
      rc = named_pattern(t);
    } else if (!rc) {
      rc = put_operator(t, 1);
    }
  }
  if (rc)
    return rc;
  if (*t->at != '}')
    return refuse(t, "`}` expected");
  t->at++;
  return 0;
}

int na_uri_template_compile(const char *text, na_regex **out, char *error, size_t error_size) {
  char pattern[NA_MAX_TEMPLATE * sizeof ANY_SEGMENTS / 2];
  parser t = {
      .at = text, .pattern = {.p = pattern, .size = sizeof pattern - 1}, .error = error, .error_size = error_size};
  if (strlen(text) > NA_MAX_TEMPLATE) {
    snprintf(error, error_size, "path template of more than %d bytes", NA_MAX_TEMPLATE);
    return -E2BIG;
  }
  if (*text != '/')
    return refuse(&t, "it does not begin with a slash");
  while (*t.at) {
    int rc = *t.at == '*' ? bare_operator(&t) : *t.at == '{' ? braces(&t) : literal(&t);
    if (rc)
      return rc;
  }
  if (t.pattern.over) {
    snprintf(error, error_size, "path template with too many operators");
    return -E2BIG;
  }
  pattern[t.pattern.n] = '\0';
  return na_regex_new(pattern, false, out, error, error_size);
}
