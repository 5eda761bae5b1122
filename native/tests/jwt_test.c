/* SPDX-License-Identifier: Apache-2.0 */
#include "jwt.h"

#include <errno.h>

#include "cmocka_common.h"
#include "jwt_signer.h"

static const char *const algorithms[] = {"RS256", "RS384", "RS512", "PS256", "PS384",
                                         "PS512", "ES256", "ES384", "ES512", "EdDSA"};

static na_jwt_key public_key(EVP_PKEY *pkey, const char *kid, const char *algorithm) {
  na_jwt_key key;
  char error[128];
  size_t n;
  unsigned char *der = public_der(pkey, &n);
  int rc = na_jwt_key_init(&key, kid, algorithm, der, n, error, sizeof error);
  if (rc)
    fail_msg("%s", error);
  OPENSSL_free(der);
  return key;
}

static na_jwt *parsed(const char *token) {
  na_jwt *jwt;
  enum na_jwt_status status = na_jwt_parse(na_str_of(token), &jwt);
  if (status)
    fail_msg("%s: %s", token, na_jwt_status_text(status));
  return jwt;
}

/* What is found out about a token when the key is the only one. */
static enum na_jwt_status verdict(const char *token, EVP_PKEY *pkey, const char *kid, const char *algorithm) {
  na_jwt *jwt = parsed(token);
  na_jwt_key key = public_key(pkey, kid, algorithm);
  enum na_jwt_status status = na_jwt_verify(jwt, &key, 1);
  na_jwt_key_clear(&key);
  na_jwt_unref(jwt);
  return status;
}

static void verifies_each_algorithm(void **state) {
  for (size_t i = 0; i < COUNT(algorithms); i++) {
    EVP_PKEY *pkey = make_key(algorithms[i]), *other = make_key(algorithms[i]);
    char *token = sign(algorithms[i], "{\"iss\":\"me\"}", pkey);
    assert_int_equal(verdict(token, pkey, "", ""), NA_JWT_OK);
    assert_int_equal(verdict(token, pkey, "some", algorithms[i]), NA_JWT_OK);
    assert_int_equal(verdict(token, other, "", ""), NA_JWT_SIGNATURE);
    free(token);
    EVP_PKEY_free(other);
    EVP_PKEY_free(pkey);
  }
}

/* Any bit of the signature, and any character of what is signed, counts. */
static void notices_each_change(void **state) {
  for (size_t i = 0; i < COUNT(algorithms); i++) {
    EVP_PKEY *pkey = make_key(algorithms[i]);
    char *token = sign(algorithms[i], "{\"iss\":\"me\",\"sub\":\"aaaa\"}", pkey);
    na_jwt_key key = public_key(pkey, "", "");
    na_jwt *jwt = parsed(token);
    for (uint16_t at = 0; at < jwt->signature_n; at++) {
      jwt->signature[at] ^= 0x10;
      assert_int_equal(na_jwt_verify(jwt, &key, 1), NA_JWT_SIGNATURE);
      jwt->signature[at] ^= 0x10;
    }
    for (uint32_t at = 0; at < jwt->signed_part.n; at++) {
      jwt->text[at] ^= 1;
      assert_int_equal(na_jwt_verify(jwt, &key, 1), NA_JWT_SIGNATURE);
      jwt->text[at] ^= 1;
    }
    jwt->signature_n--;
    assert_int_equal(na_jwt_verify(jwt, &key, 1), NA_JWT_SIGNATURE);
    jwt->signature_n = 0;
    assert_int_equal(na_jwt_verify(jwt, &key, 1), NA_JWT_SIGNATURE);
    na_jwt_unref(jwt);
    na_jwt_key_clear(&key);
    free(token);
    EVP_PKEY_free(pkey);
  }
}

/* A token says which algorithm it is signed with; it cannot make a key serve another one. */
static void binds_keys_to_their_algorithms(void **state) {
  for (size_t i = 0; i < COUNT(algorithms); i++) {
    EVP_PKEY *pkey = make_key(algorithms[i]);
    for (size_t claimed = 0; claimed < COUNT(algorithms); claimed++) {
      char header[64];
      snprintf(header, sizeof header, "{\"alg\":\"%s\"}", algorithms[claimed]);
      char *token = sign_parts(header, "{}", algorithms[i], pkey);
      enum na_jwt_status status = verdict(token, pkey, "", "");
      if (claimed == i)
        assert_int_equal(status, NA_JWT_OK);
      else
        assert_in_range(status, NA_JWT_SIGNATURE, NA_JWT_NO_KEY);
      if (claimed != i)
        assert_int_not_equal(verdict(token, pkey, "", algorithms[i]), NA_JWT_OK);
      free(token);
    }
    EVP_PKEY_free(pkey);
  }
}

