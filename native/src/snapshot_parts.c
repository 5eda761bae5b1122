/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of snapshots: references, copies, creation.
 */
#include "snapshot_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dns_names.h"
#include "router_domains.h"

/* ---- references --------------------------------------------------------------------------------------------- */

void na_destination_unref(na_destination *destination) {
  if (!destination || !na_part_unref(&destination->refs))
    return;
  if (destination->table_slot != NA_NO_SLOT)
    na_slots_unref(destination->table_names, destination->table_slot);
  for (uint32_t i = 0; i < destination->n; i++)
    na_slots_unref(destination->cluster_names, destination->clusters[i].slot);
  free(destination);
}

void na_view_unref(na_view *view) {
  if (!view || !na_part_unref(&view->refs))
    return;
  na_map_clear(&view->destinations);
  free(view);
}

void na_table_unref(na_table *table) {
  if (!table || !na_part_unref(&table->refs))
    return;
  na_domains_free(table->domains);
  na_map_clear(&table->vhosts);
  na_map_clear(&table->unknown);
  na_slots_unref(table->names, table->slot);
  free(table);
}

void na_hints_unref(na_hints *hints) {
  if (hints && na_part_unref(&hints->refs))
    free(hints);
}

void na_inbound_unref(na_inbound *inbound) {
  if (!na_part_unref(&inbound->refs))
    return;
  for (uint32_t i = 0; i < inbound->nguards; i++)
    na_guards_free(inbound->guards[i]);
  free(inbound->guards);
  for (uint32_t i = 0; i < inbound->nnames; i++)
    free((char *)inbound->names[i].host);
  free(inbound->names);
  free(inbound);
}

void na_cluster_array_unref(na_cluster_array *array) {
  if (!array || !na_part_unref(&array->refs))
    return;
  for (uint32_t i = 0; i < array->n; i++)
    na_cluster_unref(array->at[i]);
  free(array);
}

void na_table_array_unref(na_table_array *array) {
  if (!array || !na_part_unref(&array->refs))
    return;
  for (uint32_t i = 0; i < array->n; i++)
    na_table_unref(array->at[i]);
  free(array);
}

void na_shared_map_unref(na_shared_map *map) {
  if (!map || !na_part_unref(&map->refs))
    return;
  na_map_clear(&map->map);
  free(map);
}

static void ref_view(void *view) {
  na_part_ref(&((na_view *)view)->refs);
}

static void unref_view(void *view) {
  na_view_unref(view);
}

static void ref_inbound(void *inbound) {
  na_part_ref(&((na_inbound *)inbound)->refs);
}

static void unref_inbound(void *inbound) {
  na_inbound_unref(inbound);
}

static void ref_identity(void *identity) {
  na_identity_ref(identity);
}

static void unref_identity(void *identity) {
  na_identity_unref(identity);
}

static void ref_destination(void *destination) {
  na_part_ref(&((na_destination *)destination)->refs);
}

static void unref_destination(void *destination) {
  na_destination_unref(destination);
}

static void ref_vhost(void *vhost) {
  na_vhost_ref(vhost);
}

static void unref_vhost(void *vhost) {
  na_vhost_unref(vhost);
}

static void ref_unknown(void *unknown) {
  na_part_ref(&((na_unknown_host *)unknown)->refs);
}

static void unref_unknown(void *unknown) {
  if (na_part_unref(&((na_unknown_host *)unknown)->refs))
    free(unknown);
}

const na_map_ops na_view_ops = {ref_view, unref_view};
const na_map_ops na_inbound_ops = {ref_inbound, unref_inbound};
const na_map_ops na_identity_ops = {ref_identity, unref_identity};
const na_map_ops na_destination_ops = {ref_destination, unref_destination};
static const na_map_ops vhost_ops = {ref_vhost, unref_vhost};
static const na_map_ops unknown_ops = {ref_unknown, unref_unknown};

/* ---- creation ----------------------------------------------------------------------------------------------- */

int na_view_new(const char *name, na_view **out) {
  size_t size = strlen(name) + 1;
  na_view *view = calloc(1, sizeof *view + size);
  if (!view)
    return -ENOMEM;
  atomic_init(&view->refs, 1);
  na_map_init(&view->destinations, &na_destination_ops);
  memcpy(view->name, name, size);
  *out = view;
  return 0;
}

