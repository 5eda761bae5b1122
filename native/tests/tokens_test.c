/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage of tokens, asked about heads that were parsed from text.
 */
#include "tokens.h"

#include <errno.h>

#include "cmocka_common.h"
#include "jwt_signer.h"

static EVP_PKEY *alice_key, *bob_key;

/* What is asked about. */
typedef struct question {
  na_h1_head head;
  na_authz authz;
  na_subject subject;
  na_refusal refusal;
  char text[70000];
} question;

static void add_key(na_guards *guards, EVP_PKEY *pkey) {
  size_t n;
  unsigned char *der = public_der(pkey, &n);
  assert_int_equal(na_provider_key(guards, "", "", der, n), 0);
  OPENSSL_free(der);
}

static void add_provider(na_guards *guards, const char *name, EVP_PKEY *pkey, const char *payload_header) {
  const na_provider_config config = {
      .name = name, .issuer = name, .metadata_key = "payload", .payload_header = payload_header, .clock_skew_s = 60};
  assert_int_equal(na_guards_provider(guards, &config), 0);
  add_key(guards, pkey);
}

/* Guards with the providers alice and bob, and a rule for all paths; its need is the caller's to add. */
static na_guards *guards_new(void) {
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_tokens(guards, 1), 0);
  add_provider(guards, "alice", alice_key, "x-payload");
  assert_int_equal(na_provider_claim_header(guards, "sub", "X-Sub"), 0);
  assert_int_equal(na_provider_claim_header(guards, "deep.er.n", "x-n"), 0);
  assert_int_equal(na_provider_split_claim(guards, "scope"), 0);
  add_provider(guards, "bob", bob_key, "");
  assert_int_equal(na_guards_token_rule(guards, 0, NULL, 0), 0);
  return guards;
}

static void begin(question *q, const char *target, const char *headers) {
  const na_h1_limits limits = {60000, 100, 60000};
  na_h1_error error;
  uint32_t scanned = 0;
  memset(q, 0, sizeof *q);
  int n = snprintf(q->text, sizeof q->text, "GET %s HTTP/1.1\r\nhost: back\r\n%s\r\n", target, headers);
  assert_int_equal(na_h1_parse_request(q->text, (size_t)n, &scanned, &limits, &q->head, &error), n);
  q->subject = (na_subject){.head = &q->head, .authz = &q->authz};
  q->subject.facts.request = &q->head.request;
  q->subject.facts.metadata = &q->authz.metadata;
}

/* Status of the refusal, 0 if allowed. */
static int ask(na_guards *guards, question *q) {
  const na_stage *at;
  assert_int_equal(na_guards_seal(guards), 0);
  enum na_verdict verdict = na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &q->subject, &q->refusal, &at);
  return verdict == NA_VERDICT_ALLOW ? 0 : q->refusal.status;
}

static void end(question *q) {
  na_authz_clear(&q->authz);
}

static bool is_text(const void *context, na_str text) {
  return na_str_eq(text, context);
}

static bool knows(const question *q, const char *path, const char *value) {
  char name[256];
  snprintf(name, sizeof name, "envoy.filters.http.jwt_authn\x1fpayload\x1f%s", path);
  return na_metadata_any(&q->authz.metadata, name, NA_METADATA_TEXT, is_text, value) ||
         na_metadata_any(&q->authz.metadata, name, NA_METADATA_LITERAL, is_text, value);
}

static const char *header(question *q, const char *name) {
  static char value[4096];
  const na_header *found = na_h1_find(&q->head.request, na_str_of(name));
  if (!found)
    return NULL;
  snprintf(value, sizeof value, "%.*s", (int)found->value.n, found->value.p);
  return value;
}

static const char *token_of(const char *issuer, EVP_PKEY *pkey, const char *claims) {
  static char text[SIGNED_TOKEN_BYTES];
  char payload[8192];
  snprintf(payload, sizeof payload, "{\"iss\":\"%s\"%s}", issuer, claims);
  char *token = sign("ES256", payload, pkey);
  strcpy(text, token);
  free(token);
  return text;
}

