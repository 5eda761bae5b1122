/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry of snapshots: which one is current, and when old ones may go.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "snapshot_parts.h"

#define OFFLINE UINT64_MAX

int na_snapshots_init(na_snapshots *registry, uint32_t workers, void (*wake)(void *context), void *context) {
  assert(workers > 0 && workers <= NA_MAX_WORKERS);
  memset(registry, 0, sizeof *registry);
  registry->workers = workers;
  registry->wake = wake;
  registry->context = context;
  for (uint32_t i = 0; i < NA_MAX_WORKERS; i++)
    atomic_init(&registry->seen[i].generation, OFFLINE);
  if (getrandom(&registry->seed, sizeof registry->seed, 0) != sizeof registry->seed)
    return -errno;
  na_snapshot *first = NULL;
  int rc = na_slots_new(&registry->cluster_names);
  if (!rc)
    rc = na_slots_new(&registry->table_names);
  if (!rc)
    rc = na_snapshot_new(NULL, &first);
  if (rc) {
    na_slots_free(registry->cluster_names);
    na_slots_free(registry->table_names);
    return rc;
  }
  first->generation = 1;
  atomic_init(&registry->current, first);
  return 0;
}

/* The oldest generation that an online worker may still read; OFFLINE if there is none. */
static uint64_t oldest_seen(const na_snapshots *registry) {
  uint64_t oldest = OFFLINE;
  for (uint32_t i = 0; i < registry->workers; i++) {
    uint64_t seen = atomic_load_explicit(&registry->seen[i].generation, memory_order_acquire);
    if (seen < oldest)
      oldest = seen;
  }
  return oldest;
}

static void reclaim(na_snapshots *registry) {
  uint64_t oldest = oldest_seen(registry);
  while (registry->retired && registry->retired->generation < oldest) {
    na_snapshot *gone = registry->retired;
    registry->retired = gone->next_retired;
    na_snapshot_free(gone);
  }
  if (!registry->retired)
    registry->last_retired = NULL;
}

void na_snapshots_free(na_snapshots *registry) {
  assert(oldest_seen(registry) == OFFLINE);
  reclaim(registry);
  na_snapshot_free(atomic_exchange(&registry->current, NULL));
  na_slots_free(registry->cluster_names);
  na_slots_free(registry->table_names);
}

void na_snapshots_online(na_snapshots *registry, uint32_t worker) {
  assert(worker < registry->workers);
  atomic_store(&registry->seen[worker].generation, na_snapshots_current(registry)->generation);
}

void na_snapshots_offline(na_snapshots *registry, uint32_t worker) {
  assert(worker < registry->workers);
  atomic_store(&registry->seen[worker].generation, OFFLINE);
}

const na_snapshot *na_snapshots_current(const na_snapshots *registry) {
  return atomic_load_explicit(&registry->current, memory_order_relaxed);
}

na_cluster *na_snapshots_cluster(const na_snapshots *registry, const char *name) {
  return na_snapshot_cluster(na_snapshots_current(registry), na_slots_find(registry->cluster_names, name));
}

const na_table *na_snapshots_table(const na_snapshots *registry, const char *name) {
  return na_snapshot_table(na_snapshots_current(registry), na_slots_find(registry->table_names, name));
}

void na_snapshots_publish(na_snapshots *registry, na_snapshot *snapshot) {
  na_snapshot *old = atomic_load_explicit(&registry->current, memory_order_relaxed);
  snapshot->generation = old->generation + 1;
  snapshot->next_retired = NULL;
  atomic_store_explicit(&registry->current, snapshot, memory_order_release);
  if (registry->last_retired)
    registry->last_retired->next_retired = old;
  else
    registry->retired = old;
  registry->last_retired = old;
  if (registry->wake)
    registry->wake(registry->context);
  reclaim(registry);
}

uint64_t na_snapshots_committed(const na_snapshots *registry) {
  return na_snapshots_current(registry)->generation - 1;
}

uint64_t na_snapshots_settled(na_snapshots *registry) {
  reclaim(registry);
  uint64_t oldest = oldest_seen(registry);
  return oldest == OFFLINE ? na_snapshots_committed(registry) : oldest - 1;
}

void na_snapshots_error(na_snapshots *registry, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(registry->error, sizeof registry->error, format, args);
  va_end(args);
}

/* ---- usage -------------------------------------------------------------------------------------------------- */

/* Where tags go, and how much room is left. */
typedef struct tag_list {
  uint32_t *tags;
  size_t n;
  size_t max;
} tag_list;

/* Take a mark if there is room; false when there is none. */
static bool take_mark(tag_list *list, atomic_uint *used, uint32_t tag) {
  if (!atomic_load_explicit(used, memory_order_relaxed))
    return true;
  if (list->n == list->max)
    return false;
  atomic_store_explicit(used, 0, memory_order_relaxed);
  list->tags[list->n++] = tag;
  return true;
}

static bool take_clusters(tag_list *list, const na_snapshot *snapshot) {
  for (uint32_t i = 0; i < snapshot->clusters->n; i++) {
    na_cluster *cluster = snapshot->clusters->at[i];
    if (cluster && !take_mark(list, &cluster->state->used, cluster->config.tag))
      return false;
  }
  return true;
}

static bool take_vhosts(tag_list *list, const na_snapshot *snapshot) {
  for (uint32_t i = 0; i < snapshot->tables->n; i++) {
    const na_table *table = snapshot->tables->at[i];
    uint32_t at = 0;
    for (na_vhost *vhost; table && (vhost = na_map_next(&table->vhosts, &at));)
      if (!take_mark(list, &vhost->used, vhost->tag))
        return false;
  }
  return true;
}

static bool take_destinations(tag_list *list, const na_snapshot *snapshot) {
  uint32_t at = 0;
  for (const na_view *view; (view = na_map_next(&snapshot->views->map, &at));) {
    uint32_t in_view = 0;
    for (na_destination *destination; (destination = na_map_next(&view->destinations, &in_view));)
      if (!take_mark(list, &destination->used, destination->tag))
        return false;
  }
  return true;
}

size_t na_snapshots_usage(na_snapshots *registry, uint32_t *tags, size_t max) {
  tag_list list = {.tags = tags, .max = max};
  const na_snapshot *snapshot = na_snapshots_current(registry);
  if (take_clusters(&list, snapshot) && take_vhosts(&list, snapshot))
    take_destinations(&list, snapshot);
  return list.n;
}
