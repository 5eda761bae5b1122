/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of snapshots as the control thread handles them: making, copying, references. A part is changed in place
 * only while its maker is its one holder; na_*_own() makes that so by copying a shared part (copy on write).
 */
#ifndef NODEAGENT_SNAPSHOT_PARTS_H
#define NODEAGENT_SNAPSHOT_PARTS_H

#include "snapshot.h"

/* Hosts that a table remembers to have no virtual host; the oldest is forgotten for another. */
#define NA_MAX_UNKNOWN_HOSTS 4096

/* A host that a table knows to have no virtual host of its own. */
typedef struct na_unknown_host {
  atomic_uint refs;
  uint32_t n;
  uint64_t order; /* of arrival */
  char host[];
} na_unknown_host;

static inline void na_part_ref(atomic_uint *refs) {
  atomic_fetch_add_explicit(refs, 1, memory_order_relaxed);
}

/* Give a reference back; true when it was the last. */
static inline bool na_part_unref(atomic_uint *refs) {
  return atomic_fetch_sub_explicit(refs, 1, memory_order_acq_rel) == 1;
}

static inline bool na_part_shared(atomic_uint *refs) {
  return atomic_load_explicit(refs, memory_order_acquire) > 1;
}

void na_destination_unref(na_destination *destination);
void na_view_unref(na_view *view);
void na_table_unref(na_table *table);
void na_hints_unref(na_hints *hints);
void na_inbound_unref(na_inbound *inbound);
void na_cluster_array_unref(na_cluster_array *array);
void na_table_array_unref(na_table_array *array);
void na_shared_map_unref(na_shared_map *map);

int na_view_new(const char *name, na_view **out);
int na_table_new(const char *name, na_slots *names, na_table **out);
int na_hints_new(const uint8_t *addresses, size_t n, const uint16_t *ports, size_t m, na_hints **out);

extern const na_map_ops na_view_ops;        /* of na_view */
extern const na_map_ops na_inbound_ops;     /* of na_inbound */
extern const na_map_ops na_destination_ops; /* of na_destination */
extern const na_map_ops na_identity_ops;    /* of na_identity */

int na_shared_map_new(const na_map_ops *ops, na_shared_map **out);

/* Make *part safe to change. The arrays grow to n places at least. -ENOMEM: unchanged. */
int na_cluster_array_own(na_cluster_array **array, uint32_t n);
int na_table_array_own(na_table_array **array, uint32_t n);
int na_shared_map_own(na_shared_map **map);
int na_table_own(na_table **table);
/* As above; the view in a map of views that is safe to change. */
int na_view_own(na_shared_map *views, na_view **view);

/* Remember that a host is unknown, or forget it. *evicted counts those forgotten for want of space. */
int na_table_set_unknown(na_table *table, const char *host, bool unknown, uint64_t *evicted);

/* address:port as the key of a destination. */
void na_address_key(uint8_t key[NA_ADDRESS_KEY], const uint8_t *address, uint16_t port);

/* A snapshot that shares all parts of `from`; an empty one for NULL. */
int na_snapshot_new(const na_snapshot *from, na_snapshot **out);
void na_snapshot_free(na_snapshot *snapshot);

#endif
