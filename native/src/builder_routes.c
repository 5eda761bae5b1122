/* SPDX-License-Identifier: Apache-2.0
 *
 * Builders: route tables, views and destinations.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "builder.h"
#include "router_domains.h"

/* ---- tables ------------------------------------------------------------------------------------------------- */

/* The place of a table in the new snapshot, safe to change; NULL with the error set when there is no such table. */
static na_table **own_table(na_builder *b, const char *name, int *rc) {
  uint32_t slot = na_slots_find(b->registry->table_names, name);
  if (!na_snapshot_table(b->next, slot)) {
    *rc = na_builder_fail(b, -ENOENT, "route table '%s' does not exist", name);
    return NULL;
  }
  *rc = na_table_array_own(&b->next->tables, na_slots_size(b->registry->table_names));
  if (!*rc)
    *rc = na_table_own(&b->next->tables->at[slot]);
  na_builder_out(b, *rc);
  return *rc ? NULL : &b->next->tables->at[slot];
}

static int add_table(na_builder *b, const char *name) {
  na_table *table;
  int rc = na_table_new(name, b->registry->table_names, &table);
  if (rc)
    return na_builder_out(b, rc);
  rc = na_table_array_own(&b->next->tables, na_slots_size(b->registry->table_names));
  if (rc) {
    na_table_unref(table);
    return na_builder_out(b, rc);
  }
  b->next->tables->at[table->slot] = table;
  return 0;
}

int na_builder_table(na_builder *b, const char *name, uint32_t tag, int on_demand) {
  int rc = 0;
  if (!*name)
    return na_builder_fail(b, -EINVAL, "a route table needs a name");
  if (!na_snapshot_table(b->next, na_slots_find(b->registry->table_names, name)))
    rc = add_table(b, name);
  na_table **table = rc ? NULL : own_table(b, name, &rc);
  if (!table)
    return rc;
  (*table)->tag = tag;
  (*table)->on_demand = on_demand != 0;
  return 0;
}

int na_builder_table_remove(na_builder *b, const char *name) {
  int rc;
  na_table **table = own_table(b, name, &rc);
  if (!table)
    return rc;
  na_table_unref(*table);
  *table = NULL;
  return 0;
}

int na_builder_host_unknown(na_builder *b, const char *name, const char *host, int unknown) {
  int rc;
  na_table **table = own_table(b, name, &rc);
  if (!table)
    return rc;
  return na_builder_out(b, na_table_set_unknown(*table, host, unknown != 0, &b->registry->unknown_evicted));
}

/* ---- virtual hosts ------------------------------------------------------------------------------------------ */

/* Give each destination the slot of its cluster. */
static int resolve_vhost(na_vhost *vhost, na_slots *names) {
  if (vhost->slots)
    return 0;
  vhost->slots = names;
  for (na_route *route = vhost->routes; route; route = route->next) {
    for (uint32_t i = 0; i < route->ndestinations; i++) {
      int rc = na_slots_intern(names, route->destinations[i].cluster, &route->destinations[i].slot);
      if (rc)
        return rc;
    }
  }
  return 0;
}

static void drop_vhost(na_table *table, na_vhost *vhost) {
  na_domains_remove(table->domains, vhost);
  na_map_remove(&table->vhosts, vhost->name, (uint32_t)strlen(vhost->name));
}

/* Give the virtual host its domains. */
static int claim_domains(na_builder *b, na_table *table, na_vhost *vhost) {
  const na_vhost *other;
  const char *domain = na_domains_conflict(table->domains, vhost, &other);
  if (domain)
    return na_builder_fail(b, -EEXIST, "domain '%s' of virtual host '%s' in route table '%s' belongs to '%s'", domain,
                           vhost->name, table->name, other->name);
  return na_builder_out(b, na_domains_add(table->domains, vhost));
}

/* Put the virtual host into a table that is safe to change, in place of `old` (or NULL), which stays on error. */
static int place_vhost(na_builder *b, na_table *table, na_vhost *vhost, na_vhost *old) {
  if (old)
    na_domains_remove(table->domains, old);
  int rc = claim_domains(b, table, vhost);
  if (!rc) {
    if (old && atomic_load_explicit(&old->used, memory_order_relaxed))
      na_mark_used(&vhost->used);
    rc = na_map_put(&table->vhosts, vhost->name, (uint32_t)strlen(vhost->name), na_vhost_ref(vhost));
    if (!rc)
      return 0;
    na_domains_remove(table->domains, vhost);
    na_builder_out(b, rc);
  }
  if (old) {
    /* It had these places before, so there is room for it. */
    int restored = na_domains_add(table->domains, old);
    assert(restored == 0);
    (void)restored;
  }
  return rc;
}

int na_builder_vhost(na_builder *b, const char *name, na_vhost *vhost) {
  int rc;
  na_table **table = own_table(b, name, &rc);
  if (table)
    rc = na_builder_out(b, resolve_vhost(vhost, b->registry->cluster_names));
  if (table && !rc)
    rc = na_builder_out(b, na_domains_own(&(*table)->domains));
  if (table && !rc)
    rc = place_vhost(b, *table, vhost, na_map_find(&(*table)->vhosts, vhost->name, (uint32_t)strlen(vhost->name)));
  na_vhost_unref(vhost);
  return rc;
}

int na_builder_vhost_remove(na_builder *b, const char *name, const char *vhost_name) {
  int rc;
  na_table **table = own_table(b, name, &rc);
  if (!table)
    return rc;
  na_vhost *vhost = na_map_find(&(*table)->vhosts, vhost_name, (uint32_t)strlen(vhost_name));
  if (!vhost)
    return na_builder_fail(b, -ENOENT, "route table '%s' has no virtual host '%s'", name, vhost_name);
  rc = na_domains_own(&(*table)->domains);
  if (rc)
    return na_builder_out(b, rc);
  drop_vhost(*table, vhost);
  return 0;
}

