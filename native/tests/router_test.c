/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual hosts: which domain, which route, which destination. Expectations are Envoy's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request_rig.h"
#include "router.h"

/* ---- domains ------------------------------------------------------------------------------------------------ */

static na_vhost *vhost_of(const char *name, const char *const *domains) {
  na_vhost *vhost;
  assert_int_equal(na_vhost_new(name, 1, &vhost), 0);
  for (; *domains; domains++)
    assert_int_equal(na_vhost_domain(vhost, *domains), 0);
  return vhost;
}

static const struct {
  const char *authority;
  const char *vhost; /* NULL: none */
  bool wildcard;
} searches[] = {
    {"a.example.com", "exact", false},
    {"A.Example.COM", "exact", false},
    {"a.example.com:80", "exact", false},
    {"a.example.com:9080", "port", false},
    {"b.example.com", "suffix", false},
    {"b.example.com:1", "suffix", false},
    {"c.b.example.com", "suffix", false},
    {"x-long.example.com", "longer", false},
    {"-long.example.com", "suffix", false},
    {".example.com", "any", true},
    {"example.com", "any", true},
    {"foo.bar", "prefix", false},
    {"foo.baz.qux", "longer prefix", false},
    {"foo.", "any", true},
    {"[::1]", "v6", false},
    {"[::1]:80", "v6", false},
    {"[::2]:80", "any", true},
    {"elsewhere", "any", true},
    {"", "any", true},
    {":80", "any", true},
};

static void finds_domains(void **state) {
  na_vhost *vhosts[] = {
      vhost_of("any", (const char *[]){"*", NULL}),
      vhost_of("suffix", (const char *[]){"*.example.com", NULL}),
      vhost_of("longer", (const char *[]){"*-long.example.com", NULL}),
      vhost_of("prefix", (const char *[]){"foo.*", NULL}),
      vhost_of("longer prefix", (const char *[]){"foo.baz.*", NULL}),
      vhost_of("exact", (const char *[]){"A.example.com", "a.EXAMPLE.com", NULL}),
      vhost_of("port", (const char *[]){"a.example.com:9080", NULL}),
      vhost_of("v6", (const char *[]){"[::1]", NULL}),
  };
  na_domains *domains;
  char error[128];
  assert_int_equal(na_domains_new(vhosts, COUNT(vhosts), &domains, error, sizeof error), 0);
  for (size_t i = 0; i < COUNT(vhosts); i++)
    na_vhost_free(vhosts[i]);
  for (size_t i = 0; i < COUNT(searches); i++) {
    bool wildcard;
    na_vhost *found = na_domains_find(domains, na_str_of(searches[i].authority), &wildcard);
    if (strcmp(found->name, searches[i].vhost) != 0 || wildcard != searches[i].wildcard)
      fail_msg("%s: found '%s', not '%s'", searches[i].authority, found->name, searches[i].vhost);
  }
  char long_host[400];
  memset(long_host, 'a', sizeof long_host - 1);
  long_host[sizeof long_host - 1] = 0;
  bool wildcard;
  assert_string_equal(na_domains_find(domains, na_str_of(long_host), &wildcard)->name, "any");
  na_domains_free(domains);
}

static void finds_none_without_catch_all(void **state) {
  na_vhost *vhost = vhost_of("a", (const char *[]){"a", NULL});
  na_domains *domains;
  char error[128];
  bool wildcard;
  assert_int_equal(na_domains_new(&vhost, 1, &domains, error, sizeof error), 0);
  assert_null(na_domains_find(domains, na_str_of("b"), &wildcard));
  assert_false(wildcard);
  na_domains_free(domains);
  na_vhost_free(vhost);
}

