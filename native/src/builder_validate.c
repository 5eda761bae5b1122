/* SPDX-License-Identifier: Apache-2.0
 *
 * No dangling references: before a snapshot is published, each route and destination in it must lead to a cluster, and
 * each destination to its route table. What is shared with the snapshot before was checked then, and is checked again
 * only when a cluster or table was removed.
 */
#include <errno.h>
#include <string.h>

#include "builder.h"

/* What to look at: all of it, or only what differs from the base. */
typedef struct validation {
  const na_snapshot *base;
  bool clusters_removed;
  bool tables_removed;
} validation;

static bool any_cluster_removed(const na_snapshot *base, const na_snapshot *next) {
  if (base->clusters == next->clusters)
    return false;
  for (uint32_t i = 0; i < base->clusters->n; i++)
    if (base->clusters->at[i] && !na_snapshot_cluster(next, i))
      return true;
  return false;
}

static bool any_table_removed(const na_snapshot *base, const na_snapshot *next) {
  if (base->tables == next->tables)
    return false;
  for (uint32_t i = 0; i < base->tables->n; i++)
    if (base->tables->at[i] && !na_snapshot_table(next, i))
      return true;
  return false;
}

static int validate_vhost(na_builder *b, const na_table *table, const na_vhost *vhost) {
  for (const na_route *route = vhost->routes; route; route = route->next) {
    if (route->action == NA_ACTION_NONE)
      return na_builder_fail(b, -EINVAL, "route '%s' of virtual host '%s' in route table '%s' has no action",
                             route->name, vhost->name, table->name);
    for (uint32_t i = 0; i < route->ndestinations; i++)
      if (!na_snapshot_cluster(b->next, route->destinations[i].slot))
        return na_builder_fail(
            b, -EINVAL,
            "route '%s' of virtual host '%s' in route table '%s' leads to cluster '%s', which does not exist",
            route->name, vhost->name, table->name, route->destinations[i].cluster);
  }
  return 0;
}

static int validate_table(na_builder *b, const validation *scope, const na_table *table) {
  const na_table *before = na_snapshot_table(scope->base, table->slot);
  if (before == table && !scope->clusters_removed)
    return 0;
  uint32_t at = 0;
  for (na_vhost *vhost; (vhost = na_map_next(&table->vhosts, &at));) {
    uint32_t n = (uint32_t)strlen(vhost->name);
    if (before && !scope->clusters_removed && na_map_find(&before->vhosts, vhost->name, n) == vhost)
      continue;
    int rc = validate_vhost(b, table, vhost);
    if (rc)
      return rc;
  }
  return 0;
}

static int validate_destination(na_builder *b, const na_view *view, const na_destination *destination) {
  uint32_t port = (uint32_t)destination->key[16] << 8 | destination->key[17];
  uint32_t table = destination->table_slot;
  if (table != NA_NO_SLOT && !na_snapshot_table(b->next, table))
    return na_builder_fail(b, -EINVAL,
                           "destination with port %u of view '%s' has route table '%s', which does not exist", port,
                           view->name, na_slots_name(destination->table_names, table));
  for (uint32_t i = 0; i < destination->n; i++)
    if (!na_snapshot_cluster(b->next, destination->clusters[i].slot))
      return na_builder_fail(b, -EINVAL,
                             "destination with port %u of view '%s' leads to cluster '%s', which does not exist", port,
                             view->name, na_slots_name(destination->cluster_names, destination->clusters[i].slot));
  return 0;
}

static int validate_view(na_builder *b, const validation *scope, const na_view *view) {
  bool all = scope->clusters_removed || scope->tables_removed;
  const na_view *before = na_snapshot_view(scope->base, view->name);
  if (before == view && !all)
    return 0;
  uint32_t at = 0;
  for (na_destination *destination; (destination = na_map_next(&view->destinations, &at));) {
    if (before && !all && na_map_find(&before->destinations, destination->key, NA_ADDRESS_KEY) == destination)
      continue;
    int rc = validate_destination(b, view, destination);
    if (rc)
      return rc;
  }
  return 0;
}

int na_builder_validate(na_builder *b, const na_snapshot *base) {
  validation scope = {.base = base,
                      .clusters_removed = any_cluster_removed(base, b->next),
                      .tables_removed = any_table_removed(base, b->next)};
  int rc = 0;
  for (uint32_t i = 0; i < b->next->tables->n && !rc; i++)
    if (b->next->tables->at[i])
      rc = validate_table(b, &scope, b->next->tables->at[i]);
  uint32_t at = 0;
  for (const na_view *view; !rc && (view = na_map_next(&b->next->views->map, &at));)
    rc = validate_view(b, &scope, view);
  return rc;
}
