/* SPDX-License-Identifier: Apache-2.0
 *
 * A decision of rules: who the peer is, a few policies, a thousand of them, and a path in its normal form.
 */
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "bench.h"
#include "http_path.h"

#define PRINCIPAL "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage"

static const char text[] = "GET /api/v1/products/42/reviews?page=2 HTTP/1.1\r\nHost: reviews.bookinfo:9080\r\n"
                           "User-Agent: Mozilla/5.0\r\nAccept: */*\r\nX-Request-Id: 42\r\nX-Role: reader\r\n\r\n";
static na_h1_head head;
static na_address peer = {.port = 40000}, destination = {.port = 9080};
static na_guards *few, *many, *regexes, *templates;

static void check(int rc) {
  if (rc < 0)
    abort();
}

/* Policies as AuthorizationPolicy makes them: from a principal, to a method and path. Only the last one matches. */
static na_guards *make_policies(uint32_t n, uint32_t kind, const char *format, const char *last) {
  na_guards *guards;
  char name[32], value[64];
  check(na_guards_new(&guards));
  check(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_ALLOW, 0, NULL));
  for (uint32_t i = 0; i < n; i++) {
    snprintf(name, sizeof name, "policy-%u", i);
    snprintf(value, sizeof value, format, i);
    check(na_guards_policy(guards, name));
    check(na_check_all(guards, 3));
    check(na_check_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, PRINCIPAL, 0));
    check(na_check_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":method", "GET", 0));
    check(na_check_text(guards, NA_ATTRIBUTE_PATH, kind, NULL, i + 1 < n ? value : last, 0));
  }
  check(na_guards_seal(guards));
  return guards;
}

static void decide(const na_guards *guards) {
  na_subject subject = {.facts = {.peer = &peer, .destination = &destination, .request = &head.request}};
  na_refusal refusal;
  const na_stage *at;
  na_facts_set_principal(&subject.facts, na_str_of(PRINCIPAL));
  if (na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &subject, &refusal, &at) != NA_VERDICT_ALLOW)
    abort();
}

static void know_the_peer(uint32_t i) {
  na_facts facts;
  na_facts_set_principal(&facts, na_str_of(PRINCIPAL));
  bench_keep(&facts);
}

static void decide_by_few(uint32_t i) {
  decide(few);
}

static void decide_by_many(uint32_t i) {
  decide(many);
}

static void decide_by_regexes(uint32_t i) {
  decide(regexes);
}

static void decide_by_templates(uint32_t i) {
  decide(templates);
}

static void normalise(uint32_t i) {
  char out[256];
  bench_keep((void *)na_path_normalise(na_str_of("/api/./v1/../v1/%70roducts/42"), 0, out));
}

int main(void) {
  const na_h1_limits limits = {.max_head_bytes = 8192, .max_headers = 100, .max_request_line = 8192};
  na_h1_error error;
  uint32_t scanned = 0;
  check(na_h1_parse_request(text, strlen(text), &scanned, &limits, &head, &error));
  few = make_policies(10, NA_MATCH_PREFIX, "/other/%u", "/api/");
  many = make_policies(1000, NA_MATCH_PREFIX, "/other/%u", "/api/");
  regexes = make_policies(10, NA_MATCH_REGEX, "/api/v%u/.*/none", "/api/v[0-9]+/products/.*");
  templates = make_policies(10, NA_MATCH_TEMPLATE, "/other/%u/{*}", "/api/{version}/products/{**}");
  bench("who the peer is", 1000000, know_the_peer);
  bench("10 policies (principal, method, path)", 1000000, decide_by_few);
  bench("1,000 policies", 20000, decide_by_many);
  bench("10 policies with regular expressions", 200000, decide_by_regexes);
  bench("10 policies with path templates", 200000, decide_by_templates);
  bench("a path that is not normal", 1000000, normalise);
  na_guards_free(few);
  na_guards_free(many);
  na_guards_free(regexes);
  na_guards_free(templates);
  return 0;
}
