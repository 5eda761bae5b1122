/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON web tokens (RFC 7519) in compact form, signed (RFC 7515): parsed by jwt.c, verified by jwt_keys.c, remembered by
 * jwt_cache.c. Nothing here knows of requests.
 *
 * Stricter than the RFCs ask: base64url has one spelling, JSON no duplicate names, `crit` is refused whatever it names,
 * and there are no symmetric algorithms.
 */
#ifndef NODEAGENT_JWT_H
#define NODEAGENT_JWT_H

#include <jansson.h>
#include <openssl/types.h>

#include "http1.h"
#include "list.h"

/* A longer token is of bad format. */
#define NA_JWT_MAX_BYTES 16384
/* An RSA key of 4096 bits signs in 512; one of 16384, OpenSSL's largest, in four times that. */
#define NA_JWT_MAX_SIGNATURE 2048

/* X(constant, what Envoy answers, the same as response code details) */
#define NA_JWT_STATUS_LIST(X)                                                                                          \
  X(OK, "OK", "OK")                                                                                                    \
  X(MISSING, "Jwt is missing", "Jwt_is_missing")                                                                       \
  X(NOT_YET_VALID, "Jwt not yet valid", "Jwt_not_yet_valid")                                                           \
  X(EXPIRED, "Jwt is expired", "Jwt_is_expired")                                                                       \
  X(BAD_FORMAT, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",                     \
    "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections")                                 \
  X(HEADER_BASE64, "Jwt header is an invalid Base64url encoded", "Jwt_header_is_an_invalid_Base64url_encoded")         \
  X(HEADER_JSON, "Jwt header is an invalid JSON", "Jwt_header_is_an_invalid_JSON")                                     \
  X(HEADER_ALG, "Jwt header [alg] field is required and must be a string",                                             \
    "Jwt_header_[alg]_field_is_required_and_must_be_a_string")                                                         \
  X(HEADER_ALG_UNKNOWN, "Jwt header [alg] is not supported", "Jwt_header_[alg]_is_not_supported")                      \
  X(HEADER_KID, "Jwt header [kid] field is not a string", "Jwt_header_[kid]_field_is_not_a_string")                    \
  X(HEADER_CRIT, "Jwt header [crit] is not supported", "Jwt_header_[crit]_is_not_supported")                           \
  X(PAYLOAD_BASE64, "Jwt payload is an invalid Base64url encoded", "Jwt_payload_is_an_invalid_Base64url_encoded")      \
  X(PAYLOAD_JSON, "Jwt payload is an invalid JSON", "Jwt_payload_is_an_invalid_JSON")                                  \
  X(PAYLOAD_ISS, "Jwt payload [iss] field is not a string", "Jwt_payload_[iss]_field_is_not_a_string")                 \
  X(PAYLOAD_SUB, "Jwt payload [sub] field is not a string", "Jwt_payload_[sub]_field_is_not_a_string")                 \
  X(PAYLOAD_IAT, "Jwt payload [iat] field is not an integer", "Jwt_payload_[iat]_field_is_not_an_integer")             \
  X(PAYLOAD_NBF, "Jwt payload [nbf] field is not an integer", "Jwt_payload_[nbf]_field_is_not_an_integer")             \
  X(PAYLOAD_EXP, "Jwt payload [exp] field is not an integer", "Jwt_payload_[exp]_field_is_not_an_integer")             \
  X(PAYLOAD_IAT_RANGE, "Jwt payload [iat] field is not a positive 64 bit integer",                                     \
    "Jwt_payload_[iat]_field_is_not_a_positive_64_bit_integer")                                                        \
  X(PAYLOAD_NBF_RANGE, "Jwt payload [nbf] field is not a positive 64 bit integer",                                     \
    "Jwt_payload_[nbf]_field_is_not_a_positive_64_bit_integer")                                                        \
  X(PAYLOAD_EXP_RANGE, "Jwt payload [exp] field is not a positive 64 bit integer",                                     \
    "Jwt_payload_[exp]_field_is_not_a_positive_64_bit_integer")                                                        \
  X(PAYLOAD_JTI, "Jwt payload [jti] field is not a string", "Jwt_payload_[jti]_field_is_not_a_string")                 \
  X(PAYLOAD_AUD, "Jwt payload [aud] field is not a string or string list",                                             \
    "Jwt_payload_[aud]_field_is_not_a_string_or_string_list")                                                          \
  X(SIGNATURE_BASE64, "Jwt signature is an invalid Base64url encoded",                                                 \
    "Jwt_signature_is_an_invalid_Base64url_encoded")                                                                   \
  X(UNKNOWN_ISSUER, "Jwt issuer is not configured", "Jwt_issuer_is_not_configured")                                    \
  X(AUDIENCE, "Audiences in Jwt are not allowed", "Audiences_in_Jwt_are_not_allowed")                                  \
  X(SIGNATURE, "Jwt verification fails", "Jwt_verification_fails")                                                     \
  X(MULTIPLE, "Found multiple Jwt tokens", "Found_multiple_Jwt_tokens")                                                \
  X(NO_KEYS, "Jwks doesn't have any valid public key", "Jwks_doesn't_have_any_valid_public_key")                       \
  X(NO_KEY, "Jwks doesn't have key to match kid or alg from Jwt",                                                      \
    "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt")                                                              \
  X(NO_MEMORY, "out of memory", "out_of_memory")

enum na_jwt_status {
#define X(constant, text, detail) NA_JWT_##constant,
  NA_JWT_STATUS_LIST(X)
#undef X
      NA_JWT_STATUS_COUNT
};

/* What the client reads. */
const char *na_jwt_status_text(enum na_jwt_status status);
/* `jwt_authn_access_denied{...}`; static. */
const char *na_jwt_status_detail(enum na_jwt_status status);

enum na_jwt_algorithm {
  NA_JWT_ANY, /* of a key: each that fits */
  NA_JWT_RS256,
  NA_JWT_RS384,
  NA_JWT_RS512,
  NA_JWT_PS256,
  NA_JWT_PS384,
  NA_JWT_PS512,
  NA_JWT_ES256,
  NA_JWT_ES384,
  NA_JWT_ES512,
  NA_JWT_EDDSA,
};

/* NA_JWT_ANY for a name that is none. */
enum na_jwt_algorithm na_jwt_algorithm_of(na_str name);

/* A parsed token; immutable, of one worker. Parsed says nothing about verified. */
typedef struct na_jwt {
  uint32_t refs;
  uint8_t algorithm; /* enum na_jwt_algorithm */
  bool has_kid;
  na_str kid;
  na_str issuer;   /* empty: none */
  json_t *header;  /* object */
  json_t *payload; /* object */
  uint64_t not_before_s;
  uint64_t expires_s; /* 0: never */
  na_str signed_part; /* header and payload, as sent */
  na_str payload_part;
  uint16_t signature_n;
  unsigned char *signature;
  char text[]; /* the token, then its signature */
} na_jwt;

enum na_jwt_status na_jwt_parse(na_str token, na_jwt **out);
na_jwt *na_jwt_ref(na_jwt *jwt);
void na_jwt_unref(na_jwt *jwt);
/* Whether it holds now (seconds since 1970), give or take `skew_s`. */
enum na_jwt_status na_jwt_check_time(const na_jwt *jwt, uint64_t now_s, uint32_t skew_s);
/* Whether it is meant for one of n audiences; for none: for anybody. As Envoy, a scheme in front and a slash at the end
 * do not count. */
bool na_jwt_is_for(const na_jwt *jwt, char *const *audiences, uint32_t n);

/* ---- jwt_keys.c ---- */

/* A public key of an issuer. */
typedef struct na_jwt_key {
  char *kid;         /* NULL: any */
  uint8_t algorithm; /* enum na_jwt_algorithm */
  EVP_PKEY *pkey;
} na_jwt_key;

/* From SubjectPublicKeyInfo (RFC 5280 4.1.2.7). `kid` and `algorithm` may be empty. -EINVAL with a message: no such
 * key, a kind that no algorithm has, an RSA key below 2048 bits (RFC 7518 3.3), an algorithm that does not fit. */
int na_jwt_key_init(na_jwt_key *key, const char *kid, const char *algorithm, const uint8_t *der, size_t n, char *error,
                    size_t error_size);
void na_jwt_key_clear(na_jwt_key *key);
/* Whether one of the keys made the signature. */
enum na_jwt_status na_jwt_verify(const na_jwt *jwt, const na_jwt_key *keys, uint32_t n);

/* ---- jwt_cache.c ---- */

#define NA_JWT_DIGEST 32

/* Verified tokens of a worker, by the digest of the token and of the keys that it was verified with. The one not used
 * for longest goes. */
typedef struct na_jwt_cache na_jwt_cache;

/* `tokens` and bytes of their text, at most. */
int na_jwt_cache_new(uint32_t tokens, uint32_t bytes, na_jwt_cache **out);
void na_jwt_cache_free(na_jwt_cache *cache);
/* The digest of a token and keys, the latter given by their own digest. -ENOMEM. */
int na_jwt_cache_digest(na_jwt_cache *cache, const unsigned char keys[NA_JWT_DIGEST], na_str token,
                        unsigned char out[NA_JWT_DIGEST]);
/* The token, or NULL; no reference is taken. */
na_jwt *na_jwt_cache_find(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]);
/* Keep a verified token. True when another one had to go for it. */
bool na_jwt_cache_add(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST], na_jwt *jwt);
/* Forget it: it has expired. */
void na_jwt_cache_drop(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]);
uint32_t na_jwt_cache_count(const na_jwt_cache *cache);

#endif
