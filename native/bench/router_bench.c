/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding a virtual host among 10,000, and a route among 1,000.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "router.h"

#define VHOSTS 10000
#define ROUTES 1000

static na_domains *domains;
static na_vhost *prefixes, *exacts, *headers, *regexes;
static na_request request;
static na_header request_headers[12];

static void check(int rc) {
  if (rc < 0)
    abort();
}

static void make_domains(void) {
  static na_vhost *vhosts[VHOSTS];
  char name[64], error[128];
  for (uint32_t i = 0; i < VHOSTS; i++) {
    check(na_vhost_new("v", i, &vhosts[i]));
    snprintf(name, sizeof name, "svc-%u.default.svc.cluster.local", i);
    check(na_vhost_domain(vhosts[i], name));
    snprintf(name, sizeof name, "svc-%u", i);
    check(na_vhost_domain(vhosts[i], name));
  }
  check(na_vhost_domain(vhosts[0], "*"));
  check(na_vhost_domain(vhosts[1], "*.wild.example"));
  check(na_domains_new(vhosts, VHOSTS, &domains, error, sizeof error));
}

/* A virtual host of which only the last route matches. */
static na_vhost *make_routes(enum na_match_kind kind, const char *format, const char *header) {
  na_vhost *vhost;
  char value[64];
  check(na_vhost_new("v", 1, &vhost));
  for (uint32_t i = 0; i < ROUTES; i++) {
    na_route *route = na_vhost_route(vhost, "r", i);
    snprintf(value, sizeof value, format, i);
    if (i == ROUTES - 1)
      break;
    check(header ? na_route_match_header(route, kind, header, value, 0) : na_route_path(route, kind, value, 0));
  }
  return vhost;
}

static void find_exact(uint32_t i) {
  char host[64];
  bool wildcard;
  int n = snprintf(host, sizeof host, "svc-%u.default.svc.cluster.local:9080", i % VHOSTS);
  bench_keep(na_domains_find(domains, (na_str){host, (uint32_t)n}, &wildcard));
}

static void print_only(uint32_t i) {
  char host[64];
  snprintf(host, sizeof host, "svc-%u.default.svc.cluster.local:9080", i % VHOSTS);
  bench_keep(host);
}

static void find_suffix(uint32_t i) {
  bool wildcard;
  (void)i;
  bench_keep(na_domains_find(domains, na_str_of("some.where.wild.example"), &wildcard));
}

static void match(const na_vhost *vhost) {
  const na_route *route = na_vhost_match(vhost, &request);
  if (!route || route->tag != ROUTES - 1)
    abort();
}

static void match_prefixes(uint32_t i) {
  (void)i;
  match(prefixes);
}

static void match_exacts(uint32_t i) {
  (void)i;
  match(exacts);
}

static void match_headers(uint32_t i) {
  (void)i;
  match(headers);
}

static void match_regexes(uint32_t i) {
  (void)i;
  match(regexes);
}

int main(void) {
  for (uint32_t i = 0; i < 12; i++)
    request_headers[i] =
        (na_header){.name = na_str_of(i == 7 ? "end-user" : "x-other-header"), .value = na_str_of("jason")};
  request = (na_request){.method = na_str_of("GET"),
                         .scheme = na_str_of("http"),
                         .authority = na_str_of("a"),
                         .path = na_str_of("/api/v1/products/42/reviews"),
                         .query = {"", 0},
                         .path_query = na_str_of("/api/v1/products/42/reviews"),
                         .headers = request_headers,
                         .nheaders = 12};
  make_domains();
  prefixes = make_routes(NA_MATCH_PREFIX, "/api/v1/thing-%u/", NULL);
  exacts = make_routes(NA_MATCH_EXACT, "/api/v1/exact-%u/reviews", NULL);
  headers = make_routes(NA_MATCH_EXACT, "user-%u", "end-user");
  regexes = make_routes(NA_MATCH_REGEX, "/api/v1/[a-z]+/%u/.*x", NULL);
  bench("print a host name (to subtract)", 100000, print_only);
  bench("find one of 10,000 virtual hosts", 100000, find_exact);
  bench("find a wildcard suffix", 100000, find_suffix);
  bench("match the last of 1,000 prefix routes", 2000, match_prefixes);
  bench("match the last of 1,000 exact routes", 2000, match_exacts);
  bench("match the last of 1,000 header routes", 2000, match_headers);
  bench("match the last of 1,000 regex routes", 200, match_regexes);
  return 0;
}