static void refuses_domains(void **state) {
  static const char *const invalid[] = {"", "a*b", "**", "*a*", "a b", "a/b", "a#b", "a\x01"};
  na_vhost *vhost;
  na_vhost_new("v", 0, &vhost);
  for (size_t i = 0; i < COUNT(invalid); i++) {
    assert_int_equal(na_vhost_domain(vhost, invalid[i]), -EINVAL);
    assert_non_null(strstr(na_vhost_error(vhost), "virtual host 'v'"));
  }
  char long_domain[400] = {0};
  memset(long_domain, 'a', sizeof long_domain - 1);
  assert_int_equal(na_vhost_domain(vhost, long_domain), -E2BIG);
  na_vhost_free(vhost);

  na_vhost *both[] = {vhost_of("one", (const char *[]){"a", "b", NULL}), vhost_of("two", (const char *[]){"B", NULL})};
  na_domains *domains;
  char error[128];
  assert_int_equal(na_domains_new(both, 2, &domains, error, sizeof error), -EEXIST);
  assert_string_equal(error, "domain 'b' is claimed by virtual hosts 'one' and 'two'");
  na_vhost_free(both[0]);
  na_vhost_free(both[1]);
}

/* ---- matching ----------------------------------------------------------------------------------------------- */

static const struct {
  enum na_match_kind kind;
  const char *value;
  uint32_t flags;
  const char *path;
  bool matches;
} paths[] = {
    {NA_MATCH_EXACT, "/a", 0, "/a", true},
    {NA_MATCH_EXACT, "/a", 0, "/a?b", true},
    {NA_MATCH_EXACT, "/a", 0, "/a/", false},
    {NA_MATCH_EXACT, "/a", 0, "/A", false},
    {NA_MATCH_EXACT, "/Ab", NA_MATCH_IGNORE_CASE, "/aB", true},
    {NA_MATCH_PREFIX, "/a", 0, "/abc", true},
    {NA_MATCH_PREFIX, "/a", 0, "/a", true},
    {NA_MATCH_PREFIX, "/a", 0, "/", false},
    {NA_MATCH_PREFIX, "/a?b", 0, "/a?bc", false},
    {NA_MATCH_PREFIX, "/A", NA_MATCH_IGNORE_CASE, "/aBC", true},
    {NA_MATCH_PREFIX, "/", 0, "/x", true},
    {NA_MATCH_REGEX, "/a+", 0, "/aaa?q", true},
    {NA_MATCH_REGEX, "/a+", 0, "/aaab", false},
    {NA_MATCH_REGEX, "a+", 0, "/aaa", false},
    {NA_MATCH_REGEX, "/A+", NA_MATCH_IGNORE_CASE, "/aaa", true},
    {NA_MATCH_REGEX, "/(a|ab)(c|bcd)", 0, "/abcd", true},
    {NA_MATCH_PATH_PREFIX, "/a", 0, "/a", true},
    {NA_MATCH_PATH_PREFIX, "/a", 0, "/a/", true},
    {NA_MATCH_PATH_PREFIX, "/a", 0, "/a/b", true},
    {NA_MATCH_PATH_PREFIX, "/a", 0, "/ab", false},
    {NA_MATCH_PATH_PREFIX, "/a/", 0, "/a", true},
    {NA_MATCH_PATH_PREFIX, "/a/", 0, "/a/b", true},
    {NA_MATCH_PATH_PREFIX, "/a/", 0, "/ab", false},
    {NA_MATCH_PATH_PREFIX, "/", 0, "/ab", true},
    {NA_MATCH_PATH_PREFIX, "/", 0, "/", true},
};

static void matches_paths(void **state) {
  for (size_t i = 0; i < COUNT(paths); i++) {
    na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
    na_route *route = na_vhost_route(vhost, "r", 1);
    assert_int_equal(na_route_path(route, paths[i].kind, paths[i].value, paths[i].flags), 0);
    char head[200];
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", paths[i].path);
    bool matches = na_vhost_match(vhost, request_of(head)) == route;
    if (matches != paths[i].matches)
      fail_msg("row %zu: %s against %s", i, paths[i].path, paths[i].value);
    na_vhost_free(vhost);
  }
}

#define INVERT NA_MATCH_INVERT
#define EMPTY  NA_MATCH_MISSING_AS_EMPTY
#define NOCASE NA_MATCH_IGNORE_CASE

static const char header_request[] = "GET /p?q=1 HTTP/1.1\r\nHost: Host.example:80\r\nEnd-User: jason\r\nList: a\r\n"
                                     "Empty:\r\nlist: b\r\nUpgrade: websocket\r\nConnection: upgrade, hop\r\n"
                                     "Hop: x\r\nCookie: a=b; user=jason\r\n\r\n";