int na_table_new(const char *name, na_slots *names, na_table **out) {
  size_t size = strlen(name) + 1;
  na_table *table = calloc(1, sizeof *table + size);
  if (!table)
    return -ENOMEM;
  int rc = na_domains_empty(&table->domains);
  if (!rc)
    rc = na_slots_intern(names, name, &table->slot);
  if (rc) {
    na_domains_free(table->domains);
    free(table);
    return rc;
  }
  atomic_init(&table->refs, 1);
  table->names = names;
  na_map_init(&table->vhosts, &vhost_ops);
  na_map_init(&table->unknown, &unknown_ops);
  memcpy(table->name, name, size);
  *out = table;
  return 0;
}

static int compare_addresses(const void *a, const void *b) {
  return memcmp(a, b, 16);
}

int na_hints_new(const uint8_t *addresses, size_t n, const uint16_t *ports, size_t m, na_hints **out) {
  na_hints *hints = calloc(1, sizeof *hints + n * 16);
  if (!hints)
    return -ENOMEM;
  atomic_init(&hints->refs, 1);
  hints->n = (uint32_t)n;
  if (n)
    memcpy(hints->addresses, addresses, n * 16);
  qsort(hints->addresses, n, 16, compare_addresses);
  for (size_t i = 0; i < m; i++)
    hints->ports[ports[i] / 8] |= (uint8_t)(1u << ports[i] % 8);
  *out = hints;
  return 0;
}

int na_shared_map_new(const na_map_ops *ops, na_shared_map **out) {
  na_shared_map *map = calloc(1, sizeof *map);
  if (!map)
    return -ENOMEM;
  atomic_init(&map->refs, 1);
  na_map_init(&map->map, ops);
  *out = map;
  return 0;
}

/* ---- copy on write ------------------------------------------------------------------------------------------ */

/* The places of a copy: room to spare when it has to grow, so that adding many names one by one stays linear. */
static uint32_t array_size(uint32_t have, uint32_t need) {
  return need > have ? need + need / 4 + 8 : have;
}

int na_cluster_array_own(na_cluster_array **array, uint32_t n) {
  na_cluster_array *from = *array;
  if (!na_part_shared(&from->refs) && from->n >= n)
    return 0;
  uint32_t size = array_size(from->n, n);
  na_cluster_array *to = calloc(1, sizeof *to + size * sizeof *to->at);
  if (!to)
    return -ENOMEM;
  atomic_init(&to->refs, 1);
  to->n = size;
  for (uint32_t i = 0; i < from->n; i++)
    to->at[i] = from->at[i] ? na_cluster_ref(from->at[i]) : NULL;
  na_cluster_array_unref(from);
  *array = to;
  return 0;
}

int na_table_array_own(na_table_array **array, uint32_t n) {
  na_table_array *from = *array;
  if (!na_part_shared(&from->refs) && from->n >= n)
    return 0;
  uint32_t size = array_size(from->n, n);
  na_table_array *to = calloc(1, sizeof *to + size * sizeof *to->at);
  if (!to)
    return -ENOMEM;
  atomic_init(&to->refs, 1);
  to->n = size;
  for (uint32_t i = 0; i < from->n; i++) {
    to->at[i] = from->at[i];
    if (to->at[i])
      na_part_ref(&to->at[i]->refs);
  }
  na_table_array_unref(from);
  *array = to;
  return 0;
}

int na_shared_map_own(na_shared_map **map) {
  na_shared_map *from = *map, *to;
  if (!na_part_shared(&from->refs))
    return 0;
  int rc = na_shared_map_new(from->map.ops, &to);
  if (rc)
    return rc;
  rc = na_map_copy(&to->map, &from->map);
  if (rc) {
    free(to);
    return rc;
  }
  na_shared_map_unref(from);
  *map = to;
  return 0;
}

int na_table_own(na_table **table) {
  na_table *from = *table, *to;
  if (!na_part_shared(&from->refs))
    return 0;
  int rc = na_table_new(from->name, from->names, &to);
  if (rc)
    return rc;
  to->tag = from->tag;
  to->on_demand = from->on_demand;
  to->unknown_order = from->unknown_order;
  na_domains_free(to->domains);
  to->domains = na_domains_ref(from->domains);
  if (na_map_copy(&to->vhosts, &from->vhosts) || na_map_copy(&to->unknown, &from->unknown)) {
    na_table_unref(to);
    return -ENOMEM;
  }
  na_table_unref(from);
  *table = to;
  return 0;
}

