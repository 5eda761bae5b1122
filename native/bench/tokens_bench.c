/* SPDX-License-Identifier: Apache-2.0
 *
 * What a request pays for its token: the first time, and when it was verified before.
 */
#include "../tests/jwt_signer.h"
#include "bench.h"
#include "tokens.h"
#include "worker.h"

static na_guards *guards;
static na_worker *worker; /* as far as a stage looks at it */
static na_h1_head head, copy;
static char text[8192];

static void check(int rc) {
  if (rc < 0)
    abort();
}

static void make_guards(const unsigned char *der, size_t n) {
  const na_provider_config config = {
      .name = "p", .issuer = "https://issuer.example", .metadata_key = "payload", .clock_skew_s = 60};
  check(na_guards_new(&guards));
  check(na_guards_tokens(guards, 1));
  check(na_guards_provider(guards, &config));
  check(na_provider_key(guards, "", "", der, n));
  check(na_provider_claim_header(guards, "sub", "x-sub"));
  check(na_guards_token_rule(guards, 0, NULL, 0));
  check(na_need_any(guards, 2));
  check(na_need_token(guards, "p", NULL, 0));
  check(na_need_nothing(guards, 0));
  check(na_guards_seal(guards));
}

static void make_request(const char *token) {
  const na_h1_limits limits = {60000, 100, 8000};
  na_h1_error error;
  uint32_t scanned = 0;
  int n = snprintf(text, sizeof text,
                   "GET /productpage HTTP/1.1\r\nhost: productpage:9080\r\nuser-agent: curl/8\r\naccept: */*\r\n"
                   "x-request-id: 0123\r\nauthorization: Bearer %s\r\n\r\n",
                   token);
  check(na_h1_parse_request(text, (size_t)n, &scanned, &limits, &head, &error) == n ? 0 : -1);
}

static void ask(uint32_t i) {
  na_authz authz = {.request = NULL};
  const na_stage *at;
  na_refusal refusal;
  memcpy(&copy, &head, offsetof(na_h1_head, headers) + head.nheaders * sizeof *head.headers);
  copy.request.headers = copy.headers;
  na_subject subject = {.worker = worker, .head = &copy, .authz = &authz, .facts = {.request = &copy.request}};
  if (na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &subject, &refusal, &at) != NA_VERDICT_ALLOW)
    abort();
  na_authz_clear(&authz);
}

static void ask_anew(uint32_t i) {
  na_jwt_cache_free(worker->jwts);
  worker->jwts = NULL;
  ask(i);
}

static const char claims[] = "{\"iss\":\"https://issuer.example\",\"sub\":\"0123456789\",\"aud\":[\"shop\",\"api\"],"
                             "\"exp\":99999999999,\"groups\":[\"dev\",\"ops\",\"admins\"],\"scope\":\"read write\"}";

static void run(const char *algorithm) {
  char name[64];
  size_t n;
  EVP_PKEY *pkey = make_key(algorithm);
  unsigned char *der = public_der(pkey, &n);
  char *token = sign(algorithm, claims, pkey);
  make_guards(der, n);
  make_request(token);
  snprintf(name, sizeof name, "a token of %s, first time", algorithm);
  bench(name, 200, ask_anew);
  snprintf(name, sizeof name, "a token of %s, verified before", algorithm);
  bench(name, 20000, ask);
  na_guards_free(guards);
  free(token);
  OPENSSL_free(der);
  EVP_PKEY_free(pkey);
}

int main(void) {
  worker = calloc(1, sizeof *worker);
  if (!worker)
    return 1;
  run("RS256");
  run("ES256");
  run("EdDSA");
  na_jwt_cache_free(worker->jwts);
  free(worker);
  return 0;
}
