/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of memory while guards are built and asked, at each allocation in turn: nothing leaks, a call says -ENOMEM, and
 * who cannot be judged does not pass.
 */
#include <errno.h>

#include "callout.h"
#include "cmocka_common.h"
#include "jwt_signer.h"
#include "oom.h"
#include "tokens.h"

static EVP_PKEY *pkey;
static unsigned char *der;
static size_t der_n;
static char *good, *bad;

static int add_tokens(na_guards *guards) {
  const na_provider_config config = {
      .name = "p", .issuer = "i", .payload_header = "x-payload", .metadata_key = "payload", .pad_payload = 1};
  const char *audiences[] = {"a"};
  int rc = na_guards_tokens(guards, 1);
  (void)(rc || (rc = na_guards_provider(guards, &config)) || (rc = na_provider_audience(guards, "a")) ||
         (rc = na_provider_key(guards, "k", "ES256", der, der_n)) ||
         (rc = na_provider_place(guards, NA_TOKEN_PARAM, "t", "")) ||
         (rc = na_provider_claim_header(guards, "sub", "x-sub")) || (rc = na_provider_split_claim(guards, "scope")) ||
         (rc = na_guards_token_rule(guards, NA_MATCH_PREFIX, "/", 0)) || (rc = na_need_any(guards, 2)) ||
         (rc = na_need_token(guards, "p", audiences, 1)) || (rc = na_need_nothing(guards, 0)));
  return rc;
}

static int add_callout(na_guards *guards) {
  const na_callout_config config = {.cluster = "c", .path_prefix = "/p"};
  int rc = na_guards_callout(guards, NA_GUARDED_REQUEST, &config);
  (void)(rc || (rc = na_callout_when(guards)) || (rc = na_check_always(guards)) ||
         (rc = na_callout_name(guards, NA_CALLOUT_SEND, NA_MATCH_PREFIX, "x-")) ||
         (rc = na_callout_header(guards, NA_CALLOUT_EXTRA, "a", "b")));
  return rc;
}

static int build(na_guards **out) {
  int rc = na_guards_new(out);
  if (rc)
    return rc;
  (void)((rc = add_tokens(*out)) || (rc = add_callout(*out)) || (rc = na_guards_seal(*out)));
  if (!rc)
    return 0;
  na_guards_free(*out);
  *out = NULL;
  return rc;
}

static void guards_are_built_or_not(void **state) {
  na_guards *guards;
  int rc = -ENOMEM;
  for (long at = 0; rc; at++) {
    until_failure = at;
    rc = build(&guards);
    until_failure = -1;
    assert_true(rc == 0 || rc == -ENOMEM);
    assert_true(at < 1000);
  }
  na_guards_free(guards);
}

/* Ask about a request with this parameter, while the allocation at `at` fails; *failed tells whether one did. */
static enum na_verdict ask(na_guards *guards, const char *token, long at, bool *failed, bool *claims) {
  static na_h1_head head;
  static char text[8192];
  const na_h1_limits limits = {60000, 100, 60000};
  na_h1_error error;
  uint32_t scanned = 0;
  na_authz authz = {.request = NULL};
  na_subject subject = {.head = &head, .authz = &authz};
  na_refusal refusal;
  const na_stage *stage;
  int n = snprintf(text, sizeof text, "GET /a?t=%%65%s&u=1 HTTP/1.1\r\nhost: b\r\nx-sub: x\r\n\r\n", token + 1);
  assert_int_equal(na_h1_parse_request(text, (size_t)n, &scanned, &limits, &head, &error), n);
  subject.facts.request = &head.request;
  until_failure = at;
  enum na_verdict verdict = na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &subject, &refusal, &stage);
  *failed = until_failure < 0;
  until_failure = -1;
  const na_header *sub = na_h1_find(&head.request, na_str_of("x-sub"));
  *claims =
      sub && na_str_eq(sub->value, "ann") && authz.metadata.filters && na_str_eq(head.request.path_query, "/a?u=1");
  na_authz_clear(&authz);
  return verdict;
}

static void who_cannot_be_judged_does_not_pass(void **state) {
  na_guards *guards;
  bool failed = true, claims;
  assert_int_equal(build(&guards), 0);
  for (long at = 0; failed; at++) {
    enum na_verdict verdict = ask(guards, good, at, &failed, &claims);
    if (verdict == NA_VERDICT_ALLOW && !claims)
      fail_msg("allocation %ld: it passes, and what its token says is not known", at);
    assert_true(failed || verdict == NA_VERDICT_ALLOW);
    assert_true(at < 1000);
  }
  failed = true;
  for (long at = 0; failed; at++)
    assert_int_equal(ask(guards, bad, at, &failed, &claims), NA_VERDICT_DENY);
  na_guards_free(guards);
}

static int set_up(void **state) {
  json_set_alloc_funcs(__wrap_malloc, free);
  pkey = make_key("ES256");
  der = public_der(pkey, &der_n);
  good = sign("ES256", "{\"iss\":\"i\",\"aud\":\"a\",\"sub\":\"ann\",\"scope\":\"r w\"}", pkey);
  bad = sign("ES256", "{\"iss\":\"i\",\"aud\":\"a\",\"exp\":1}", pkey);
  return 0;
}

static int tear_down(void **state) {
  free(good);
  free(bad);
  OPENSSL_free(der);
  EVP_PKEY_free(pkey);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(guards_are_built_or_not),
      cmocka_unit_test(who_cannot_be_judged_does_not_pass),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
