/* SPDX-License-Identifier: Apache-2.0
 *
 * What guards make of what policies and clients write: paths, path templates and expressions. Input: a path, NUL, a
 * template, NUL, the bytes of an expression.
 */
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "http_path.h"
#include "uri_template.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* ---- paths ---- */

static bool has_dot_segment(const char *p, size_t n) {
  for (const char *end = p + n; p < end;) {
    const char *slash = memchr(p + 1, '/', (size_t)(end - p - 1));
    size_t length = (size_t)((slash ? slash : end) - p) - 1;
    if ((length == 1 && p[1] == '.') || (length == 2 && p[1] == '.' && p[2] == '.'))
      return true;
    p += length + 1;
  }
  return false;
}

/* The normal form is one, and has no other spelling of itself in it. */
static void check_path(na_str path, uint32_t slashes) {
  size_t size = (size_t)path.n * NA_PATH_GROWTH;
  char *first = malloc(size ? size : 1), *second = malloc(size * NA_PATH_GROWTH + 1);
  long n = na_path_normalise(path, slashes, first);
  if (n >= 0) {
    CHECK(n <= (long)size);
    CHECK(!memchr(first, '\\', (size_t)n));
    if (n && first[0] == '/')
      CHECK(!has_dot_segment(first, (size_t)n));
    long again = na_path_normalise((na_str){first, (uint32_t)n}, slashes, second);
    CHECK(again == n && memcmp(first, second, (size_t)n) == 0);
    if (slashes & NA_SLASHES_MERGE && n && first[0] == '/')
      CHECK(!na_path_repeats_slashes((na_str){first, (uint32_t)n}));
    if (na_path_is_plain(path) && !na_path_repeats_slashes(path))
      CHECK(n == (long)path.n && memcmp(first, path.p, (size_t)n) == 0);
  }
  free(first);
  free(second);
}

/* ---- templates ---- */

static void check_template(const char *template, na_str path) {
  char error[128] = "";
  na_regex *regex;
  int rc = na_uri_template_compile(template, &regex, error, sizeof error);
  if (rc) {
    CHECK(*error);
    return;
  }
  CHECK(template[0] == '/');
  bool literal = !strpbrk(template, "*{");
  bool matches = na_regex_full(regex, path.p, path.n);
  if (literal)
    CHECK(matches == na_str_eq(path, template));
  na_regex_free(regex);
}

/* ---- expressions ---- */

enum { ALWAYS, NEVER, NOT, ALL, ANY, PORT, KINDS };

static int add(na_guards *guards, uint8_t byte) {
  uint32_t operand = byte / KINDS;
  switch (byte % KINDS) {
  case ALWAYS:
    return na_check_always(guards);
  case NEVER:
    return na_check_any(guards, 0);
  case NOT:
    return na_check_not(guards);
  case ALL:
    return na_check_all(guards, operand % 5);
  case ANY:
    return na_check_any(guards, operand % 5);
  default:
    return na_check_port(guards, operand, 20);
  }
}

/* The same by recursion over the bytes; *ok is false for what is no expression. */
static bool expected(const uint8_t *bytes, size_t n, size_t *at, int depth, bool *ok) {
  if (*at >= n || depth > NA_MAX_CHECK_DEPTH) {
    *ok = false;
    return false;
  }
  uint8_t byte = bytes[(*at)++];
  uint32_t operand = byte / KINDS, operands = byte % KINDS == NOT ? 1 : operand % 5;
  bool all = true, any = false;
  if (byte % KINDS == ALWAYS || byte % KINDS == NEVER)
    return byte % KINDS == ALWAYS;
  if (byte % KINDS == PORT)
    return operand <= 10;
  for (uint32_t i = 0; i < operands && *ok; i++) {
    bool holds = expected(bytes, n, at, depth + 1, ok);
    all = all && holds;
    any = any || holds;
  }
  return byte % KINDS == NOT ? !all : byte % KINDS == ALL ? all : any;
}

static void check_expression(const uint8_t *bytes, size_t n) {
  na_guards *guards;
  size_t at = 0, added = 0;
  bool ok = true;
  const na_address peer = {.port = 1}, destination = {.port = 10};
  const na_facts facts = {.peer = &peer, .destination = &destination};
  CHECK(na_guards_new(&guards) == 0 && na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_ALLOW, 0, NULL) == 0);
  CHECK(na_guards_policy(guards, "p") == 0);
  for (; added < n && n <= 4096; added++)
    if (add(guards, bytes[added]) < 0) { /* only a range of ports can be refused */
      CHECK(bytes[added] % KINDS == PORT && bytes[added] / KINDS > 20);
      break;
    }
  bool holds = expected(bytes, added, &at, 1, &ok);
  bool whole = ok && at == added;
  CHECK((na_guards_seal(guards) == 0) == whole);
  if (whole)
    CHECK(na_check_holds(((na_rules *)guards->stages[NA_GUARDED_REQUEST])->policies[0].check.checks, &facts) == holds);
  na_guards_free(guards);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  const uint8_t *first = n ? memchr(data, 0, n) : NULL;
  const uint8_t *second = first ? memchr(first + 1, 0, (size_t)(data + n - first - 1)) : NULL;
  size_t path_n = first ? (size_t)(first - data) : n;
  /* A copy without a terminator: reading on is an error that ASan sees. */
  char *path = malloc(path_n ? path_n : 1);
  if (path_n)
    memcpy(path, data, path_n);
  for (uint32_t slashes = 0; slashes < 8; slashes++)
    check_path((na_str){path, (uint32_t)path_n}, slashes);
  if (second) {
    check_template((const char *)first + 1, (na_str){path, (uint32_t)path_n});
    check_expression(second + 1, (size_t)(data + n - second - 1));
  }
  free(path);
  return 0;
}
