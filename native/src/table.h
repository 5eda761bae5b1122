/* SPDX-License-Identifier: Apache-2.0
 *
 * na_map: a hash table from byte strings to reference-counted objects, of which the parts of a snapshot are made. It is
 * changed only while it is being built; once published, any number of threads look things up in it without locks.
 */
#ifndef NODEAGENT_TABLE_H
#define NODEAGENT_TABLE_H

#include <stddef.h>
#include <stdint.h>

/* How a map keeps its values alive. */
typedef struct na_map_ops {
  void (*ref)(void *value);
  void (*unref)(void *value);
} na_map_ops;

typedef struct na_map_entry {
  const void *key; /* lives in the value, or as long as it */
  void *value;     /* NULL: empty */
  uint32_t key_n;
  uint32_t hash;
} na_map_entry;

typedef struct na_map {
  na_map_entry *entries; /* a power of two of them, at most 3/4 used; linear probing */
  uint32_t mask;
  uint32_t count;
  const na_map_ops *ops;
} na_map;

/* Prepare an empty map; no memory is taken before the first put. */
void na_map_init(na_map *map, const na_map_ops *ops);
/* Drop all values and the memory. */
void na_map_clear(na_map *map);
/* Make `to` (not initialised) a copy of `from`; values are shared. -ENOMEM. */
int na_map_copy(na_map *to, const na_map *from);
/* Put a value, whose reference the map takes over (also on error), in place of the one of that key. `key` must live as
 * long as the value. -ENOMEM. */
int na_map_put(na_map *map, const void *key, uint32_t key_n, void *value);
/* Drop the value of that key; 0 when there was none, else 1. */
int na_map_remove(na_map *map, const void *key, uint32_t key_n);
/* The value of that key, or NULL. */
void *na_map_find(const na_map *map, const void *key, uint32_t key_n);
/* Walk: start with *position 0; the next value, or NULL at the end. */
void *na_map_next(const na_map *map, uint32_t *position);

/* Hash n bytes, seeded per process, so that nobody can choose colliding names. */
uint64_t na_hash(const void *bytes, size_t n);

#endif