static const struct {
  enum na_match_kind kind;
  const char *name, *value;
  uint32_t flags;
  bool matches;
} headers[] = {
    {NA_MATCH_EXACT, "end-user", "jason", 0, true},
    {NA_MATCH_EXACT, "END-USER", "jason", 0, true},
    {NA_MATCH_EXACT, "end-user", "Jason", 0, false},
    {NA_MATCH_EXACT, "end-user", "JASON", NOCASE, true},
    {NA_MATCH_EXACT, "end-user", "jaso", 0, false},
    {NA_MATCH_EXACT, "end-user", "jason", INVERT, false},
    {NA_MATCH_EXACT, "end-user", "other", INVERT, true},
    {NA_MATCH_PREFIX, "end-user", "ja", 0, true},
    {NA_MATCH_PREFIX, "end-user", "so", 0, false},
    {NA_MATCH_SUFFIX, "end-user", "son", 0, true},
    {NA_MATCH_SUFFIX, "end-user", "jasonx", 0, false},
    {NA_MATCH_CONTAINS, "end-user", "aso", 0, true},
    {NA_MATCH_CONTAINS, "end-user", "ASO", NOCASE, true},
    {NA_MATCH_CONTAINS, "end-user", "xx", 0, false},
    {NA_MATCH_REGEX, "end-user", "j.*n", 0, true},
    {NA_MATCH_REGEX, "end-user", "aso", 0, false},
    {NA_MATCH_REGEX, "cookie", "^(.*?;)?(\\s*user=jason)(;.*)?$", 0, true},
    {NA_MATCH_PRESENT, "end-user", NULL, 0, true},
    {NA_MATCH_PRESENT, "end-user", NULL, INVERT, false},
    {NA_MATCH_PRESENT, "absent", NULL, 0, false},
    {NA_MATCH_PRESENT, "absent", NULL, INVERT, true},
    {NA_MATCH_PRESENT, "empty", NULL, 0, true},
    {NA_MATCH_EXACT, "empty", "", 0, true},
    /* of several values any matches, inverted none (Envoy 1.39) */
    {NA_MATCH_EXACT, "list", "a", 0, true},
    {NA_MATCH_EXACT, "list", "b", 0, true},
    {NA_MATCH_EXACT, "list", "a,b", 0, false},
    {NA_MATCH_EXACT, "list", "b", INVERT, false},
    {NA_MATCH_EXACT, "list", "c", INVERT, true},
    {NA_MATCH_CONTAINS, "list", "a,b", 0, false},
    {NA_MATCH_REGEX, "list", "[ab]", 0, true},
    {NA_MATCH_PRESENT, "list", NULL, INVERT, false},
    /* a missing header matches nothing, not even inverted, unless it counts as empty */
    {NA_MATCH_EXACT, "absent", "x", 0, false},
    {NA_MATCH_EXACT, "absent", "x", INVERT, false},
    {NA_MATCH_EXACT, "absent", "x", INVERT | EMPTY, true},
    {NA_MATCH_EXACT, "absent", "", EMPTY, true},
    {NA_MATCH_REGEX, "absent", ".*", EMPTY, true},
    /* pseudo-headers */
    {NA_MATCH_EXACT, ":method", "GET", 0, true},
    {NA_MATCH_EXACT, ":method", "POST", 0, false},
    {NA_MATCH_EXACT, ":path", "/p?q=1", 0, true},
    {NA_MATCH_EXACT, ":scheme", "http", 0, true},
    {NA_MATCH_EXACT, ":authority", "Host.example:80", 0, true},
    {NA_MATCH_PREFIX, ":authority", "host.example", NOCASE, true},
    {NA_MATCH_EXACT, "Host", "Host.example:80", 0, true},
    {NA_MATCH_PRESENT, ":unknown", NULL, 0, false},
    /* of the connection's own headers only the upgrade shows */
    {NA_MATCH_EXACT, "upgrade", "websocket", 0, true},
    {NA_MATCH_PRESENT, "hop", NULL, 0, false},
};