static void chooses_keys_by_kid(void **state) {
  EVP_PKEY *pkey = make_key("ES256");
  char *named = sign_parts("{\"alg\":\"ES256\",\"kid\":\"one\"}", "{}", "ES256", pkey);
  char *nameless = sign("ES256", "{}", pkey);
  assert_int_equal(verdict(named, pkey, "one", ""), NA_JWT_OK);
  assert_int_equal(verdict(named, pkey, "two", ""), NA_JWT_NO_KEY);
  assert_int_equal(verdict(named, pkey, "", ""), NA_JWT_OK);
  assert_int_equal(verdict(nameless, pkey, "two", ""), NA_JWT_OK);
  na_jwt *jwt = parsed(named);
  assert_int_equal(na_jwt_verify(jwt, NULL, 0), NA_JWT_NO_KEYS);
  na_jwt_unref(jwt);
  free(named);
  free(nameless);
  EVP_PKEY_free(pkey);
}

static int key_error(EVP_PKEY *pkey, const char *algorithm) {
  na_jwt_key key;
  char error[128] = "";
  size_t n;
  unsigned char *der = public_der(pkey, &n);
  int rc = na_jwt_key_init(&key, "", algorithm, der, n, error, sizeof error);
  assert_true((rc != 0) == (error[0] != 0));
  if (!rc)
    na_jwt_key_clear(&key);
  OPENSSL_free(der);
  EVP_PKEY_free(pkey);
  return rc;
}

static void refuses_keys_that_no_token_has(void **state) {
  assert_int_equal(key_error(EVP_RSA_gen(1024), "RS256"), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("secp256k1"), ""), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("P-384"), "ES256"), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("P-256"), "RS256"), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("P-256"), "HS256"), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("P-256"), "none"), -EINVAL);
  assert_int_equal(key_error(EVP_PKEY_Q_keygen(NULL, NULL, "ED448"), ""), -EINVAL);
  assert_int_equal(key_error(EVP_PKEY_Q_keygen(NULL, NULL, "X25519"), ""), -EINVAL);
  assert_int_equal(key_error(EVP_EC_gen("P-256"), "ES256"), 0);
  na_jwt_key key;
  char error[128];
  assert_int_equal(na_jwt_key_init(&key, "", "", (const uint8_t *)"0", 1, error, sizeof error), -EINVAL);
  assert_int_equal(na_jwt_key_init(&key, "", "", (const uint8_t *)"", 0, error, sizeof error), -EINVAL);
}

typedef struct hostile {
  const char *header;
  const char *payload;
  enum na_jwt_status status;
} hostile;

#define ES "{\"alg\":\"ES256\"}"

