/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MIN_ENTRIES 8

static uint64_t hash_seed;

/* Before main: so that no lookup has to check whether the seed is there. */
__attribute__((constructor)) static void seed_hash(void) {
  if (getrandom(&hash_seed, sizeof hash_seed, 0) != sizeof hash_seed)
    abort();
}

static uint64_t mix(uint64_t a, uint64_t b) {
  __uint128_t product = (__uint128_t)a * b;
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t na_hash(const void *bytes, size_t n) {
  const uint64_t k1 = 0x9e3779b97f4a7c15u, k2 = 0xd6e8feb86659fd93u;
  const uint8_t *p = bytes;
  uint64_t hash = hash_seed ^ mix(n + k1, k2);
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    memcpy(&word, p, 8);
    hash = mix(hash ^ word, k1);
  }
  uint64_t tail = 0;
  if (n)
    memcpy(&tail, p, n);
  return mix(hash ^ tail, k2);
}

void na_map_init(na_map *map, const na_map_ops *ops) {
  *map = (na_map){.ops = ops};
}

void na_map_clear(na_map *map) {
  uint32_t at = 0;
  for (void *value; (value = na_map_next(map, &at));)
    map->ops->unref(value);
  free(map->entries);
  na_map_init(map, map->ops);
}

int na_map_copy(na_map *to, const na_map *from) {
  *to = *from;
  if (!from->entries)
    return 0;
  size_t size = ((size_t)from->mask + 1) * sizeof *from->entries;
  to->entries = malloc(size);
  if (!to->entries) {
    na_map_init(to, from->ops);
    return -ENOMEM;
  }
  memcpy(to->entries, from->entries, size);
  uint32_t at = 0;
  for (void *value; (value = na_map_next(to, &at));)
    to->ops->ref(value);
  return 0;
}

static bool same_key(const na_map_entry *entry, const void *key, uint32_t key_n, uint32_t hash) {
  return entry->hash == hash && entry->key_n == key_n && memcmp(entry->key, key, key_n) == 0;
}

/* The entry of that key, or the empty one where it would go. */
static na_map_entry *find_entry(const na_map *map, const void *key, uint32_t key_n, uint32_t hash) {
  uint32_t i = hash & map->mask;
  while (map->entries[i].value && !same_key(&map->entries[i], key, key_n, hash))
    i = (i + 1) & map->mask;
  return &map->entries[i];
}

static int grow(na_map *map) {
  uint32_t size = map->entries ? (map->mask + 1) * 2 : MIN_ENTRIES;
  na_map_entry *old = map->entries, *entries = calloc(size, sizeof *entries);
  if (!entries)
    return -ENOMEM;
  uint32_t old_size = old ? map->mask + 1 : 0;
  map->entries = entries;
  map->mask = size - 1;
  for (uint32_t i = 0; i < old_size; i++)
    if (old[i].value)
      *find_entry(map, old[i].key, old[i].key_n, old[i].hash) = old[i];
  free(old);
  return 0;
}

int na_map_put(na_map *map, const void *key, uint32_t key_n, void *value) {
  assert(value);
  if (!map->entries || map->count >= map->mask / 4 * 3) {
    int rc = grow(map);
    if (rc) {
      map->ops->unref(value);
      return rc;
    }
  }
  uint32_t hash = (uint32_t)na_hash(key, key_n);
  na_map_entry *entry = find_entry(map, key, key_n, hash);
  void *replaced = entry->value;
  *entry = (na_map_entry){.key = key, .value = value, .key_n = key_n, .hash = hash};
  if (replaced)
    map->ops->unref(replaced);
  else
    map->count++;
  return 0;
}

/* Close the gap at `hole`: move up what would no longer be found behind it (Knuth, TAOCP 6.4, algorithm R). */
static void close_gap(na_map *map, uint32_t hole) {
  for (uint32_t i = (hole + 1) & map->mask; map->entries[i].value; i = (i + 1) & map->mask) {
    uint32_t home = map->entries[i].hash & map->mask;
    if (((i - home) & map->mask) >= ((i - hole) & map->mask)) {
      map->entries[hole] = map->entries[i];
      hole = i;
    }
  }
  map->entries[hole] = (na_map_entry){0};
}

int na_map_remove(na_map *map, const void *key, uint32_t key_n) {
  if (!map->entries)
    return 0;
  na_map_entry *entry = find_entry(map, key, key_n, (uint32_t)na_hash(key, key_n));
  void *value = entry->value;
  if (!value)
    return 0;
  close_gap(map, (uint32_t)(entry - map->entries));
  map->count--;
  map->ops->unref(value);
  return 1;
}

void *na_map_find(const na_map *map, const void *key, uint32_t key_n) {
  if (!map->count)
    return NULL;
  return find_entry(map, key, key_n, (uint32_t)na_hash(key, key_n))->value;
}

void *na_map_next(const na_map *map, uint32_t *position) {
  if (!map->entries)
    return NULL;
  while (*position <= map->mask) {
    void *value = map->entries[(*position)++].value;
    if (value)
      return value;
  }
  return NULL;
}
