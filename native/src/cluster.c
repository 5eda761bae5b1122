/* SPDX-License-Identifier: Apache-2.0
 *
 * Clusters: creation, references, limits.
 */
#include "cluster.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONNECT_TIMEOUT_MS 10000

/* ---- state -------------------------------------------------------------------------------------------------- */

static na_cluster_state *state_new(uint32_t workers, uint64_t seed) {
  size_t size = sizeof(na_cluster_state) + workers * sizeof(na_cursor);
  na_cluster_state *state = aligned_alloc(NA_CACHE_LINE, (size + NA_CACHE_LINE - 1) / NA_CACHE_LINE * NA_CACHE_LINE);
  if (!state)
    return NULL;
  memset(state, 0, size);
  atomic_init(&state->refs, 1);
  state->workers = workers;
  /* Nodes and workers begin at different endpoints, or the first one would get everybody's first request. */
  for (uint32_t i = 0; i < workers; i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    atomic_init(&state->cursors[i].position, seed >> 16);
  }
  return state;
}

static na_cluster_state *state_ref(na_cluster_state *state) {
  atomic_fetch_add_explicit(&state->refs, 1, memory_order_relaxed);
  return state;
}

static void state_unref(na_cluster_state *state) {
  if (state && atomic_fetch_sub_explicit(&state->refs, 1, memory_order_acq_rel) == 1)
    free(state);
}

/* ---- clusters ----------------------------------------------------------------------------------------------- */

static void set_default(uint32_t *field, uint32_t value) {
  if (!*field)
    *field = value;
}

/* Fill in what 0 stands for. idle_timeout_ms stays 0: the engine's default is not known here. */
static int check_config(na_cluster_config *config) {
  if (config->kind > NA_CLUSTER_BLACKHOLE || config->lb > NA_LB_LEAST_REQUEST)
    return -EINVAL;
  set_default(&config->connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS);
  set_default(&config->max_connections, (uint32_t)NA_NEVER);
  set_default(&config->max_requests, (uint32_t)NA_NEVER);
  set_default(&config->max_pending, (uint32_t)NA_NEVER);
  set_default(&config->max_requests_per_connection, (uint32_t)NA_NEVER);
  return 0;
}

static void cluster_free(na_cluster *cluster) {
  na_hosts_unref(cluster->hosts);
  state_unref(cluster->state);
  if (cluster->names)
    na_slots_unref(cluster->names, cluster->slot);
  free(cluster);
}

static int take_hosts(na_cluster *cluster, const na_cluster_args *args) {
  if (args->hosts || args->previous) {
    cluster->hosts = na_hosts_ref(args->hosts ? args->hosts : args->previous->hosts);
    return 0;
  }
  return na_hosts_create(NULL, 0, NULL, &cluster->hosts);
}

int na_cluster_create(const na_cluster_args *args, na_cluster **out) {
  size_t size = strlen(args->name) + 1;
  na_cluster *cluster = calloc(1, sizeof *cluster + size);
  if (!cluster)
    return -ENOMEM;
  memcpy(cluster->name, args->name, size);
  atomic_init(&cluster->refs, 1);
  cluster->slot = args->slot;
  cluster->config = *args->config;
  int rc = check_config(&cluster->config);
  if (!rc)
    rc = take_hosts(cluster, args);
  if (!rc) {
    cluster->state = args->previous ? state_ref(args->previous->state) : state_new(args->workers, args->seed);
    rc = cluster->state ? 0 : -ENOMEM;
  }
  if (rc) {
    cluster_free(cluster);
    return rc;
  }
  cluster->names = args->names;
  *out = cluster;
  return 0;
}

na_cluster *na_cluster_ref(na_cluster *cluster) {
  atomic_fetch_add_explicit(&cluster->refs, 1, memory_order_relaxed);
  return cluster;
}

void na_cluster_unref(na_cluster *cluster) {
  if (cluster && atomic_fetch_sub_explicit(&cluster->refs, 1, memory_order_acq_rel) == 1)
    cluster_free(cluster);
}

/* ---- limits ------------------------------------------------------------------------------------------------- */

static uint32_t limit_of(const na_cluster *cluster, enum na_limit limit) {
  switch (limit) {
  case NA_LIMIT_CONNECTIONS:
    return cluster->config.max_connections;
  case NA_LIMIT_REQUESTS:
    return cluster->config.max_requests;
  default:
    return cluster->config.max_pending;
  }
}

bool na_cluster_acquire(const na_cluster *cluster, enum na_limit limit) {
  na_cluster_state *state = cluster->state;
  uint32_t before = atomic_fetch_add_explicit(&state->in_use[limit], 1, memory_order_relaxed);
  if (before < limit_of(cluster, limit))
    return true;
  atomic_fetch_sub_explicit(&state->in_use[limit], 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&state->overflows[limit], 1, memory_order_relaxed);
  return false;
}

void na_cluster_release(const na_cluster *cluster, enum na_limit limit) {
  uint32_t before = atomic_fetch_sub_explicit(&cluster->state->in_use[limit], 1, memory_order_relaxed);
  assert(before > 0);
  (void)before;
}

void na_host_acquire(const na_host *host) {
  atomic_fetch_add_explicit(&host->state->active, 1, memory_order_relaxed);
}

void na_host_release(const na_host *host) {
  uint32_t before = atomic_fetch_sub_explicit(&host->state->active, 1, memory_order_relaxed);
  assert(before > 0);
  (void)before;
}
