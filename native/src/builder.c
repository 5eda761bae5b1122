/* SPDX-License-Identifier: Apache-2.0
 *
 * Builders: life cycle, clusters and endpoints, and what concerns no route table (builder_routes.c).
 */
#include "builder.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int na_builder_fail(na_builder *b, int rc, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(b->error, sizeof b->error, format, args);
  va_end(args);
  return rc;
}

int na_builder_out(na_builder *b, int rc) {
  if (rc == -ENOSPC)
    return na_builder_fail(b, rc, "more than %u names of clusters or route tables", NA_MAX_SLOTS);
  return rc ? na_builder_fail(b, rc, "%s", strerror(-rc)) : 0;
}

/* ---- life cycle --------------------------------------------------------------------------------------------- */

int na_snapshots_builder(na_snapshots *registry, na_builder **out) {
  na_builder *b = calloc(1, sizeof *b);
  if (!b)
    return -ENOMEM;
  const na_snapshot *current = na_snapshots_current(registry);
  int rc = na_snapshot_new(current, &b->next);
  if (rc) {
    free(b);
    return rc;
  }
  b->registry = registry;
  b->base = current->generation;
  *out = b;
  return 0;
}

void na_builder_abort(na_builder *b) {
  if (!b)
    return;
  na_snapshot_free(b->next);
  free(b);
}

int na_builder_commit(na_builder *b) {
  na_snapshots *registry = b->registry;
  const na_snapshot *current = na_snapshots_current(registry);
  int rc;
  if (current->generation != b->base)
    rc = na_builder_fail(b, -ESTALE, "another commit came between; begin again from the current snapshot");
  else
    rc = na_builder_validate(b, current);
  if (rc) {
    na_snapshots_error(registry, "%s", b->error);
  } else {
    na_snapshots_publish(registry, b->next);
    b->next = NULL;
  }
  na_builder_abort(b);
  return rc;
}

const char *na_builder_error(const na_builder *b) {
  return b ? b->error : "";
}

/* ---- clusters ----------------------------------------------------------------------------------------------- */

/* Put a cluster into its slot of the new snapshot. Takes the cluster, also on error. */
static int set_cluster(na_builder *b, uint32_t slot, na_cluster *cluster) {
  int rc = na_cluster_array_own(&b->next->clusters, na_slots_size(b->registry->cluster_names));
  if (rc) {
    na_cluster_unref(cluster);
    return na_builder_out(b, rc);
  }
  na_cluster_unref(b->next->clusters->at[slot]);
  b->next->clusters->at[slot] = cluster;
  return 0;
}

static na_cluster *find_cluster(na_builder *b, const char *name, uint32_t *slot) {
  *slot = na_slots_find(b->registry->cluster_names, name);
  return na_snapshot_cluster(b->next, *slot);
}

/* Make the successor of a cluster, or the first of its name. */
static int replace_cluster(na_builder *b, const char *name, const na_cluster_config *config, na_cluster *previous,
                           na_hosts *hosts) {
  na_slots *names = b->registry->cluster_names;
  na_cluster_args args = {.name = name,
                          .config = config,
                          .workers = b->registry->workers,
                          .previous = previous,
                          .hosts = hosts,
                          .names = names};
  na_cluster *cluster;
  int rc = na_slots_intern(names, name, &args.slot);
  if (rc)
    return na_builder_out(b, rc);
  args.seed = b->registry->seed + args.slot;
  rc = na_cluster_create(&args, &cluster);
  if (rc) {
    na_slots_unref(names, args.slot);
    return rc == -EINVAL ? na_builder_fail(b, rc, "cluster '%s': kind %u or balancer %u is unknown", name, config->kind,
                                           config->lb)
                         : na_builder_out(b, rc);
  }
  return set_cluster(b, args.slot, cluster);
}

int na_builder_cluster(na_builder *b, const char *name, const na_cluster_config *config) {
  uint32_t slot;
  if (!*name)
    return na_builder_fail(b, -EINVAL, "a cluster needs a name");
  na_cluster *previous = find_cluster(b, name, &slot);
  /* One that was removed and comes back in the same commit keeps its state too. */
  if (!previous)
    previous = na_snapshot_cluster(na_snapshots_current(b->registry), slot);
  return replace_cluster(b, name, config, previous, NULL);
}

/* Whether two endpoints are one and the same. */
static bool is_same(const na_hosts_args *args, size_t i, size_t k) {
  const na_endpoint *x = &args->endpoints[i], *y = &args->endpoints[k];
  uint32_t v = args->via ? args->via[i] : 0, w = args->via ? args->via[k] : 0;
  return v == w && x->port == y->port && memcmp(x->address, y->address, sizeof x->address) == 0;
}

