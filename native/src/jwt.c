/* SPDX-License-Identifier: Apache-2.0 */
#include "jwt.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base64url.h"
#include "json.h"

const char *na_jwt_status_text(enum na_jwt_status status) {
  static const char *const texts[] = {
#define X(constant, text, detail) text,
      NA_JWT_STATUS_LIST(X)
#undef X
  };
  assert(status < NA_JWT_STATUS_COUNT);
  return texts[status];
}

const char *na_jwt_status_detail(enum na_jwt_status status) {
  static const char *const details[] = {
#define X(constant, text, detail) "jwt_authn_access_denied{" detail "}",
      NA_JWT_STATUS_LIST(X)
#undef X
  };
  assert(status < NA_JWT_STATUS_COUNT);
  return details[status];
}

enum na_jwt_algorithm na_jwt_algorithm_of(na_str name) {
  static const char *const names[] = {
      [NA_JWT_RS256] = "RS256", [NA_JWT_RS384] = "RS384", [NA_JWT_RS512] = "RS512", [NA_JWT_PS256] = "PS256",
      [NA_JWT_PS384] = "PS384", [NA_JWT_PS512] = "PS512", [NA_JWT_ES256] = "ES256", [NA_JWT_ES384] = "ES384",
      [NA_JWT_ES512] = "ES512", [NA_JWT_EDDSA] = "EdDSA",
  };
  for (unsigned i = NA_JWT_RS256; i < sizeof names / sizeof *names; i++)
    if (na_str_eq(name, names[i]))
      return (enum na_jwt_algorithm)i;
  return NA_JWT_ANY;
}

/* ---- parsing ---- */

static na_str string_of(const json_t *value) {
  return (na_str){json_string_value(value), (uint32_t)json_string_length(value)};
}

/* Split at two dots into three parts that are not empty. */
static bool split(na_str token, na_str parts[3]) {
  const char *p = token.p, *end = token.p + token.n;
  for (int i = 0; i < 3; i++) {
    const char *dot = memchr(p, '.', (size_t)(end - p));
    if ((dot == NULL) != (i == 2))
      return false;
    parts[i] = (na_str){p, (uint32_t)((dot ? dot : end) - p)};
    if (!parts[i].n)
      return false;
    p += parts[i].n + 1;
  }
  return true;
}

/* Decode a part that is a JSON object. */
static enum na_jwt_status parse_object(na_str part, enum na_jwt_status bad_base64, enum na_jwt_status bad_json,
                                       json_t **out) {
  unsigned char *bytes = malloc(NA_BASE64URL_DECODED(part.n));
  if (!bytes)
    return NA_JWT_NO_MEMORY;
  long n = na_base64url_decode(part, bytes);
  *out = n < 0 ? NULL : na_json_object((const char *)bytes, (size_t)n);
  free(bytes);
  if (n < 0)
    return bad_base64;
  return *out ? NA_JWT_OK : bad_json;
}

static enum na_jwt_status read_header(na_jwt *jwt) {
  const json_t *alg = json_object_get(jwt->header, "alg");
  const json_t *kid = json_object_get(jwt->header, "kid");
  if (!json_is_string(alg))
    return NA_JWT_HEADER_ALG;
  jwt->algorithm = (uint8_t)na_jwt_algorithm_of(string_of(alg));
  if (jwt->algorithm == NA_JWT_ANY)
    return NA_JWT_HEADER_ALG_UNKNOWN;
  if (kid && !json_is_string(kid))
    return NA_JWT_HEADER_KID;
  jwt->kid = kid ? string_of(kid) : (na_str){0};
  jwt->has_kid = jwt->kid.n > 0;
  /* RFC 7515 4.1.11: what must be understood is not. */
  return json_object_get(jwt->header, "crit") ? NA_JWT_HEADER_CRIT : NA_JWT_OK;
}

static enum na_jwt_status read_seconds(const json_t *payload, const char *name, enum na_jwt_status not_integer,
                                       enum na_jwt_status out_of_range, uint64_t *out) {
  const json_t *value = json_object_get(payload, name);
  *out = 0;
  if (!value)
    return NA_JWT_OK;
  if (!json_is_number(value))
    return not_integer;
  double seconds = json_number_value(value);
  if (!(seconds >= 0 && seconds < 9.2e18))
    return out_of_range;
  *out = json_is_integer(value) ? (uint64_t)json_integer_value(value) : (uint64_t)seconds;
  return NA_JWT_OK;
}

static bool is_audience(const json_t *value) {
  if (!value || json_is_string(value))
    return true;
  if (!json_is_array(value))
    return false;
  for (size_t i = 0; i < json_array_size(value); i++)
    if (!json_is_string(json_array_get(value, i)))
      return false;
  return true;
}

static bool is_string_or_absent(const json_t *object, const char *name) {
  const json_t *value = json_object_get(object, name);
  return !value || json_is_string(value);
}