/* ---- views -------------------------------------------------------------------------------------------------- */

/* The view of that name in the new snapshot, safe to change; made if it is not there. */
static na_view *own_view(na_builder *b, const char *name, int *rc) {
  na_view *view = NULL;
  *rc = na_shared_map_own(&b->next->views);
  if (*rc)
    goto out;
  na_map *map = &b->next->views->map;
  view = na_map_find(map, name, (uint32_t)strlen(name));
  if (view) {
    *rc = na_view_own(b->next->views, &view);
    goto out;
  }
  *rc = na_view_new(name, &view);
  if (!*rc)
    *rc = na_map_put(map, view->name, (uint32_t)strlen(name), view);
out:
  na_builder_out(b, *rc);
  return *rc ? NULL : view;
}

int na_builder_view(na_builder *b, const char *name, int refuse_unknown) {
  int rc;
  if (!*name)
    return na_builder_fail(b, -EINVAL, "a view needs a name");
  na_view *view = own_view(b, name, &rc);
  if (view)
    view->refuse_unknown = refuse_unknown != 0;
  return rc;
}

int na_builder_view_remove(na_builder *b, const char *name) {
  int rc = na_shared_map_own(&b->next->views);
  if (rc)
    return na_builder_out(b, rc);
  if (!na_map_remove(&b->next->views->map, name, (uint32_t)strlen(name)))
    return na_builder_fail(b, -ENOENT, "view '%s' does not exist", name);
  return 0;
}

/* ---- destinations ------------------------------------------------------------------------------------------- */

static int check_destination(na_builder *b, const char *view, uint16_t port, const na_destination_config *config,
                             const uint32_t *weights, size_t n) {
  uint64_t total = 0;
  for (size_t i = 0; i < n; i++)
    total += weights[i];
  if (!port)
    return na_builder_fail(b, -EINVAL, "view '%s': a destination needs a port", view);
  if (config->protocol > NA_PROTOCOL_DETECT)
    return na_builder_fail(b, -EINVAL, "view '%s' port %u: protocol %u is unknown", view, port, config->protocol);
  if (config->protocol != NA_PROTOCOL_TCP && !config->table)
    return na_builder_fail(b, -EINVAL, "view '%s' port %u: HTTP needs a route table", view, port);
  if (n > UINT32_MAX || (n && !total))
    return na_builder_fail(b, -EINVAL, "view '%s' port %u: all weights are 0", view, port);
  return 0;
}

/* Intern the names that a destination refers to. */
static int resolve_destination(na_destination *destination, const char *table, const char *const *clusters,
                               const uint32_t *weights, size_t n) {
  int rc = table ? na_slots_intern(destination->table_names, table, &destination->table_slot) : 0;
  for (size_t i = 0; i < n && !rc; i++) {
    rc = na_slots_intern(destination->cluster_names, clusters[i], &destination->clusters[i].slot);
    if (rc)
      break;
    destination->clusters[i].weight = weights[i];
    destination->total_weight += weights[i];
    destination->n++;
  }
  return rc;
}

static int make_destination(na_builder *b, const na_destination_config *config, const char *const *clusters,
                            const uint32_t *weights, size_t n, na_destination **out) {
  na_destination *destination = calloc(1, sizeof *destination + n * sizeof *destination->clusters);
  if (!destination)
    return -ENOMEM;
  atomic_init(&destination->refs, 1);
  destination->table_names = b->registry->table_names;
  destination->cluster_names = b->registry->cluster_names;
  destination->tag = config->tag;
  destination->protocol = config->protocol;
  destination->table_slot = NA_NO_SLOT;
  int rc = resolve_destination(destination, config->table, clusters, weights, n);
  if (rc)
    na_destination_unref(destination);
  else
    *out = destination;
  return rc;
}

int na_builder_destination(na_builder *b, const char *view_name, const uint8_t *address, uint16_t port,
                           const na_destination_config *config, const char *const *clusters, const uint32_t *weights,
                           size_t n) {
  int rc = check_destination(b, view_name, port, config, weights, n);
  if (rc)
    return rc;
  na_view *view = own_view(b, view_name, &rc);
  if (!view)
    return rc;
  na_destination *destination;
  rc = make_destination(b, config, clusters, weights, n, &destination);
  if (rc)
    return na_builder_out(b, rc);
  na_address_key(destination->key, address, port);
  na_destination *old = na_map_find(&view->destinations, destination->key, NA_ADDRESS_KEY);
  if (old && atomic_load_explicit(&old->used, memory_order_relaxed))
    na_mark_used(&destination->used);
  return na_builder_out(b, na_map_put(&view->destinations, destination->key, NA_ADDRESS_KEY, destination));
}

int na_builder_destination_remove(na_builder *b, const char *view_name, const uint8_t *address, uint16_t port) {
  if (!na_snapshot_view(b->next, view_name))
    return na_builder_fail(b, -ENOENT, "view '%s' does not exist", view_name);
  int rc;
  na_view *view = own_view(b, view_name, &rc);
  if (!view)
    return rc;
  uint8_t key[NA_ADDRESS_KEY];
  na_address_key(key, address, port);
  if (!na_map_remove(&view->destinations, key, sizeof key))
    return na_builder_fail(b, -ENOENT, "view '%s' has no such destination with port %u", view_name, port);
  return 0;
}