static void refuses_what_is_no_token(void **state) {
  const hostile table[] = {
      {"{}", "{}", NA_JWT_HEADER_ALG},
      {"{\"alg\":256}", "{}", NA_JWT_HEADER_ALG},
      {"{\"alg\":null}", "{}", NA_JWT_HEADER_ALG},
      {"{\"alg\":\"none\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"None\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"HS256\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"es256\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"ES256K\"}", "{}", NA_JWT_HEADER_ALG_UNKNOWN},
      {"{\"alg\":\"ES256\",\"alg\":\"none\"}", "{}", NA_JWT_HEADER_JSON},
      {"{\"alg\":\"ES256\",\"kid\":1}", "{}", NA_JWT_HEADER_KID},
      {"{\"alg\":\"ES256\",\"crit\":[\"exp\"]}", "{}", NA_JWT_HEADER_CRIT},
      {"{\"alg\":\"ES256\",\"crit\":[]}", "{}", NA_JWT_HEADER_CRIT},
      {"[\"alg\"]", "{}", NA_JWT_HEADER_JSON},
      {"{\"alg\":\"ES256\"}x", "{}", NA_JWT_HEADER_JSON},
      {"{\"alg\":\"ES\\u0000256\"}", "{}", NA_JWT_HEADER_JSON},
      {ES, "[]", NA_JWT_PAYLOAD_JSON},
      {ES, "\"x\"", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"iss\":\"a\",\"iss\":\"b\"}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"a\":{\"b\":1,\"b\":2}}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"iss\":\"a\\u0000b\"}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"iss\":\"\xff\"}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"exp\":1e999}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"exp\":99999999999999999999}", NA_JWT_PAYLOAD_JSON},
      {ES, "{\"iss\":1}", NA_JWT_PAYLOAD_ISS},
      {ES, "{\"sub\":[]}", NA_JWT_PAYLOAD_SUB},
      {ES, "{\"jti\":{}}", NA_JWT_PAYLOAD_JTI},
      {ES, "{\"aud\":1}", NA_JWT_PAYLOAD_AUD},
      {ES, "{\"aud\":[\"a\",1]}", NA_JWT_PAYLOAD_AUD},
      {ES, "{\"exp\":\"1\"}", NA_JWT_PAYLOAD_EXP},
      {ES, "{\"exp\":-1}", NA_JWT_PAYLOAD_EXP_RANGE},
      {ES, "{\"nbf\":null}", NA_JWT_PAYLOAD_NBF},
      {ES, "{\"nbf\":1e30}", NA_JWT_PAYLOAD_NBF_RANGE},
      {ES, "{\"iat\":true}", NA_JWT_PAYLOAD_IAT},
      {ES, "{\"exp\":12.5,\"nbf\":0,\"aud\":[],\"iss\":\"\"}", NA_JWT_OK},
  };
  EVP_PKEY *pkey = make_key("ES256");
  for (size_t i = 0; i < COUNT(table); i++) {
    char *token = sign_parts(table[i].header, table[i].payload, "ES256", pkey);
    na_jwt *jwt;
    enum na_jwt_status status = na_jwt_parse(na_str_of(token), &jwt);
    if (status != table[i].status)
      fail_msg("%s %s: %s", table[i].header, table[i].payload, na_jwt_status_text(status));
    assert_true((jwt == NULL) == (status != NA_JWT_OK));
    na_jwt_unref(jwt);
    free(token);
  }
  EVP_PKEY_free(pkey);
}

static enum na_jwt_status parse_text(const char *text, size_t n) {
  na_jwt *jwt;
  enum na_jwt_status status = na_jwt_parse((na_str){text, (uint32_t)n}, &jwt);
  na_jwt_unref(jwt);
  return status;
}

static void refuses_wrong_forms(void **state) {
  const char *forms[] = {"", ".", "..", "a", "a.b", "a.b.", ".b.c", "a..c", "a.b.c.d", "...", "a.b.c."};
  for (size_t i = 0; i < COUNT(forms); i++)
    if (parse_text(forms[i], strlen(forms[i])) != NA_JWT_BAD_FORMAT)
      fail_msg("'%s' was taken", forms[i]);
  EVP_PKEY *pkey = make_key("ES256");
  char *token = sign("ES256", "{}", pkey);
  size_t n = strlen(token);
  for (size_t cut = 1; cut < n; cut++) /* ever less of it */
    assert_true(parse_text(token, n - cut) != NA_JWT_OK || verdict(token, pkey, "", "") == NA_JWT_OK);
  strcat(token, "=");
  assert_int_equal(parse_text(token, n + 1), NA_JWT_SIGNATURE_BASE64);
  token[n] = '\0';
  token[n - 1]++; /* the 512 bits of a signature leave four behind: they must be 0 */
  assert_int_equal(parse_text(token, n), NA_JWT_SIGNATURE_BASE64);
  free(token);
  EVP_PKEY_free(pkey);
  assert_int_equal(parse_text("e30=.e30.e30", 12), NA_JWT_HEADER_BASE64);
  assert_int_equal(parse_text("e3+.e30.e30", 11), NA_JWT_HEADER_BASE64);
}

static void bounds_size_and_depth(void **state) {
  EVP_PKEY *pkey = make_key("ES256");
  char payload[20000] = "{\"a\":";
  for (int i = 0; i < 31; i++)
    strcat(payload, "[");
  for (int i = 0; i < 31; i++)
    strcat(payload, "]");
  strcat(payload, "}");
  char *token = sign("ES256", payload, pkey);
  assert_int_equal(parse_text(token, strlen(token)), NA_JWT_OK);
  free(token);
  memset(payload + 5, '[', 10000);
  payload[10005] = '\0';
  token = sign("ES256", payload, pkey);
  assert_int_equal(parse_text(token, strlen(token)), NA_JWT_PAYLOAD_JSON);
  free(token);
  memset(payload + 5, ' ', 13000);
  strcpy(payload + 13005, "1}");
  token = sign("ES256", payload, pkey);
  assert_true(strlen(token) > NA_JWT_MAX_BYTES);
  assert_int_equal(parse_text(token, strlen(token)), NA_JWT_BAD_FORMAT);
  free(token);
  EVP_PKEY_free(pkey);
}