static enum na_jwt_status read_payload(na_jwt *jwt) {
  const json_t *payload = jwt->payload;
  uint64_t issued;
  if (!is_string_or_absent(payload, "iss"))
    return NA_JWT_PAYLOAD_ISS;
  if (!is_string_or_absent(payload, "sub"))
    return NA_JWT_PAYLOAD_SUB;
  if (!is_string_or_absent(payload, "jti"))
    return NA_JWT_PAYLOAD_JTI;
  if (!is_audience(json_object_get(payload, "aud")))
    return NA_JWT_PAYLOAD_AUD;
  const json_t *issuer = json_object_get(payload, "iss");
  jwt->issuer = issuer ? string_of(issuer) : (na_str){0};
  enum na_jwt_status status = read_seconds(payload, "iat", NA_JWT_PAYLOAD_IAT, NA_JWT_PAYLOAD_IAT_RANGE, &issued);
  if (!status)
    status = read_seconds(payload, "nbf", NA_JWT_PAYLOAD_NBF, NA_JWT_PAYLOAD_NBF_RANGE, &jwt->not_before_s);
  if (!status)
    status = read_seconds(payload, "exp", NA_JWT_PAYLOAD_EXP, NA_JWT_PAYLOAD_EXP_RANGE, &jwt->expires_s);
  return status;
}

/* A token with its text and views into it. */
static na_jwt *jwt_new(na_str token, const na_str parts[3]) {
  size_t signature_size = NA_BASE64URL_DECODED(parts[2].n);
  na_jwt *jwt = calloc(1, sizeof *jwt + token.n + signature_size);
  if (!jwt)
    return NULL;
  jwt->refs = 1;
  memcpy(jwt->text, token.p, token.n);
  jwt->signed_part = (na_str){jwt->text, parts[0].n + 1 + parts[1].n};
  jwt->payload_part = (na_str){jwt->text + parts[0].n + 1, parts[1].n};
  jwt->signature = (unsigned char *)jwt->text + token.n;
  return jwt;
}

static enum na_jwt_status fill(na_jwt *jwt, const na_str parts[3]) {
  enum na_jwt_status status = parse_object(parts[0], NA_JWT_HEADER_BASE64, NA_JWT_HEADER_JSON, &jwt->header);
  if (!status)
    status = read_header(jwt);
  if (!status)
    status = parse_object(parts[1], NA_JWT_PAYLOAD_BASE64, NA_JWT_PAYLOAD_JSON, &jwt->payload);
  if (!status)
    status = read_payload(jwt);
  if (status)
    return status;
  long n = na_base64url_decode(parts[2], jwt->signature);
  if (n < 0 || n > NA_JWT_MAX_SIGNATURE)
    return NA_JWT_SIGNATURE_BASE64;
  jwt->signature_n = (uint16_t)n;
  return NA_JWT_OK;
}

enum na_jwt_status na_jwt_parse(na_str token, na_jwt **out) {
  na_str parts[3];
  *out = NULL;
  if (token.n > NA_JWT_MAX_BYTES || !split(token, parts))
    return NA_JWT_BAD_FORMAT;
  na_jwt *jwt = jwt_new(token, parts);
  if (!jwt)
    return NA_JWT_NO_MEMORY;
  enum na_jwt_status status = fill(jwt, parts);
  if (status)
    na_jwt_unref(jwt);
  else
    *out = jwt;
  return status;
}

na_jwt *na_jwt_ref(na_jwt *jwt) {
  jwt->refs++;
  return jwt;
}

void na_jwt_unref(na_jwt *jwt) {
  if (!jwt || --jwt->refs)
    return;
  json_decref(jwt->header);
  json_decref(jwt->payload);
  free(jwt);
}

/* ---- claims ---- */

enum na_jwt_status na_jwt_check_time(const na_jwt *jwt, uint64_t now_s, uint32_t skew_s) {
  if (now_s + skew_s < jwt->not_before_s)
    return NA_JWT_NOT_YET_VALID;
  if (jwt->expires_s && now_s > jwt->expires_s + skew_s)
    return NA_JWT_EXPIRED;
  return NA_JWT_OK;
}

static na_str bare_audience(na_str text) {
  static const char *const schemes[] = {"https://", "http://"};
  for (int i = 0; i < 2; i++) {
    uint32_t n = (uint32_t)strlen(schemes[i]);
    if (text.n >= n && memcmp(text.p, schemes[i], n) == 0) {
      text = (na_str){text.p + n, text.n - n};
      break;
    }
  }
  if (text.n && text.p[text.n - 1] == '/')
    text.n--;
  return text;
}

static bool is_among(const json_t *value, char *const *audiences, uint32_t n) {
  na_str audience = bare_audience(string_of(value));
  for (uint32_t i = 0; i < n; i++) {
    na_str wanted = bare_audience(na_str_of(audiences[i]));
    if (wanted.n == audience.n && memcmp(wanted.p, audience.p, wanted.n) == 0)
      return true;
  }
  return false;
}

bool na_jwt_is_for(const na_jwt *jwt, char *const *audiences, uint32_t n) {
  const json_t *aud = json_object_get(jwt->payload, "aud");
  if (n == 0)
    return true;
  if (json_is_string(aud))
    return is_among(aud, audiences, n);
  for (size_t i = 0; i < json_array_size(aud); i++)
    if (is_among(json_array_get(aud, i), audiences, n))
      return true;
  return false;
}
