/* SPDX-License-Identifier: Apache-2.0 */
#include "token_effects.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "http_request.h"
#include "json.h"
#include "worker.h"

#define FILTER "envoy.filters.http.jwt_authn"

static int edit(na_subject *subject, enum na_edit_op op, const char *name, na_str value) {
  if (!subject->head)
    return 0;
  return na_head_edit(&subject->authz->edits, subject->head, op, na_str_of(name), value);
}

/* ---- before ---- */

static int take_away(na_subject *subject, const char *name) {
  na_str view = na_str_of(name);
  if (!view.n || !na_h1_find(subject->facts.request, view))
    return 0;
  return edit(subject, NA_EDIT_REMOVE, name, (na_str){0});
}

int na_token_sanitize(na_subject *subject, const na_tokens *tokens) {
  int rc = 0;
  for (uint32_t i = 0; i < tokens->nproviders && !rc; i++) {
    const na_provider *provider = &tokens->providers[i];
    rc = take_away(subject, provider->payload_header);
    for (uint32_t j = 0; j < provider->nclaims && !rc; j++)
      rc = take_away(subject, provider->claims[j].header);
  }
  return rc;
}

/* ---- headers ---- */

static int send_payload(na_subject *subject, const na_provider *provider, const na_jwt *jwt) {
  na_str payload = jwt->payload_part;
  uint32_t padding = provider->pad_payload ? (4 - payload.n % 4) % 4 : 0;
  if (!*provider->payload_header)
    return 0;
  if (!padding)
    return edit(subject, NA_EDIT_ADD, provider->payload_header, payload);
  char *padded = malloc(payload.n + padding);
  if (!padded)
    return -ENOMEM;
  memcpy(padded, payload.p, payload.n);
  memset(padded + payload.n, '=', padding);
  int rc = edit(subject, NA_EDIT_ADD, provider->payload_header, (na_str){padded, payload.n + padding});
  free(padded);
  return rc;
}

/* A list or object as Envoy sends it: its JSON, the names of objects in order, in base64 (RFC 4648 4). */
static int send_structure(na_subject *subject, const char *header, const json_t *value) {
  char *json = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
  size_t n = json ? strlen(json) : 0;
  unsigned char *encoded = json ? malloc(n / 3 * 4 + 5) : NULL;
  int rc = -ENOMEM;
  if (encoded) {
    int length = EVP_EncodeBlock(encoded, (const unsigned char *)json, (int)n);
    rc = edit(subject, NA_EDIT_ADD, header, (na_str){(const char *)encoded, (uint32_t)length});
  }
  free(encoded);
  free(json);
  return rc;
}

/* What cannot be in a header is not sent. */
static int send_claim(na_subject *subject, const na_claim_header *claim, const na_jwt *jwt) {
  char number[NA_JSON_NUMBER_BYTES];
  na_str text;
  const json_t *value = na_json_dotted(jwt->payload, claim->claim);
  if (json_is_array(value) || json_is_object(value))
    return send_structure(subject, claim->header, value);
  if (!value || !na_json_text(value, number, &text) || !text.n)
    return 0;
  int rc = edit(subject, NA_EDIT_ADD, claim->header, text);
  return rc == -EINVAL ? 0 : rc;
}

/* ---- metadata ---- */

/* The words of a text as a list. */
static json_t *split_words(const char *text, size_t n) {
  json_t *list = json_array();
  const char *end = text + n;
  for (const char *p = text; list && p < end;) {
    const char *space = memchr(p, ' ', (size_t)(end - p));
    size_t word = (size_t)((space ? space : end) - p);
    if (word && json_array_append_new(list, json_stringn(p, word))) {
      json_decref(list);
      return NULL;
    }
    p += word + 1;
  }
  return list;
}

/* The payload as metadata has it; a new reference, or NULL for want of memory. */
static json_t *payload_for_metadata(const na_provider *provider, const na_jwt *jwt) {
  json_t *payload = provider->split_claims.n ? json_copy(jwt->payload) : json_incref(jwt->payload);
  for (uint32_t i = 0; payload && i < provider->split_claims.n; i++) {
    const char *claim = provider->split_claims.items[i];
    const json_t *value = json_object_get(payload, claim);
    if (!json_is_string(value))
      continue;
    if (json_object_set_new(payload, claim, split_words(json_string_value(value), json_string_length(value)))) {
      json_decref(payload);
      return NULL;
    }
  }
  return payload;
}

static int tell_later_stages(na_subject *subject, const na_provider *provider, const na_jwt *jwt) {
  if (!subject->authz || !*provider->metadata_key)
    return 0;
  json_t *payload = payload_for_metadata(provider, jwt);
  return payload ? na_metadata_set(&subject->authz->metadata, FILTER, provider->metadata_key, payload) : -ENOMEM;
}

/* ---- the token itself ---- */

/* Cookies stay, as with Envoy. */
static int take_out(na_subject *subject, const na_token_place *place) {
  if (!subject->head || place->kind == NA_TOKEN_COOKIE)
    return 0;
  if (place->kind == NA_TOKEN_HEADER)
    return edit(subject, NA_EDIT_REMOVE, place->name, (na_str){0});
  int rc = na_head_remove_parameter(&subject->authz->edits, subject->head, na_str_of(place->name));
  if (!rc && subject->request && subject->request->texts.path.n) /* nor is it for access logs */
    subject->request->texts.path = subject->head->request.path_query;
  return rc;
}

int na_token_effects(na_subject *subject, const na_provider *provider, const na_token_place *place, const na_jwt *jwt) {
  int rc = send_payload(subject, provider, jwt);
  for (uint32_t i = 0; i < provider->nclaims && !rc; i++)
    rc = send_claim(subject, &provider->claims[i], jwt);
  if (!rc)
    rc = tell_later_stages(subject, provider, jwt);
  if (!rc && !provider->forward)
    rc = take_out(subject, place);
  return rc;
}