static void knows_when_and_for_whom(void **state) {
  EVP_PKEY *pkey = make_key("ES256");
  char *token = sign("ES256", "{\"nbf\":1000,\"exp\":2000,\"aud\":[\"x\",\"https://api.example.com/\"]}", pkey);
  na_jwt *jwt = parsed(token);
  assert_int_equal(na_jwt_check_time(jwt, 939, 60), NA_JWT_NOT_YET_VALID);
  assert_int_equal(na_jwt_check_time(jwt, 940, 60), NA_JWT_OK);
  assert_int_equal(na_jwt_check_time(jwt, 2060, 60), NA_JWT_OK);
  assert_int_equal(na_jwt_check_time(jwt, 2061, 60), NA_JWT_EXPIRED);
  char *audiences[] = {"y", "api.example.com"}, *others[] = {"y", "X", "api.example.com/x"};
  assert_true(na_jwt_is_for(jwt, audiences, 2));
  assert_false(na_jwt_is_for(jwt, others, 3));
  assert_true(na_jwt_is_for(jwt, NULL, 0));
  na_jwt_unref(jwt);
  free(token);
  token = sign("ES256", "{}", pkey);
  jwt = parsed(token);
  assert_int_equal(na_jwt_check_time(jwt, 1, 0), NA_JWT_OK);
  assert_false(na_jwt_is_for(jwt, audiences, 2));
  na_jwt_unref(jwt);
  free(token);
  EVP_PKEY_free(pkey);
}

static void remembers_a_bounded_number(void **state) {
  const unsigned char keys[NA_JWT_DIGEST] = {1}, other_keys[NA_JWT_DIGEST] = {2};
  unsigned char digest[NA_JWT_DIGEST], first[NA_JWT_DIGEST], second[NA_JWT_DIGEST];
  EVP_PKEY *pkey = make_key("ES256");
  char *token = sign("ES256", "{}", pkey), name[32];
  na_jwt *jwt = parsed(token);
  na_jwt_cache *cache;
  const uint32_t most = 1000;
  assert_int_equal(na_jwt_cache_new(most, 4 << 20, &cache), 0);
  assert_int_equal(na_jwt_cache_digest(cache, keys, na_str_of("0"), first), 0);
  assert_int_equal(na_jwt_cache_digest(cache, other_keys, na_str_of("0"), digest), 0);
  assert_memory_not_equal(first, digest, sizeof digest);
  uint32_t evicted = 0;
  for (int i = 0; i < (int)most + 10; i++) {
    snprintf(name, sizeof name, "%d", i);
    na_jwt_cache_digest(cache, keys, na_str_of(name), i == 1 ? second : digest);
    evicted += na_jwt_cache_add(cache, i == 1 ? second : digest, jwt);
    assert_ptr_equal(na_jwt_cache_find(cache, first), jwt); /* in use: it stays */
  }
  assert_int_equal(evicted, 10);
  assert_int_equal(na_jwt_cache_count(cache), most);
  assert_null(na_jwt_cache_find(cache, second));
  na_jwt_cache_drop(cache, first);
  assert_null(na_jwt_cache_find(cache, first));
  assert_int_equal(na_jwt_cache_count(cache), most - 1);
  na_jwt_cache_free(cache);
  assert_int_equal(na_jwt_cache_new(most, jwt->signed_part.n + jwt->signature_n, &cache), 0);
  assert_false(na_jwt_cache_add(cache, first, jwt));
  assert_true(na_jwt_cache_add(cache, digest, jwt)); /* room for one by its bytes */
  assert_int_equal(na_jwt_cache_count(cache), 1);
  na_jwt_cache_free(cache);
  assert_int_equal(jwt->refs, 1);
  na_jwt_unref(jwt);
  free(token);
  EVP_PKEY_free(pkey);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(verifies_each_algorithm),
      cmocka_unit_test(notices_each_change),
      cmocka_unit_test(binds_keys_to_their_algorithms),
      cmocka_unit_test(chooses_keys_by_kid),
      cmocka_unit_test(refuses_keys_that_no_token_has),
      cmocka_unit_test(refuses_what_is_no_token),
      cmocka_unit_test(refuses_wrong_forms),
      cmocka_unit_test(bounds_size_and_depth),
      cmocka_unit_test(knows_when_and_for_whom),
      cmocka_unit_test(remembers_a_bounded_number),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
