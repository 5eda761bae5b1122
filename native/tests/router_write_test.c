/* SPDX-License-Identifier: Apache-2.0
 *
 * What a route makes of a request: rewritten paths, redirects, headers.
 */
#include <stdio.h>
#include <string.h>

#include "request_rig.h"
#include "router.h"

/* A virtual host with one route; the route. */
static na_route *new_route(void) {
  na_vhost *vhost;
  assert_int_equal(na_vhost_new("v", 1, &vhost), 0);
  return na_vhost_route(vhost, "r", 1);
}

static void assert_written(const na_out *out, const char *expected, size_t row) {
  if (out->over || out->n != strlen(expected) || memcmp(out->p, expected, out->n) != 0)
    fail_msg("row %zu: '%.*s', not '%s'", row, (int)out->n, out->p, expected);
}

/* ---- paths -------------------------------------------------------------------------------------------------- */

static const struct {
  int kind; /* -1: no path condition */
  const char *match;
  const char *prefix, *regex, *substitution;
  const char *target, *expected;
} rewrites[] = {
    {-1, NULL, NULL, NULL, NULL, "/a?b", "/a?b"},
    {-1, NULL, NULL, NULL, NULL, "/a?", "/a?"},
    {-1, NULL, NULL, NULL, NULL, "http://h?q", "/?q"},
    {-1, NULL, NULL, NULL, NULL, "http://h", "/"},
    {NA_MATCH_PREFIX, "/a", "/x", NULL, NULL, "/a/b?c", "/x/b?c"},
    {NA_MATCH_PREFIX, "/a", "/x", NULL, NULL, "/abc", "/xbc"},
    {NA_MATCH_PREFIX, "/a/", "/", NULL, NULL, "/a/b", "/b"},
    {NA_MATCH_PREFIX, "/a", "", NULL, NULL, "/a/b?", "/b?"},
    {NA_MATCH_PREFIX, "/a", "", NULL, NULL, "/abc", "/bc"},
    {NA_MATCH_PREFIX, "/", NULL, "^/a", "", "/abc?q", "/bc?q"},
    {NA_MATCH_PREFIX, "/", NULL, "/.*", "", "/abc", "/"},
    {NA_MATCH_PATH_PREFIX, "/a", "/x/y", NULL, NULL, "/a?c", "/x/y?c"},
    {NA_MATCH_EXACT, "/a/b", "/x", NULL, NULL, "/a/b?c", "/x?c"},
    {NA_MATCH_REGEX, "/a.*", "/x", NULL, NULL, "/abc?c", "/x?c"},
    {-1, NULL, "/x", NULL, NULL, "/abc?c", "/xabc?c"},
    {NA_MATCH_PREFIX, "/", NULL, "^/service/([^/]+)(/.*)$", "\\2/instance/\\1", "/service/foo/v1/api?q",
     "/v1/api/instance/foo?q"},
    {NA_MATCH_PREFIX, "/", NULL, "one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"},
    {NA_MATCH_PREFIX, "/", NULL, "one", "two", "/nothing?one", "/nothing?one"},
};

static void rewrites_paths(void **state) {
  for (size_t i = 0; i < COUNT(rewrites); i++) {
    na_route *route = new_route();
    if (rewrites[i].kind >= 0)
      assert_int_equal(na_route_path(route, (enum na_match_kind)rewrites[i].kind, rewrites[i].match, 0), 0);
    if (rewrites[i].prefix)
      assert_int_equal(na_route_rewrite_prefix(route, rewrites[i].prefix), 0);
    if (rewrites[i].regex)
      assert_int_equal(na_route_rewrite_regex(route, rewrites[i].regex, rewrites[i].substitution), 0);
    char head[300], buf[300];
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", rewrites[i].target);
    na_out out = {.p = buf, .size = sizeof buf};
    na_route_write_path(route, request_of(head), &out);
    assert_written(&out, rewrites[i].expected, i);
    na_out small = {.p = buf, .size = strlen(rewrites[i].expected) - 1};
    na_route_write_path(route, request_of(head), &small);
    assert_true(small.over);
    na_vhost_free(route->vhost);
  }
}

/* ---- redirects ---------------------------------------------------------------------------------------------- */