/* Ask with this header, or target. */
static int ask_with(na_guards *guards, question *q, const char *format, const char *token) {
  static char text[SIGNED_TOKEN_BYTES + 512];
  snprintf(text, sizeof text, format, token);
  if (text[0] == '/')
    begin(q, text, "");
  else
    begin(q, "/", text);
  return ask(guards, q);
}

#define BEARER "authorization: Bearer %s\r\n"

static void claims_reach_headers_and_metadata(void **state) {
  question *q = malloc(sizeof *q);
  na_guards *guards = guards_new();
  na_need_token(guards, "alice", NULL, 0);
  const char *claims =
      ",\"sub\":\"ann\",\"aud\":[\"a\",\"b\"],\"deep\":{\"er\":{\"n\":7}},\"scope\":\"r w\",\"admin\":true";
  assert_int_equal(ask_with(guards, q, "x-sub: forged\r\nX-Payload: forged\r\nx-n: 1\r\nx-n: 2\r\n" BEARER,
                            token_of("alice", alice_key, claims)),
                   0);
  assert_string_equal(header(q, "x-sub"), "ann");
  assert_string_equal(header(q, "x-n"), "7");
  assert_memory_equal(header(q, "x-payload"), "eyJpc3MiOiJhbGljZSIs", 20);
  assert_null(header(q, "authorization"));
  assert_int_equal(q->head.nheaders, 4);
  assert_true(knows(q, "iss", "alice") && knows(q, "admin", "true") &&
              knows(q,
                    "deep\x1f"
                    "er\x1fn",
                    "7"));
  assert_true(knows(q, "aud", "b") && knows(q, "scope", "r") && knows(q, "scope", "w"));
  assert_false(knows(q, "scope", "r w") || knows(q, "aud", "c") || knows(q, "deep", "7"));
  end(q);
  /* What clients write in the place of claims never passes, with a token or without, good or bad. */
  assert_int_equal(ask_with(guards, q, "x-sub: forged%s\r\n", ""), 401);
  assert_null(header(q, "x-sub"));
  end(q);
  na_guards_free(guards);
  free(q);
}

static void tokens_are_found_in_their_places(void **state) {
  question *q = malloc(sizeof *q);
  na_guards *guards = guards_new();
  na_provider_place(guards, NA_TOKEN_HEADER, "X-Jwt", "jwt=");
  na_provider_place(guards, NA_TOKEN_PARAM, "t", "");
  na_provider_place(guards, NA_TOKEN_COOKIE, "session", "");
  na_need_token(guards, "bob", NULL, 0);
  const struct {
    const char *format;
    int status;
  } table[] = {
      {"x-jwt: jwt=%s\r\n", 0},
      {"x-jwt: a jwt= %s\r\n", 0},
      {"x-jwt: %s\r\n", 401}, /* without its prefix it is not there */
      {"/?t=%s", 0},
      {"/?a=1&t=%s&b=2", 0},
      {"/?%%74=%s", 0},
      {"/?T=%s", 401},
      {"cookie: a=b; session=%s; c=d\r\n", 0},
      {"cookie: session=\"%s\"\r\n", 0},
      {"cookie: xsession=%s\r\n", 401},
      {BEARER, 401}, /* the defaults hold only for who names no places */
      {"x-jwt: jwt=%1$s\r\nx-jwt: jwt=%1$s\r\n", 0},
      {"x-jwt: jwt=%s\r\nx-jwt: jwt=x\r\n", 401},
      {"x-jwt: jwt=%s\r\ncookie: session=x\r\n", 401},
      {"/?t=%s&t=x", 401},
      {"connection: x-jwt\r\nx-jwt: jwt=%s\r\n", 401}, /* the application would not see it */
  };
  const char *token = token_of("bob", bob_key, "");
  for (size_t i = 0; i < COUNT(table); i++) {
    if (ask_with(guards, q, table[i].format, token) != table[i].status)
      fail_msg("%s: %d, %s", table[i].format, q->refusal.status, q->refusal.detail);
    end(q);
  }
  char parameter[SIGNED_TOKEN_BYTES];
  snprintf(parameter, sizeof parameter, "/p?a=1&t=%.*s%%%x%s&b=%%20", 3, token, token[3], token + 4);
  begin(q, parameter, "");
  assert_int_equal(ask(guards, q), 0);
  assert_true(na_str_eq(q->head.request.path_query, "/p?a=1&b=%20"));
  end(q);
  assert_int_equal(ask_with(guards, q, "/p?t=%s", token), 0);
  assert_true(na_str_eq(q->head.request.path_query, "/p"));
  end(q);
  na_guards_free(guards);
  free(q);
}

