/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "jwt.h"

#define MOST_BUCKETS 65536

typedef struct entry {
  struct entry *next; /* in its bucket */
  na_link used;       /* cache->used: the one used last comes first */
  na_jwt *jwt;
  uint32_t bytes;
  unsigned char digest[NA_JWT_DIGEST];
} entry;

struct na_jwt_cache {
  entry **buckets;
  uint32_t mask; /* their number, a power of two, less one */
  uint32_t max_tokens;
  uint32_t max_bytes;
  na_link used;
  uint32_t count;
  uint32_t bytes;
  EVP_MD_CTX *context;
};

int na_jwt_cache_new(uint32_t tokens, uint32_t bytes, na_jwt_cache **out) {
  na_jwt_cache *cache = calloc(1, sizeof *cache);
  if (!cache)
    return -ENOMEM;
  uint32_t buckets = 1;
  while (buckets < tokens && buckets < MOST_BUCKETS)
    buckets *= 2;
  cache->mask = buckets - 1;
  cache->max_tokens = tokens;
  cache->max_bytes = bytes;
  na_link_init(&cache->used);
  cache->buckets = calloc(buckets, sizeof(entry *));
  cache->context = EVP_MD_CTX_new();
  if (!cache->buckets || !cache->context || EVP_DigestInit_ex(cache->context, EVP_sha256(), NULL) != 1) {
    na_jwt_cache_free(cache);
    return -ENOMEM;
  }
  *out = cache;
  return 0;
}

int na_jwt_cache_digest(na_jwt_cache *cache, const unsigned char keys[NA_JWT_DIGEST], na_str token,
                        unsigned char out[NA_JWT_DIGEST]) {
  bool done = EVP_DigestInit_ex(cache->context, NULL, NULL) == 1 &&
              EVP_DigestUpdate(cache->context, keys, NA_JWT_DIGEST) == 1 &&
              EVP_DigestUpdate(cache->context, token.p, token.n) == 1 &&
              EVP_DigestFinal_ex(cache->context, out, NULL) == 1;
  return done ? 0 : -ENOMEM;
}

/* The place of a digest: its entry, or where it would be. A digest is as good as a hash of it. */
static entry **place_of(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]) {
  uint32_t hash;
  memcpy(&hash, digest, sizeof hash);
  entry **at = &cache->buckets[hash & cache->mask];
  while (*at && memcmp((*at)->digest, digest, NA_JWT_DIGEST) != 0)
    at = &(*at)->next;
  return at;
}

static void remove_at(na_jwt_cache *cache, entry **at) {
  entry *gone = *at;
  *at = gone->next;
  na_link_remove(&gone->used);
  cache->count--;
  cache->bytes -= gone->bytes;
  na_jwt_unref(gone->jwt);
  free(gone);
}

na_jwt *na_jwt_cache_find(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]) {
  entry *found = *place_of(cache, digest);
  if (!found)
    return NULL;
  na_link_remove(&found->used);
  na_list_push_front(&cache->used, &found->used);
  return found->jwt;
}

void na_jwt_cache_drop(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]) {
  entry **at = place_of(cache, digest);
  if (*at)
    remove_at(cache, at);
}

/* Make room for one more; whether something had to go. */
static bool make_room(na_jwt_cache *cache, uint32_t bytes) {
  bool evicted = false;
  while (cache->count && (cache->count >= cache->max_tokens || cache->bytes + bytes > cache->max_bytes)) {
    entry *oldest = na_container_of(cache->used.prev, entry, used);
    remove_at(cache, place_of(cache, oldest->digest));
    evicted = true;
  }
  return evicted;
}

bool na_jwt_cache_add(na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST], na_jwt *jwt) {
  uint32_t bytes = jwt->signed_part.n + jwt->signature_n;
  entry *added = malloc(sizeof *added);
  if (!added)
    return false; /* it is verified again next time */
  na_jwt_cache_drop(cache, digest);
  bool evicted = make_room(cache, bytes);
  *added = (entry){.jwt = na_jwt_ref(jwt), .bytes = bytes};
  memcpy(added->digest, digest, NA_JWT_DIGEST);
  entry **at = place_of(cache, digest);
  added->next = *at;
  *at = added;
  na_list_push_front(&cache->used, &added->used);
  cache->count++;
  cache->bytes += bytes;
  return evicted;
}

uint32_t na_jwt_cache_count(const na_jwt_cache *cache) {
  return cache->count;
}

void na_jwt_cache_free(na_jwt_cache *cache) {
  if (!cache)
    return;
  while (cache->count)
    remove_at(cache, place_of(cache, na_container_of(cache->used.next, entry, used)->digest));
  EVP_MD_CTX_free(cache->context);
  free(cache->buckets);
  free(cache);
}