int na_view_own(na_shared_map *views, na_view **view) {
  na_view *from = *view, *to;
  if (!na_part_shared(&from->refs))
    return 0;
  int rc = na_view_new(from->name, &to);
  if (rc)
    return rc;
  to->refuse_unknown = from->refuse_unknown;
  rc = na_map_copy(&to->destinations, &from->destinations);
  if (rc) {
    na_view_unref(to);
    return rc;
  }
  rc = na_map_put(&views->map, to->name, (uint32_t)strlen(to->name), to);
  if (!rc)
    *view = to;
  return rc;
}

/* ---- unknown hosts ------------------------------------------------------------------------------------------ */

static void evict_oldest(na_table *table) {
  uint32_t at = 0;
  const na_unknown_host *oldest = NULL;
  for (const na_unknown_host *host; (host = na_map_next(&table->unknown, &at));)
    if (!oldest || host->order < oldest->order)
      oldest = host;
  if (oldest)
    na_map_remove(&table->unknown, oldest->host, oldest->n);
}

static int add_unknown(na_table *table, const char *key, size_t n, uint64_t *evicted) {
  na_unknown_host *host = calloc(1, sizeof *host + n + 1);
  if (!host)
    return -ENOMEM;
  atomic_init(&host->refs, 1);
  memcpy(host->host, key, n);
  host->n = (uint32_t)n;
  host->order = table->unknown_order++;
  if (table->unknown.count == NA_MAX_UNKNOWN_HOSTS) {
    evict_oldest(table);
    ++*evicted;
  }
  return na_map_put(&table->unknown, host->host, host->n, host);
}

int na_table_set_unknown(na_table *table, const char *host, bool unknown, uint64_t *evicted) {
  char key[256];
  size_t n = na_host_of(na_str_of(host), key, sizeof key);
  if (!unknown) {
    na_map_remove(&table->unknown, key, (uint32_t)n);
    return 0;
  }
  return na_map_find(&table->unknown, key, (uint32_t)n) ? 0 : add_unknown(table, key, n, evicted);
}

/* ---- snapshots ---------------------------------------------------------------------------------------------- */

static int fill_empty(na_snapshot *snapshot) {
  snapshot->clusters = calloc(1, sizeof *snapshot->clusters);
  if (!snapshot->clusters)
    return -ENOMEM;
  atomic_init(&snapshot->clusters->refs, 1);
  snapshot->tables = calloc(1, sizeof *snapshot->tables);
  if (!snapshot->tables)
    return -ENOMEM;
  atomic_init(&snapshot->tables->refs, 1);
  int rc = na_shared_map_new(&na_view_ops, &snapshot->views);
  if (!rc)
    rc = na_shared_map_new(&na_inbound_ops, &snapshot->inbounds);
  if (!rc)
    rc = na_shared_map_new(&na_identity_ops, &snapshot->identities);
  if (!rc)
    rc = na_shared_map_new(&na_dns_name_ops, &snapshot->dns);
  if (!rc)
    rc = na_hints_new(NULL, 0, NULL, 0, &snapshot->hints);
  return rc;
}

static void share_all(na_snapshot *to, const na_snapshot *from) {
  *to = *from;
  to->next_retired = NULL;
  na_part_ref(&to->clusters->refs);
  na_part_ref(&to->tables->refs);
  na_part_ref(&to->views->refs);
  na_part_ref(&to->inbounds->refs);
  na_part_ref(&to->identities->refs);
  na_part_ref(&to->dns->refs);
  na_part_ref(&to->hints->refs);
}

int na_snapshot_new(const na_snapshot *from, na_snapshot **out) {
  na_snapshot *snapshot = calloc(1, sizeof *snapshot);
  if (!snapshot)
    return -ENOMEM;
  if (from) {
    share_all(snapshot, from);
  } else if (fill_empty(snapshot)) {
    na_snapshot_free(snapshot);
    return -ENOMEM;
  }
  *out = snapshot;
  return 0;
}

void na_snapshot_free(na_snapshot *snapshot) {
  if (!snapshot)
    return;
  na_shared_map_unref(snapshot->views);
  na_table_array_unref(snapshot->tables);
  na_cluster_array_unref(snapshot->clusters);
  na_shared_map_unref(snapshot->inbounds);
  na_shared_map_unref(snapshot->identities);
  na_shared_map_unref(snapshot->dns);
  na_hints_unref(snapshot->hints);
  free(snapshot);
}