static const struct {
  const char *scheme, *authority;
  uint32_t port;
  const char *path, *prefix;
  int strip_query;
  const char *target, *host, *expected;
} redirects[] = {
    {NULL, NULL, 0, NULL, NULL, 0, "/a?b", "h:8080", "http://h:8080/a?b"},
    {NULL, NULL, 0, NULL, NULL, 1, "/a?b", "h", "http://h/a"},
    {"https", NULL, 0, NULL, NULL, 0, "/a", "h", "https://h/a"},
    {"https", NULL, 0, NULL, NULL, 0, "/a", "h:80", "https://h/a"},
    {"https", NULL, 0, NULL, NULL, 0, "/a", "h:8080", "https://h:8080/a"},
    {"https", NULL, 443, NULL, NULL, 0, "/a", "h:8080", "https://h/a"},
    {"https", NULL, 8443, NULL, NULL, 0, "/a", "h:80", "https://h:8443/a"},
    {NULL, NULL, 80, NULL, NULL, 0, "/a", "h:8080", "http://h/a"},
    {NULL, NULL, 443, NULL, NULL, 0, "/a", "h", "http://h:443/a"},
    {NULL, NULL, 0, NULL, NULL, 0, "/a", "h:80", "http://h:80/a"},
    {NULL, "x", 0, NULL, NULL, 0, "/a", "h:8080", "http://x/a"},
    {NULL, "x:1", 0, NULL, NULL, 0, "/a", "h:8080", "http://x:1/a"},
    {NULL, "x", 2, NULL, NULL, 0, "/a", "h:8080", "http://x:2/a"},
    {NULL, NULL, 0, "/new", NULL, 0, "/a?b", "h", "http://h/new?b"},
    {NULL, NULL, 0, "new", NULL, 0, "/a?b", "h", "http://h/new?b"},
    {NULL, NULL, 0, "/new?c=d", NULL, 0, "/a?b", "h", "http://h/new?c=d"},
    {NULL, NULL, 0, "/new", NULL, 1, "/a?b", "h", "http://h/new"},
    {NULL, NULL, 0, "/#/new", NULL, 0, "/a", "h", "http://h/#/new"},
    {NULL, NULL, 0, NULL, "/new", 0, "/a/c?b", "h", "http://h/new/c?b"},
    {"https", NULL, 0, NULL, NULL, 0, "/a", "[::1]:80", "https://[::1]/a"},
    {"https", NULL, 8443, NULL, NULL, 0, "/a", "[::1]", "https://[::1]:8443/a"},
};

static void redirects_as_envoy_does(void **state) {
  for (size_t i = 0; i < COUNT(redirects); i++) {
    na_route *route = new_route();
    na_route_path(route, NA_MATCH_PREFIX, "/a", 0);
    assert_int_equal(na_route_redirect(route, 302, redirects[i].scheme, redirects[i].authority, redirects[i].port,
                                       redirects[i].path, redirects[i].prefix, redirects[i].strip_query),
                     0);
    char head[300], buf[300];
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", redirects[i].target, redirects[i].host);
    na_out out = {.p = buf, .size = sizeof buf};
    na_route_write_location(route, request_of(head), &out);
    assert_written(&out, redirects[i].expected, i);
    na_vhost_free(route->vhost);
  }
}

/* ---- headers ------------------------------------------------------------------------------------------------ */

