/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens as strangers write them: the text as it comes, and as the payload of a token that is otherwise in order.
 */
#include <stdlib.h>
#include <string.h>

#include "base64url.h"
#include "json.h"
#include "jwt.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static bool within(na_str part, const na_jwt *jwt, size_t n) {
  return part.p >= jwt->text && part.p + part.n <= jwt->text + n;
}

static void check_token(na_str text) {
  na_jwt *jwt;
  enum na_jwt_status status = na_jwt_parse(text, &jwt);
  CHECK((jwt != NULL) == (status == NA_JWT_OK));
  if (!jwt)
    return;
  CHECK(text.n <= NA_JWT_MAX_BYTES && jwt->algorithm != NA_JWT_ANY);
  CHECK(within(jwt->signed_part, jwt, text.n) && within(jwt->payload_part, jwt, text.n));
  CHECK(json_is_object(jwt->header) && json_is_object(jwt->payload) && !json_object_get(jwt->header, "crit"));
  CHECK(na_jwt_verify(jwt, NULL, 0) == NA_JWT_NO_KEYS);
  char *audience[] = {"a"};
  (void)na_jwt_is_for(jwt, audience, 1);
  (void)na_json_dotted(jwt->payload, "a.b.c");
  na_jwt_unref(jwt);
}

static void check_payload(const char *text, size_t n) {
  json_t *object = na_json_object(text, n);
  CHECK(!object || json_is_object(object));
  json_decref(object);
}

/* What was decoded has one spelling: the length tells. */
static void check_base64url(na_str text) {
  unsigned char *out = malloc(NA_BASE64URL_DECODED(text.n));
  long decoded = na_base64url_decode(text, out);
  CHECK(decoded < 0 || ((size_t)decoded * 8 + 5) / 6 == text.n);
  free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  char *copy = malloc(n ? n : 1);
  if (n)
    memcpy(copy, data, n);
  na_str text = {copy, (uint32_t)n};
  check_token(text);
  check_base64url(text);
  check_payload(copy, n);
  free(copy);
  return 0;
}