static void a_few_tokens_are_enough(void **state) {
  question *q = malloc(sizeof *q);
  char *text = calloc(1, 16384);
  na_guards *guards = guards_new();
  na_need_token(guards, "alice", NULL, 0);
  const char *token = token_of("alice", alice_key, "");
  for (int i = 0; i < NA_MAX_TOKENS + 1; i++)
    sprintf(text + strlen(text), BEARER, token);
  begin(q, "/", text);
  assert_int_equal(ask(guards, q), 401);
  assert_string_equal(q->refusal.detail, "jwt_authn_access_denied{Found_multiple_Jwt_tokens}");
  end(q);
  na_guards_free(guards);
  free(text);
  free(q);
}

typedef struct expectation {
  const char *issuer; /* NULL: no token */
  bool by_alice;      /* who signs */
  const char *claims;
  int status;
  const char *detail;
} expectation;

static void check(na_guards *guards, const expectation *table, size_t n) {
  question *q = malloc(sizeof *q);
  for (size_t i = 0; i < n; i++) {
    const expectation *e = &table[i];
    int status = e->issuer
                     ? ask_with(guards, q, BEARER, token_of(e->issuer, e->by_alice ? alice_key : bob_key, e->claims))
                     : ask_with(guards, q, "a: b%s\r\n", "");
    if (status != e->status)
      fail_msg("case %zu: %d, %s", i, status, q->refusal.detail ? q->refusal.detail : "");
    if (status) {
      assert_string_equal(q->refusal.detail, e->detail);
      assert_int_equal(q->refusal.nheaders, 1);
      assert_true(na_str_eq(q->refusal.headers[0].value, e->issuer
                                                             ? "Bearer realm=\"http://back/\", error=\"invalid_token\""
                                                             : "Bearer realm=\"http://back/\""));
    }
    end(q);
  }
  na_guards_free(guards);
  free(q);
}

#define DENIED(words) "jwt_authn_access_denied{" words "}"
#define MISSING       DENIED("Jwt_is_missing")
#define EXPIRED       DENIED("Jwt_is_expired")
#define UNKNOWN       DENIED("Jwt_issuer_is_not_configured")
#define FAILS         DENIED("Jwt_verification_fails")
#define AUDIENCE      DENIED("Audiences_in_Jwt_are_not_allowed")

static void one_token_is_needed(void **state) {
  na_guards *guards = guards_new();
  const char *audiences[] = {"x", "y"};
  na_need_token(guards, "alice", audiences, 2);
  const expectation table[] = {
      {"alice", true, ",\"aud\":\"y\"", 0, NULL},
      {"alice", true, ",\"aud\":[\"z\",\"x\"]", 0, NULL},
      {"alice", true, ",\"aud\":\"z\"", 403, AUDIENCE},
      {"alice", true, "", 403, AUDIENCE},
      {"alice", true, ",\"aud\":\"y\",\"exp\":1", 401, EXPIRED},
      {"alice", true, ",\"aud\":\"y\",\"nbf\":99999999999", 401, DENIED("Jwt_not_yet_valid")},
      {"alice", false, ",\"aud\":\"y\"", 401, FAILS},
      {"bob", false, ",\"aud\":\"y\"", 401, UNKNOWN},
      {"mallory", true, ",\"aud\":\"y\"", 401, UNKNOWN},
      {NULL, true, "", 401, MISSING},
  };
  check(guards, table, COUNT(table));
}