/* Say which endpoint is why na_hosts_create() refused. */
static int explain_endpoints(na_builder *b, const char *name, const na_hosts_args *args) {
  const na_endpoint *endpoints = args->endpoints;
  size_t n = args->n;
  for (size_t i = 0; i < n; i++) {
    char address[INET6_ADDRSTRLEN] = "?";
    inet_ntop(AF_INET6, endpoints[i].address, address, sizeof address);
    if (!endpoints[i].weight || !endpoints[i].port)
      return na_builder_fail(b, -EINVAL, "cluster '%s': endpoint %s has port %u and weight %u; neither may be 0", name,
                             address, endpoints[i].port, endpoints[i].weight);
    for (size_t k = 0; k < i; k++)
      if (is_same(args, i, k))
        return na_builder_fail(b, -EINVAL, "cluster '%s': endpoint %s port %u is there twice", name, address,
                               endpoints[i].port);
  }
  return na_builder_fail(b, -EINVAL, "cluster '%s': invalid endpoints", name);
}

/* The same for tunnels. */
static int explain_tunnels(na_builder *b, const char *name, const na_hosts_args *args) {
  for (size_t i = 0; i < args->ntunnels; i++) {
    const na_tunnel_config *tunnel = &args->tunnels[i];
    if (!tunnel->identities || !*tunnel->identities)
      return na_builder_fail(b, -EINVAL, "cluster '%s': tunnel %zu does not say whom it leads to", name, i);
    if (tunnel->authority && strlen(tunnel->authority) > NA_MAX_AUTHORITY)
      return na_builder_fail(b, -EINVAL, "cluster '%s': tunnel %zu leads to a name that is too long", name, i);
    if (tunnel->kind > NA_TUNNEL_MTLS)
      return na_builder_fail(b, -EINVAL, "cluster '%s': tunnel %zu is of an unknown kind, %u", name, i, tunnel->kind);
    if (tunnel->port > UINT16_MAX)
      return na_builder_fail(b, -EINVAL, "cluster '%s': tunnel %zu has port %u", name, i, tunnel->port);
  }
  for (size_t i = 0; args->via && i < args->n; i++)
    if (args->via[i] > args->ntunnels)
      return na_builder_fail(b, -EINVAL, "cluster '%s': endpoint %zu goes through tunnel %u of %zu", name, i,
                             args->via[i], args->ntunnels);
  return explain_endpoints(b, name, args);
}

int na_builder_endpoints(na_builder *b, const char *name, const na_endpoint *endpoints, size_t n) {
  return na_builder_tunnelled_endpoints(b, name, endpoints, n, NULL, NULL, 0);
}

int na_builder_tunnelled_endpoints(na_builder *b, const char *name, const na_endpoint *endpoints, size_t n,
                                   const uint32_t *via, const na_tunnel_config *tunnels, size_t m) {
  na_hosts_args args = {.endpoints = endpoints, .n = n, .via = via, .tunnels = tunnels, .ntunnels = m};
  uint32_t slot;
  na_cluster *cluster = find_cluster(b, name, &slot);
  if (!cluster)
    return na_builder_fail(b, -ENOENT, "cluster '%s' does not exist; add it before its endpoints", name);
  na_hosts *hosts;
  int rc = na_hosts_create_via(&args, cluster->hosts, &hosts);
  if (rc)
    return rc == -EINVAL ? explain_tunnels(b, name, &args) : na_builder_out(b, rc);
  na_cluster_config config = cluster->config;
  rc = replace_cluster(b, name, &config, cluster, hosts);
  na_hosts_unref(hosts);
  return rc;
}

int na_builder_cluster_remove(na_builder *b, const char *name) {
  uint32_t slot;
  if (!find_cluster(b, name, &slot))
    return na_builder_fail(b, -ENOENT, "cluster '%s' does not exist", name);
  return set_cluster(b, slot, NULL);
}

/* ---- hints and identities -------------------------------------------------------------------------------------- */

int na_builder_answered(na_builder *b, int answered) {
  b->next->unanswered = !answered;
  return 0;
}

int na_builder_hints(na_builder *b, const uint8_t *addresses, size_t n, const uint16_t *ports, size_t m) {
  na_hints *hints;
  int rc = na_hints_new(addresses, n, ports, m, &hints);
  if (rc)
    return na_builder_out(b, rc);
  na_hints_unref(b->next->hints);
  b->next->hints = hints;
  return 0;
}

int na_snapshots_set_identity(na_snapshots *registry, const char *name, na_identity *identity) {
  na_builder *b;
  int rc = na_snapshots_builder(registry, &b);
  if (rc) {
    na_identity_unref(identity);
    return rc;
  }
  rc = na_shared_map_own(&b->next->identities);
  if (rc)
    na_identity_unref(identity);
  else if (identity)
    rc = na_map_put(&b->next->identities->map, identity->name, (uint32_t)strlen(identity->name), identity);
  else if (!na_map_remove(&b->next->identities->map, name, (uint32_t)strlen(name)))
    rc = -ENOENT;
  if (rc) {
    na_builder_abort(b);
    return rc;
  }
  return na_builder_commit(b);
}
