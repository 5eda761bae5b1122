/* SPDX-License-Identifier: Apache-2.0
 *
 * Signatures of tokens (RFC 7518 3, RFC 8037 3.1), by OpenSSL. A key verifies only with algorithms of its own kind: the
 * token's word for it (`alg`) chooses among those and nothing else.
 */
#include <errno.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jwt.h"

#define MIN_RSA_BITS 2048

typedef struct algorithm {
  int kind;          /* EVP_PKEY_* */
  const char *group; /* of elliptic curves, as OpenSSL names it */
  uint16_t coordinate;
  bool pss;
  const EVP_MD *(*digest)(void);
} algorithm;

static const algorithm algorithms[] = {
    [NA_JWT_RS256] = {EVP_PKEY_RSA, NULL, 0, false, EVP_sha256},
    [NA_JWT_RS384] = {EVP_PKEY_RSA, NULL, 0, false, EVP_sha384},
    [NA_JWT_RS512] = {EVP_PKEY_RSA, NULL, 0, false, EVP_sha512},
    [NA_JWT_PS256] = {EVP_PKEY_RSA, NULL, 0, true, EVP_sha256},
    [NA_JWT_PS384] = {EVP_PKEY_RSA, NULL, 0, true, EVP_sha384},
    [NA_JWT_PS512] = {EVP_PKEY_RSA, NULL, 0, true, EVP_sha512},
    [NA_JWT_ES256] = {EVP_PKEY_EC, "prime256v1", 32, false, EVP_sha256},
    [NA_JWT_ES384] = {EVP_PKEY_EC, "secp384r1", 48, false, EVP_sha384},
    [NA_JWT_ES512] = {EVP_PKEY_EC, "secp521r1", 66, false, EVP_sha512},
    [NA_JWT_EDDSA] = {EVP_PKEY_ED25519, NULL, 0, false, NULL},
};

static bool has_group(EVP_PKEY *pkey, const char *group) {
  char name[64];
  return EVP_PKEY_get_group_name(pkey, name, sizeof name, NULL) == 1 && strcmp(name, group) == 0;
}

static bool fits(EVP_PKEY *pkey, enum na_jwt_algorithm id) {
  const algorithm *wanted = &algorithms[id];
  return EVP_PKEY_get_base_id(pkey) == wanted->kind && (!wanted->group || has_group(pkey, wanted->group));
}

/* ---- keys ---- */

static int fail(char *error, size_t size, const char *why) {
  snprintf(error, size, "%s", why);
  ERR_clear_error();
  return -EINVAL;
}

static bool fits_any(EVP_PKEY *pkey) {
  for (int id = NA_JWT_RS256; id <= NA_JWT_EDDSA; id++)
    if (fits(pkey, (enum na_jwt_algorithm)id))
      return true;
  return false;
}

static int check_key(const na_jwt_key *key, char *error, size_t error_size) {
  if (!fits_any(key->pkey))
    return fail(error, error_size, "a key of a kind that tokens are not signed with");
  if (key->algorithm != NA_JWT_ANY && !fits(key->pkey, (enum na_jwt_algorithm)key->algorithm))
    return fail(error, error_size, "the algorithm does not fit the key");
  if (EVP_PKEY_get_base_id(key->pkey) == EVP_PKEY_RSA && EVP_PKEY_get_bits(key->pkey) < MIN_RSA_BITS)
    return fail(error, error_size, "an RSA key of less than 2048 bits");
  return 0;
}