/* As Istio has it for one issuer: no token, or a good one. */
static void a_token_may_be_missing_but_not_bad(void **state) {
  na_guards *guards = guards_new();
  na_need_any(guards, 2);
  na_need_token(guards, "alice", NULL, 0);
  na_need_nothing(guards, 0);
  const expectation table[] = {
      {"alice", true, "", 0, NULL},        {NULL, true, "", 0, NULL},
      {"alice", false, "", 401, FAILS},    {"alice", true, ",\"exp\":1", 401, EXPIRED},
      {"bob", false, "", 401, UNKNOWN}, /* the need names alice only */
      {"mallory", true, "", 401, UNKNOWN},
  };
  check(guards, table, COUNT(table));
}

/* As Istio has it for two. */
static void either_issuer_or_none(void **state) {
  na_guards *guards = guards_new();
  na_need_any(guards, 3);
  na_need_token(guards, "alice", NULL, 0);
  na_need_token(guards, "bob", NULL, 0);
  na_need_all(guards, 2);
  na_need_any(guards, 2);
  na_need_token(guards, "alice", NULL, 0);
  na_need_nothing(guards, 0);
  na_need_any(guards, 2);
  na_need_token(guards, "bob", NULL, 0);
  na_need_nothing(guards, 0);
  const expectation table[] = {
      {"alice", true, "", 0, NULL},  {"bob", false, "", 0, NULL},         {NULL, true, "", 0, NULL},
      {"bob", true, "", 401, FAILS}, {"mallory", true, "", 401, UNKNOWN}, {"alice", true, ",\"exp\":1", 401, EXPIRED},
  };
  check(guards, table, COUNT(table));
}

static void nothing_is_needed(void **state) {
  const expectation missing[] = {{NULL, true, "", 0, NULL},
                                 {"alice", true, "", 0, NULL},
                                 {"bob", false, "", 0, NULL},
                                 {"bob", true, "", 401, FAILS}};
  const expectation failed[] = {{NULL, true, "", 0, NULL}, {"bob", true, "", 0, NULL}, {"x", true, "", 0, NULL}};
  const expectation none[] = {{NULL, true, "", 0, NULL}, {"bob", true, "", 0, NULL}};
  na_guards *guards = guards_new();
  na_need_nothing(guards, 0);
  check(guards, missing, COUNT(missing));
  guards = guards_new();
  na_need_nothing(guards, 1);
  check(guards, failed, COUNT(failed));
  check(guards_new(), none, COUNT(none));
}

/* A token that will do in spite of being bad brings nothing with it. */
static void bad_tokens_bring_nothing(void **state) {
  question *q = malloc(sizeof *q);
  na_guards *guards = guards_new();
  na_need_nothing(guards, 1);
  assert_int_equal(ask_with(guards, q, BEARER, token_of("alice", bob_key, ",\"sub\":\"ann\"")), 0);
  assert_null(header(q, "x-sub"));
  assert_non_null(header(q, "authorization"));
  assert_false(knows(q, "sub", "ann"));
  end(q);
  na_guards_free(guards);
  free(q);
}