static void matches_headers(void **state) {
  for (size_t i = 0; i < COUNT(headers); i++) {
    na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
    na_route *route = na_vhost_route(vhost, "r", 1);
    assert_int_equal(na_route_match_header(route, headers[i].kind, headers[i].name, headers[i].value, headers[i].flags),
                     0);
    bool matches = na_vhost_match(vhost, request_of(header_request)) == route;
    if (matches != headers[i].matches)
      fail_msg("row %zu: %s %s", i, headers[i].name, headers[i].value ? headers[i].value : "present");
    na_vhost_free(vhost);
  }
}

static const struct {
  enum na_match_kind kind;
  const char *name, *value;
  uint32_t flags;
  const char *query;
  bool matches;
} queries[] = {
    {NA_MATCH_EXACT, "a", "1", 0, "?a=1", true},
    {NA_MATCH_EXACT, "a", "1", 0, "?b=2&a=1&a=3", true},
    {NA_MATCH_EXACT, "a", "3", 0, "?b=2&a=1&a=3", false},
    {NA_MATCH_EXACT, "a", "", 0, "?a", true},
    {NA_MATCH_EXACT, "a", "", 0, "?a=", true},
    {NA_MATCH_EXACT, "a", "b=c", 0, "?a=b=c", true},
    {NA_MATCH_EXACT, "A", "1", 0, "?a=1", false},
    {NA_MATCH_EXACT, "a", "%31", 0, "?a=%31", true},
    {NA_MATCH_PREFIX, "a", "1", 0, "?a=12", true},
    {NA_MATCH_REGEX, "a", "\\d+", 0, "?a=12", true},
    {NA_MATCH_REGEX, "a", "\\d+", 0, "?a=12x", false},
    {NA_MATCH_PRESENT, "a", NULL, 0, "?a", true},
    {NA_MATCH_PRESENT, "a", NULL, 0, "?aa=1", false},
    {NA_MATCH_PRESENT, "a", NULL, 0, "", false},
    {NA_MATCH_PRESENT, "a", NULL, INVERT, "?", true},
    {NA_MATCH_EXACT, "a", "1", INVERT, "", false},
    {NA_MATCH_EXACT, "a", "1", 0, "?&&a=1&", true},
};

static void matches_queries(void **state) {
  for (size_t i = 0; i < COUNT(queries); i++) {
    na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
    na_route *route = na_vhost_route(vhost, "r", 1);
    assert_int_equal(na_route_match_query(route, queries[i].kind, queries[i].name, queries[i].value, queries[i].flags),
                     0);
    char head[200];
    snprintf(head, sizeof head, "GET /%s HTTP/1.1\r\nHost: a\r\n\r\n", queries[i].query);
    bool matches = na_vhost_match(vhost, request_of(head)) == route;
    if (matches != queries[i].matches)
      fail_msg("row %zu: %s", i, queries[i].query);
    na_vhost_free(vhost);
  }
}

static void takes_the_first_route_of_which_all_matches(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  na_route *both = na_vhost_route(vhost, "both", 1);
  na_route_path(both, NA_MATCH_PREFIX, "/p", 0);
  na_route_match_header(both, NA_MATCH_EXACT, "end-user", "jason", 0);
  na_route_match_query(both, NA_MATCH_EXACT, "q", "2", 0);
  na_route *second = na_vhost_route(vhost, "second", 2);
  na_route_path(second, NA_MATCH_PREFIX, "/p", 0);
  na_route *rest = na_vhost_route(vhost, "rest", 3);
  assert_ptr_equal(na_vhost_match(vhost, request_of(header_request)), second);
  assert_ptr_equal(na_vhost_match(vhost, request_of("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")), rest);
  assert_ptr_equal(na_vhost_match(vhost, request_of("GET /p?q=2 HTTP/1.1\r\nHost: a\r\nEnd-User: jason\r\n\r\n")),
                   both);
  na_vhost_free(vhost);
}

/* ---- weights ------------------------------------------------------------------------------------------------ */

