/* SPDX-License-Identifier: Apache-2.0
 *
 * Picking an endpoint: priority, then round robin, random or least request.
 */
#include <assert.h>
#include <errno.h>

#include "bypass_abi.h"
#include "cluster.h"

/* Selections before an endpoint that was tried already is taken again; Envoy: host_selection_retry_max_attempts as
 * Istio sets it. */
#define MAX_SELECTIONS 5

/* More random bits from some: the finaliser of splitmix64. */
static uint64_t stir(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

/* A number in [0, n) from 64 random bits, each equally likely to within 2^-64. */
static uint64_t below(uint64_t random, uint64_t n) {
  return (uint64_t)((__uint128_t)random * n >> 64);
}

/* The host that owns a point of [0, total). */
static const na_host *host_at(const na_host_group *group, uint64_t point) {
  if (!group->upto)
    return group->hosts[point];
  uint32_t low = 0, high = group->n - 1;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (point < group->upto[middle])
      high = middle;
    else
      low = middle + 1;
  }
  return group->hosts[low];
}

static const na_host *pick_round_robin(const na_host_group *group, na_cluster_state *state, uint32_t worker) {
  /* One writer: a plain load and store. After a change of the endpoints the old position is as good as any. */
  _Atomic uint64_t *position = &state->cursors[worker].position;
  uint64_t point = atomic_load_explicit(position, memory_order_relaxed) % group->total;
  uint64_t next = point < group->total - group->stride ? point + group->stride : point - (group->total - group->stride);
  atomic_store_explicit(position, next, memory_order_relaxed);
  return host_at(group, point);
}

/* Power of two choices. With different weights both are drawn by weight, and requests per weight decide; equally loaded
 * hosts so get their weight's share, as with Envoy's weight / (active + 1). */
static const na_host *pick_least_request(const na_host_group *group, uint64_t random) {
  const na_host *a = host_at(group, below(random, group->total));
  const na_host *b = host_at(group, below(stir(random), group->total));
  uint64_t active_a = atomic_load_explicit(&a->state->active, memory_order_relaxed);
  uint64_t active_b = atomic_load_explicit(&b->state->active, memory_order_relaxed);
  return active_b * a->endpoint.weight < active_a * b->endpoint.weight ? b : a;
}

static const na_priority *pick_priority(const na_hosts *hosts, uint64_t random) {
  uint32_t at = (uint32_t)below(random, 100), i = 0;
  while (i < hosts->npriorities - 1 && at >= hosts->priorities[i].upto)
    i++;
  return &hosts->priorities[i];
}

/* The hosts to choose among; NULL when there are none. */
static const na_host_group *pick_group(const na_cluster *cluster, uint64_t random) {
  const na_hosts *hosts = cluster->hosts;
  if (cluster->config.kind != NA_CLUSTER_ENDPOINTS || !hosts->n)
    return NULL;
  const na_priority *priority = hosts->npriorities > 1 ? pick_priority(hosts, random) : hosts->priorities;
  return priority->group.n ? &priority->group : NULL;
}

static const na_host *pick_host(const na_cluster *cluster, const na_host_group *group, uint64_t random,
                                uint32_t worker) {
  switch ((enum na_lb)cluster->config.lb) {
  case NA_LB_ROUND_ROBIN:
    return pick_round_robin(group, cluster->state, worker);
  case NA_LB_LEAST_REQUEST:
    return pick_least_request(group, random);
  default:
    return host_at(group, below(random, group->total));
  }
}

const na_host *na_cluster_pick(const na_cluster *cluster, uint64_t random, uint32_t worker) {
  assert(worker < cluster->state->workers);
  const na_host_group *group = pick_group(cluster, random);
  return group ? pick_host(cluster, group, stir(random), worker) : NULL;
}

static bool is_tried(const na_host *host, const na_host_state *const *tried, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (tried[i] == host->state)
      return true;
  return false;
}

/* Any host that was not tried, from a random one on; NULL if all were. */
static const na_host *find_untried(const na_host_group *group, uint64_t random, const na_host_state *const *tried,
                                   uint32_t n) {
  uint32_t start = (uint32_t)below(random, group->n);
  for (uint32_t i = 0; i < group->n; i++) {
    const na_host *host = group->hosts[(start + i) % group->n];
    if (!is_tried(host, tried, n))
      return host;
  }
  return NULL;
}

const na_host *na_cluster_pick_other(const na_cluster *cluster, uint64_t random, uint32_t worker,
                                     const na_host_state *const *tried, uint32_t n) {
  assert(worker < cluster->state->workers);
  const na_host_group *group = pick_group(cluster, random);
  if (!group)
    return NULL;
  const na_host *host = NULL;
  for (int i = 0; i < MAX_SELECTIONS; i++) {
    random = stir(random);
    host = pick_host(cluster, group, random, worker);
    if (!is_tried(host, tried, n))
      return host;
  }
  const na_host *untried = find_untried(group, random, tried, n);
  return untried ? untried : host;
}

/* ---- what connect() drew ---- */

/* For connect() a service's slots stand for all its endpoints, by weight. So each endpoint gets its share if that draw
 * is heeded: one of a workload's endpoints leads there, one of an empty slot to those that have empty slots. Chosen
 * among all again, those that connect() may reach itself would get a second share. */
static bool is_drawn(const na_host *host, uint32_t drawn) {
  uint32_t local = atomic_load_explicit(&host->state->local, memory_order_relaxed);
  return local == (drawn == NA_DRAWN_ELSEWHERE ? 0 : drawn);
}

/* One of them by weight (reservoir sampling); NULL if there are none that were not tried. */
static const na_host *find_drawn(const na_host_group *group, uint64_t random, uint32_t drawn,
                                 const na_host_state *const *tried, uint32_t n) {
  const na_host *found = NULL;
  uint64_t total = 0;
  for (uint32_t i = 0; i < group->n; i++) {
    const na_host *host = group->hosts[i];
    if (!is_drawn(host, drawn) || is_tried(host, tried, n))
      continue;
    total += host->endpoint.weight;
    random = stir(random);
    if (below(random, total) < host->endpoint.weight)
      found = host;
  }
  return found;
}

const na_host *na_cluster_pick_drawn(const na_cluster *cluster, uint64_t random, uint32_t worker, uint32_t drawn,
                                     const na_host_state *const *tried, uint32_t n) {
  assert(worker < cluster->state->workers && drawn != NA_DRAWN_NONE);
  const na_host_group *group = pick_group(cluster, random);
  if (!group)
    return NULL;
  for (int i = 0; i < MAX_SELECTIONS && drawn == NA_DRAWN_ELSEWHERE; i++) {
    random = stir(random);
    const na_host *host = pick_host(cluster, group, random, worker);
    if (is_drawn(host, drawn) && !is_tried(host, tried, n))
      return host;
  }
  return find_drawn(group, random, drawn, tried, n);
}

bool na_cluster_is_worth_another(const na_cluster *cluster, uint64_t random, const na_host_state *const *tried,
                                 uint32_t n, int error) {
  if (error == -EKEYREJECTED)
    return false;
  const na_host_group *group = error == -ETIMEDOUT ? pick_group(cluster, random) : NULL;
  return error != -ETIMEDOUT || (group && find_untried(group, random, tried, n));
}