static void the_first_rule_that_matches_holds(void **state) {
  question *q = malloc(sizeof *q);
  na_guards *guards;
  na_guards_new(&guards);
  na_guards_tokens(guards, 1);
  add_provider(guards, "alice", alice_key, "");
  na_guards_token_rule(guards, NA_MATCH_PREFIX, "/open", 0);
  na_guards_token_rule(guards, NA_MATCH_PREFIX, "/", 0);
  na_need_token(guards, "alice", NULL, 0);
  begin(q, "/open/x", "");
  assert_int_equal(ask(guards, q), 0);
  end(q);
  begin(q, "/other?/open", "");
  assert_int_equal(ask(guards, q), 401);
  end(q);
  begin(q, "/a\"b", "");
  assert_int_equal(ask(guards, q), 401);
  assert_true(na_str_eq(q->refusal.headers[0].value, "Bearer realm=\"http://back/a%22b\""));
  end(q);
  na_guards_free(guards);
  free(q);
}

static void preflights_need_no_token(void **state) {
  question *q = malloc(sizeof *q);
  na_guards *guards = guards_new();
  na_need_token(guards, "alice", NULL, 0);
  begin(q, "/", "origin: a\r\naccess-control-request-method: PUT\r\n");
  q->head.request.method = na_str_of("OPTIONS");
  assert_int_equal(ask(guards, q), 0);
  end(q);
  begin(q, "/", "origin: a\r\naccess-control-request-method: PUT\r\n");
  assert_int_equal(ask(guards, q), 401);
  end(q);
  na_guards_free(guards);
  free(q);
}

static void wrong_building_is_refused(void **state) {
  const na_provider_config config = {.name = "p"}, framing = {.name = "q", .payload_header = "Content-Length"};
  na_guards *guards;
  na_guards_new(&guards);
  assert_int_equal(na_guards_provider(guards, &config), -EINVAL);
  assert_int_equal(na_need_any(guards, 0), -EINVAL);
  assert_int_equal(na_guards_tokens(guards, 0), 0);
  assert_int_equal(na_provider_audience(guards, "a"), -EINVAL);
  assert_int_equal(na_guards_provider(guards, &framing), -EINVAL);
  assert_int_equal(na_guards_provider(guards, &config), 0);
  assert_int_equal(na_provider_claim_header(guards, "c", "host"), -EINVAL);
  assert_int_equal(na_provider_claim_header(guards, "c", "a b"), -EINVAL);
  assert_int_equal(na_provider_key(guards, "", "", (const uint8_t *)"x", 1), -EINVAL);
  assert_int_equal(na_provider_place(guards, NA_TOKEN_COOKIE, "", ""), -EINVAL);
  assert_int_equal(na_need_nothing(guards, 0), -EINVAL);
  assert_int_equal(na_guards_token_rule(guards, NA_MATCH_REGEX, "(", 0), -EINVAL);
  assert_int_equal(na_guards_token_rule(guards, 0, NULL, 0), 0);
  assert_int_equal(na_need_token(guards, "nobody", NULL, 0), -EINVAL);
  assert_string_equal(na_guards_error(guards), "provider 'nobody' is needed and not there");
  assert_int_equal(na_need_any(guards, 2), 0);
  assert_int_equal(na_need_nothing(guards, 0), 0);
  assert_int_equal(na_guards_seal(guards), -EINVAL);
  na_guards_free(guards);
}

static int make_keys(void **state) {
  alice_key = make_key("ES256");
  bob_key = make_key("ES256");
  return 0;
}

static int free_keys(void **state) {
  EVP_PKEY_free(alice_key);
  EVP_PKEY_free(bob_key);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(claims_reach_headers_and_metadata),
      cmocka_unit_test(tokens_are_found_in_their_places),
      cmocka_unit_test(a_few_tokens_are_enough),
      cmocka_unit_test(one_token_is_needed),
      cmocka_unit_test(a_token_may_be_missing_but_not_bad),
      cmocka_unit_test(either_issuer_or_none),
      cmocka_unit_test(nothing_is_needed),
      cmocka_unit_test(bad_tokens_bring_nothing),
      cmocka_unit_test(the_first_rule_that_matches_holds),
      cmocka_unit_test(preflights_need_no_token),
      cmocka_unit_test(wrong_building_is_refused),
  };
  return cmocka_run_group_tests(tests, make_keys, free_keys);
}