static void splits_by_weight_exactly(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  na_route *route = na_vhost_route(vhost, "r", 1);
  assert_int_equal(na_route_forward(route, "a", 1), 0);
  assert_int_equal(na_route_forward(route, "b", 0), 1);
  assert_int_equal(na_route_forward(route, "c", 7), 2);
  uint32_t count[3] = {0};
  /* Equidistant numbers meet each weight exactly. */
  for (uint64_t i = 0; i < 8000; i++)
    count[na_route_pick(route, i * (UINT64_MAX / 8000) + UINT64_MAX / 16000) - route->destinations]++;
  assert_int_equal(count[0], 1000);
  assert_int_equal(count[1], 0);
  assert_int_equal(count[2], 7000);
  assert_string_equal(na_route_pick(route, UINT64_MAX)->cluster, "c");
  na_route *none = na_vhost_route(vhost, "none", 1);
  na_route_forward(none, "a", 0);
  assert_null(na_route_pick(none, 1));
  na_vhost_free(vhost);
}

/* ---- refusals ----------------------------------------------------------------------------------------------- */

static void refuses_bad_routes(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  na_route *route = na_vhost_route(vhost, "r", 1);
  assert_int_equal(na_route_path(route, NA_MATCH_REGEX, "(", 0), -EINVAL);
  assert_non_null(strstr(na_vhost_error(vhost), "invalid regular expression '('"));
  assert_int_equal(na_route_path(route, NA_MATCH_REGEX, "(?=a)", 0), -EINVAL);
  assert_int_equal(na_route_path(route, NA_MATCH_SUFFIX, "a", 0), -EINVAL);
  assert_int_equal(na_route_path(route, NA_MATCH_EXACT, NULL, 0), -EINVAL);
  assert_int_equal(na_route_path(route, NA_MATCH_EXACT, "/", NA_MATCH_INVERT), -EINVAL);
  assert_int_equal(na_route_match_header(route, NA_MATCH_PATH_PREFIX, "a", "b", 0), -EINVAL);
  assert_int_equal(na_route_match_header(route, (enum na_match_kind)99, "a", "b", 0), -EINVAL);
  assert_int_equal(na_route_match_header(route, NA_MATCH_EXACT, "", "b", 0), -EINVAL);
  assert_int_equal(na_route_match_header(route, NA_MATCH_EXACT, "a", "b", 128), -EINVAL);
  assert_int_equal(na_route_redirect(route, 200, NULL, NULL, 0, NULL, NULL, 0), -EINVAL);
  assert_int_equal(na_route_redirect(route, 301, NULL, NULL, 70000, NULL, NULL, 0), -EINVAL);
  assert_int_equal(na_route_redirect(route, 301, NULL, NULL, 0, "/a", "/b", 0), -EINVAL);
  assert_int_equal(na_route_redirect(route, 301, NULL, "a\r\nb", 0, NULL, NULL, 0), -EINVAL);
  assert_int_equal(na_route_respond(route, 99, NULL, 0), -EINVAL);
  assert_int_equal(na_route_respond(route, 200, NULL, (1u << 20) + 1), -E2BIG);
  assert_int_equal(na_route_rewrite_regex(route, "(a)", "\\2"), -EINVAL);
  assert_int_equal(na_route_rewrite_regex(route, "(", ""), -EINVAL);
  assert_int_equal(na_route_rewrite_prefix(route, "/a b"), -EINVAL);
  assert_int_equal(na_route_rewrite_authority(route, "a/b"), -EINVAL);
  assert_int_equal(route->action, NA_ACTION_NONE);
  assert_int_equal(na_route_forward(route, "c", 1), 0);
  assert_int_equal(na_route_respond(route, 200, NULL, 0), -EINVAL);
  assert_int_equal(na_route_redirect(route, 301, NULL, NULL, 0, NULL, NULL, 0), -EINVAL);
  assert_int_equal(na_route_destination_header(route, 1, NA_REQUEST, NA_HEADER_SET, "a", "b"), -EINVAL);
  na_vhost_free(vhost);
}