int na_jwt_key_init(na_jwt_key *key, const char *kid, const char *name, const uint8_t *der, size_t n, char *error,
                    size_t error_size) {
  const unsigned char *p = der;
  *key = (na_jwt_key){0};
  if (name && *name && !(key->algorithm = (uint8_t)na_jwt_algorithm_of(na_str_of(name))))
    return fail(error, error_size, "an algorithm that is not supported");
  key->pkey = d2i_PUBKEY(NULL, &p, (long)n);
  if (!key->pkey || p != der + n) {
    na_jwt_key_clear(key);
    return fail(error, error_size, "not a SubjectPublicKeyInfo in DER");
  }
  int rc = check_key(key, error, error_size);
  if (!rc && kid && *kid && !(key->kid = strdup(kid)))
    rc = -ENOMEM;
  if (rc)
    na_jwt_key_clear(key);
  return rc;
}

void na_jwt_key_clear(na_jwt_key *key) {
  free(key->kid);
  EVP_PKEY_free(key->pkey);
  *key = (na_jwt_key){0};
}

/* ---- signatures ---- */

/* The DER form that OpenSSL wants of an ECDSA signature, which a token has as r and s side by side (RFC 7518 3.4).
 * NULL when the length is wrong; else to be freed by OPENSSL_free(). */
static unsigned char *ecdsa_der(const na_jwt *jwt, uint16_t coordinate, int *der_n) {
  unsigned char *der = NULL;
  if (jwt->signature_n != 2 * coordinate)
    return NULL;
  ECDSA_SIG *signature = ECDSA_SIG_new();
  BIGNUM *r = BN_bin2bn(jwt->signature, coordinate, NULL);
  BIGNUM *s = BN_bin2bn(jwt->signature + coordinate, coordinate, NULL);
  if (signature && r && s && ECDSA_SIG_set0(signature, r, s) == 1) {
    r = s = NULL; /* the signature's */
    *der_n = i2d_ECDSA_SIG(signature, &der);
  }
  BN_free(r);
  BN_free(s);
  ECDSA_SIG_free(signature);
  return der;
}

static bool verify_bytes(const na_jwt *jwt, const algorithm *how, EVP_PKEY *pkey, const unsigned char *signature,
                         size_t n) {
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  EVP_PKEY_CTX *options = NULL;
  bool good = ctx && EVP_DigestVerifyInit(ctx, &options, how->digest ? how->digest() : NULL, NULL, pkey) == 1;
  if (good && how->pss) /* RFC 7518 3.5: the salt is as long as the digest */
    good = EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING) == 1 &&
           EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST) == 1;
  good =
      good && EVP_DigestVerify(ctx, signature, n, (const unsigned char *)jwt->signed_part.p, jwt->signed_part.n) == 1;
  EVP_MD_CTX_free(ctx);
  ERR_clear_error();
  return good;
}

static bool verify(const na_jwt *jwt, EVP_PKEY *pkey) {
  const algorithm *how = &algorithms[jwt->algorithm];
  if (!how->coordinate)
    return verify_bytes(jwt, how, pkey, jwt->signature, jwt->signature_n);
  int n = 0;
  unsigned char *der = ecdsa_der(jwt, how->coordinate, &n);
  bool good = der && n > 0 && verify_bytes(jwt, how, pkey, der, (size_t)n);
  OPENSSL_free(der);
  return good;
}

static bool is_candidate(const na_jwt *jwt, const na_jwt_key *key) {
  if (jwt->has_kid && key->kid && !na_str_eq(jwt->kid, key->kid))
    return false;
  if (key->algorithm != NA_JWT_ANY && key->algorithm != jwt->algorithm)
    return false;
  return fits(key->pkey, (enum na_jwt_algorithm)jwt->algorithm);
}

enum na_jwt_status na_jwt_verify(const na_jwt *jwt, const na_jwt_key *keys, uint32_t n) {
  bool tried = false;
  if (n == 0)
    return NA_JWT_NO_KEYS;
  for (uint32_t i = 0; i < n; i++) {
    if (!is_candidate(jwt, &keys[i]))
      continue;
    tried = true;
    if (verify(jwt, keys[i].pkey))
      return NA_JWT_OK;
  }
  return tried ? NA_JWT_SIGNATURE : NA_JWT_NO_KEY;
}
