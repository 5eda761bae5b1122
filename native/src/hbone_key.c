/* SPDX-License-Identifier: Apache-2.0
 *
 * A key is: workload id, address, port; then the texts of the place with their NULs, as many as there are.
 */
#include "hbone_key.h"

#include <stdlib.h>

#define HEAD (sizeof(uint32_t) + 16 + sizeof(uint16_t))

/* The texts of a key; how many. */
static int texts_of(const na_via *via, const char *texts[4]) {
  if (!via->inner) {
    texts[0] = via->identities;
    return 1;
  }
  texts[0] = via->inner;
  texts[1] = via->identities;
  texts[2] = via->authority ? via->authority : "";
  texts[3] = via->network ? via->network : "";
  return 4;
}

static char *put(char *at, const void *bytes, size_t n) {
  memcpy(at, bytes, n);
  return at + n;
}

char *na_hbone_key_make(const na_hbone_dial *dial, size_t *n) {
  const na_via *via = dial->via;
  const char *texts[4];
  int count = texts_of(via, texts);
  *n = HEAD;
  for (int i = 0; i < count; i++)
    *n += strlen(texts[i]) + 1;
  char *key = malloc(*n);
  if (!key)
    return NULL;
  char *at = put(key, &dial->workload->id, sizeof dial->workload->id);
  at = put(at, na_ip_is_any(via->address) ? dial->remote->ip : via->address, 16);
  at = put(at, &via->port, sizeof via->port);
  for (int i = 0; i < count; i++)
    at = put(at, texts[i], strlen(texts[i]) + 1);
  return key;
}

static const char *next_text(const char *text, const char *end) {
  const char *next = text ? text + strlen(text) + 1 : end;
  return next < end ? next : NULL;
}

void na_hbone_key_read(const char *key, size_t n, na_hbone_place *out) {
  const char *end = key + n;
  memcpy(out->address.ip, key + sizeof(uint32_t), 16);
  memcpy(&out->address.port, key + sizeof(uint32_t) + 16, sizeof out->address.port);
  out->identities = key + HEAD;
  out->outer = next_text(out->identities, end);
  out->authority = next_text(out->outer, end);
  out->network = next_text(out->authority, end);
}