static void keeps_what_it_is_told(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  na_route *answer = na_vhost_route(vhost, "answer", 1);
  assert_int_equal(answer->timeout_ms, NA_NEVER);
  assert_int_equal(na_route_respond(answer, 503, (const uint8_t *)"no\0w", 4), 0);
  assert_int_equal(answer->action, NA_ACTION_RESPOND);
  assert_int_equal(answer->respond.status, 503);
  assert_memory_equal(answer->respond.body, "no\0w", 4);
  na_route *forward = na_vhost_route(vhost, "forward", 2);
  assert_int_equal(na_route_timeout(forward, 1500), 0);
  assert_int_equal(forward->timeout_ms, 1500);
  assert_int_equal(na_route_timeout(forward, 0), 0);
  assert_int_equal(forward->timeout_ms, NA_NEVER);
  assert_int_equal(na_route_rewrite_authority(forward, "other.example:80"), 0);
  assert_string_equal(forward->rewrite_authority, "other.example:80");
  assert_int_equal(na_route_rewrite_prefix(forward, "/a"), 0);
  assert_int_equal(na_route_rewrite_prefix(forward, "/b"), 0);
  assert_string_equal(forward->rewrite_prefix, "/b");
  assert_int_equal(na_route_rewrite_regex(forward, "a", "b"), -EINVAL);
  na_vhost_free(vhost);
}

static void bounds_what_a_route_has(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  na_route *route = na_vhost_route(vhost, "r", 1);
  for (int i = 0; i < 64; i++)
    assert_int_equal(na_route_match_header(route, NA_MATCH_EXACT, "a", "b", 0), 0);
  assert_int_equal(na_route_match_header(route, NA_MATCH_EXACT, "a", "b", 0), -E2BIG);
  for (int i = 0; i < 128; i++)
    assert_int_equal(na_route_forward(route, "c", 1), i);
  assert_int_equal(na_route_forward(route, "c", 1), -E2BIG);
  for (int i = 1; i < 16384; i++)
    assert_non_null(na_vhost_route(vhost, "r", 1));
  assert_null(na_vhost_route(vhost, "r", 1));
  assert_string_equal(na_vhost_error(vhost), "virtual host 'v' has more than 16384 routes");
  na_vhost_free(vhost);
}

static void refuses_bad_header_operations(void **state) {
  na_vhost *vhost = vhost_of("v", (const char *[]){"*", NULL});
  static const struct {
    enum na_header_side side;
    enum na_header_op op;
    const char *name, *value;
  } bad[] = {
      {NA_REQUEST, NA_HEADER_SET, "", "b"},
      {NA_REQUEST, NA_HEADER_SET, "a b", "c"},
      {NA_REQUEST, NA_HEADER_SET, "a", "b\r\nc: d"},
      {NA_REQUEST, NA_HEADER_SET, ":path", "/"},
      {NA_REQUEST, NA_HEADER_REMOVE, "Host", NULL},
      {NA_REQUEST, NA_HEADER_ADD, ":authority", "a"},
      {NA_REQUEST, NA_HEADER_SET, "host", "a b"},
      {NA_RESPONSE, NA_HEADER_SET, "Host", "a"},
      {NA_REQUEST, NA_HEADER_SET, "Content-Length", "5"},
      {NA_RESPONSE, NA_HEADER_REMOVE, "transfer-encoding", NULL},
      {NA_REQUEST, (enum na_header_op)9, "a", "b"},
      {(enum na_header_side)2, NA_HEADER_SET, "a", "b"},
  };
  for (size_t i = 0; i < COUNT(bad); i++)
    assert_int_equal(na_vhost_header(vhost, bad[i].side, bad[i].op, bad[i].name, bad[i].value), -EINVAL);
  for (int i = 0; i < 64; i++)
    assert_int_equal(na_vhost_header(vhost, NA_REQUEST, NA_HEADER_ADD, "a", "b"), 0);
  assert_int_equal(na_vhost_header(vhost, NA_REQUEST, NA_HEADER_ADD, "a", "b"), -E2BIG);
  na_vhost_free(vhost);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finds_domains),
      cmocka_unit_test(finds_none_without_catch_all),
      cmocka_unit_test(refuses_domains),
      cmocka_unit_test(matches_paths),
      cmocka_unit_test(matches_headers),
      cmocka_unit_test(matches_queries),
      cmocka_unit_test(takes_the_first_route_of_which_all_matches),
      cmocka_unit_test(splits_by_weight_exactly),
      cmocka_unit_test(keeps_what_it_is_told),
      cmocka_unit_test(bounds_what_a_route_has),
      cmocka_unit_test(refuses_bad_routes),
      cmocka_unit_test(refuses_bad_header_operations),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
