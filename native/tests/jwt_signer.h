/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens of each algorithm, signed by OpenSSL with keys made for the test.
 */
#ifndef NODEAGENT_JWT_SIGNER_H
#define NODEAGENT_JWT_SIGNER_H

#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jwt.h"

#define SIGNED_TOKEN_BYTES 32768

/* Append base64url of n bytes to text. */
static inline void append_base64url(char *text, const void *bytes, size_t n) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const unsigned char *p = bytes;
  text += strlen(text);
  for (size_t bits = 0; bits < n * 8; bits += 6) {
    unsigned at = (unsigned)(bits / 8), shift = bits % 8;
    unsigned word = (unsigned)p[at] << 8 | (at + 1 < n ? p[at + 1] : 0);
    *text++ = digits[word >> (10 - shift) & 63];
  }
  *text = '\0';
}

static inline EVP_PKEY *make_key(const char *algorithm) {
  if (algorithm[0] == 'R' || algorithm[0] == 'P')
    return EVP_RSA_gen(2048);
  if (strcmp(algorithm, "EdDSA") == 0)
    return EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
  return EVP_EC_gen(strcmp(algorithm, "ES256") == 0 ? "P-256" : strcmp(algorithm, "ES384") == 0 ? "P-384" : "P-521");
}

static inline const EVP_MD *digest_of(const char *algorithm) {
  switch (algorithm[2]) {
  case '3':
    return EVP_sha384();
  case '5':
    return EVP_sha512();
  default:
    return strcmp(algorithm, "EdDSA") == 0 ? NULL : EVP_sha256();
  }
}

/* r and s side by side, from the DER form. */
static inline size_t raw_ecdsa(unsigned char *signature, size_t n, EVP_PKEY *key) {
  const unsigned char *p = signature;
  ECDSA_SIG *parsed = d2i_ECDSA_SIG(NULL, &p, (long)n);
  int coordinate = (EVP_PKEY_get_bits(key) + 7) / 8;
  BN_bn2binpad(ECDSA_SIG_get0_r(parsed), signature, coordinate);
  BN_bn2binpad(ECDSA_SIG_get0_s(parsed), signature + coordinate, coordinate);
  ECDSA_SIG_free(parsed);
  return (size_t)coordinate * 2;
}

/* The token of a header and a payload in JSON, whatever they say. `algorithm` is how it is signed in truth. */
static inline char *sign_parts(const char *header, const char *payload, const char *algorithm, EVP_PKEY *key) {
  char *token = calloc(1, SIGNED_TOKEN_BYTES);
  unsigned char signature[1024];
  size_t n = sizeof signature;
  append_base64url(token, header, strlen(header));
  strcat(token, ".");
  append_base64url(token, payload, strlen(payload));
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  EVP_PKEY_CTX *options;
  EVP_DigestSignInit(ctx, &options, digest_of(algorithm), NULL, key);
  if (algorithm[0] == 'P') {
    EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING);
    EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST);
  }
  EVP_DigestSign(ctx, signature, &n, (unsigned char *)token, strlen(token));
  EVP_MD_CTX_free(ctx);
  if (algorithm[0] == 'E' && algorithm[1] == 'S')
    n = raw_ecdsa(signature, n, key);
  strcat(token, ".");
  append_base64url(token, signature, n);
  return token;
}

static inline char *sign(const char *algorithm, const char *payload, EVP_PKEY *key) {
  char header[128];
  snprintf(header, sizeof header, "{\"typ\":\"JWT\",\"alg\":\"%s\"}", algorithm);
  return sign_parts(header, payload, algorithm, key);
}

/* SubjectPublicKeyInfo; to be freed by OPENSSL_free(). */
static inline unsigned char *public_der(EVP_PKEY *key, size_t *n) {
  unsigned char *der = NULL;
  *n = (size_t)i2d_PUBKEY(key, &der);
  return der;
}

#endif