/* Operations in order of levels: d, r, v; then = set, + add, - remove, ? add if absent. */
static const struct {
  const char *operations[6];
  const char *expected;
} mutations[] = {
    {{NULL}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\n"},
    {{"r=A:x"}, "host: h\r\nB: 2\r\nA:x"},
    {{"r+A:x"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nA:x"},
    {{"r-a:"}, "host: h\r\nB: 2\r\n"},
    {{"r?A:x"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\n"},
    {{"r?C:x"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:x"},
    {{"r-A:", "r?A:x"}, "host: h\r\nB: 2\r\nA:x"},
    /* a level removes first, whatever the order of its operations */
    {{"r+C:x", "r-C:"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:x"},
    /* levels take effect destination, route, virtual host */
    {{"v=C:v", "d=C:d", "r=C:r"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:v"},
    {{"d+C:d", "r-C:"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\n"},
    {{"d-C:", "r+C:r"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:r"},
    {{"d+C:d", "v?C:v"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:d"},
    {{"d?C:d", "v?C:v"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:d"},
    {{"d+C:d", "r-C:", "v?C:v"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:v"},
    {{"d+C:1", "r+C:2", "v+C:3"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nC:1C:2C:3"},
    /* the authority */
    {{"r=Host:x"}, "host: x\r\nA: 1\r\nB: 2\r\na: 3\r\n"},
    {{"d=:authority:x", "v=host:y"}, "host: y\r\nA: 1\r\nB: 2\r\na: 3\r\n"},
    /* what was hop-by-hop counts as absent */
    {{"r?Hop:x"}, "host: h\r\nA: 1\r\nB: 2\r\na: 3\r\nHop:x"},
};

/* Apply "r=A:x" to the virtual host. */
static void apply(na_route *route, const char *operation) {
  const char *ops = "=+-?";
  static const enum na_header_op op_of[] = {NA_HEADER_SET, NA_HEADER_ADD, NA_HEADER_REMOVE, NA_HEADER_ADD_IF_ABSENT};
  enum na_header_op op = op_of[strchr(ops, operation[1]) - ops];
  char name[50];
  strcpy(name, operation + 2);
  char *value = strrchr(name, ':');
  *value++ = 0;
  int rc = operation[0] == 'd'   ? na_route_destination_header(route, 0, NA_REQUEST, op, name, value)
           : operation[0] == 'r' ? na_route_header(route, NA_REQUEST, op, name, value)
                                 : na_vhost_header(route->vhost, NA_REQUEST, op, name, value);
  assert_int_equal(rc, 0);
}

/* Expand the short form "C:x" at the end of an expectation to a line. */
static void expand(const char *expected, char *out) {
  const char *added = strrchr(expected, '\n');
  added = added ? added + 1 : expected;
  size_t n = (size_t)(added - expected);
  memcpy(out, expected, n);
  for (const char *p = added; *p;) {
    const char *colon = strchr(p, ':');
    n += (size_t)sprintf(out + n, "%.*s: %c\r\n", (int)(colon - p), p, colon[1]);
    p = colon + 2;
  }
  out[n] = 0;
}

static void applies_header_operations(void **state) {
  na_request *request =
      request_of("GET / HTTP/1.1\r\nA: 1\r\nHost: h\r\nB: 2\r\nHop: z\r\na: 3\r\nConnection: close, hop\r\n"
                 "Transfer-Encoding: chunked\r\n\r\n");
  for (size_t i = 0; i < COUNT(mutations); i++) {
    na_route *route = new_route();
    na_route_forward(route, "c", 1);
    for (int k = 0; k < 6 && mutations[i].operations[k]; k++)
      apply(route, mutations[i].operations[k]);
    na_header_levels levels = {{&route->destinations[0].mutations[NA_REQUEST], &route->mutations[NA_REQUEST],
                                &route->vhost->mutations[NA_REQUEST]}};
    char buf[500], expected[500];
    na_out out = {.p = buf, .size = sizeof buf};
    na_write_headers(request->headers, request->nheaders, NULL, &levels, request->authority, &out);
    expand(mutations[i].expected, expected);
    assert_written(&out, expected, i);
    na_vhost_free(route->vhost);
  }
}

static void writes_headers_without_levels(void **state) {
  na_request *request = request_of("GET / HTTP/1.1\r\nA: 1\r\nHost: h\r\n\r\n");
  char buf[100];
  na_out out = {.p = buf, .size = sizeof buf};
  na_write_headers(request->headers, request->nheaders, NULL, NULL, na_str_of("other"), &out);
  assert_written(&out, "host: other\r\nA: 1\r\n", 0);
  na_header_levels none = {{NULL, NULL, NULL}};
  out.n = 0;
  na_write_headers(request->headers, request->nheaders, NULL, &none, (na_str){"", 0}, &out);
  assert_written(&out, "A: 1\r\nHost: h\r\n", 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rewrites_paths),
      cmocka_unit_test(redirects_as_envoy_does),
      cmocka_unit_test(applies_header_operations),
      cmocka_unit_test(writes_headers_without_levels),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
