/* SPDX-License-Identifier: Apache-2.0
 *
 * Endpoints arranged for picking: sorted, with their states, grouped by priority and health.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cluster.h"
#include "table.h"

/* Envoy: a priority keeps all its traffic until its healthy part is below 1/1.4 = 71 %. */
#define OVERPROVISIONING 140
#define PANIC_PERCENT    50

/* ---- host states -------------------------------------------------------------------------------------------- */

static na_host_state *host_state_new(const na_endpoint *endpoint) {
  na_host_state *state = calloc(1, sizeof *state);
  if (!state)
    return NULL;
  atomic_init(&state->refs, 1);
  memcpy(state->address, endpoint->address, sizeof state->address);
  state->port = endpoint->port;
  return state;
}

na_host_state *na_host_state_ref(na_host_state *state) {
  atomic_fetch_add_explicit(&state->refs, 1, memory_order_relaxed);
  return state;
}

void na_host_state_unref(na_host_state *state) {
  if (state && atomic_fetch_sub_explicit(&state->refs, 1, memory_order_acq_rel) == 1)
    free(state);
}

/* ---- hosts -------------------------------------------------------------------------------------------------- */

static uint64_t way_of(const na_host *host) {
  return host->via ? host->via->hash : 0;
}

/* One address may be reached in several ways: a service through each of its waypoints. */
static int compare_hosts(const void *a, const void *b) {
  const na_endpoint *x = &((const na_host *)a)->endpoint, *y = &((const na_host *)b)->endpoint;
  int order = memcmp(x->address, y->address, sizeof x->address);
  if (!order)
    order = (x->port > y->port) - (x->port < y->port);
  uint64_t v = way_of(a), w = way_of(b);
  return order ? order : (v > w) - (v < w);
}

static int compare_priorities(const void *a, const void *b) {
  uint8_t x = *(const uint8_t *)a, y = *(const uint8_t *)b;
  return (x > y) - (x < y);
}

static na_host_state *state_for(const na_host *host, const na_hosts *previous) {
  const na_host *known =
      previous && previous->n ? bsearch(host, previous->hosts, previous->n, sizeof *host, compare_hosts) : NULL;
  return known ? na_host_state_ref(known->state) : host_state_new(&host->endpoint);
}

#define HBONE_PORT 15008

static bool is_empty(const char *text) {
  return !text || !*text;
}

static int copy_text(char **out, const char *text) {
  *out = is_empty(text) ? NULL : strdup(text);
  return is_empty(text) || *out ? 0 : -ENOMEM;
}

static uint64_t hash_text(uint64_t hash, const char *text) {
  return hash * 0x9e3779b97f4a7c15 + (text ? na_hash(text, strlen(text)) : 0);
}

static int fill_via(na_via *via, const na_tunnel_config *config) {
  if (is_empty(config->identities) || config->port > UINT16_MAX || config->kind > NA_TUNNEL_MTLS ||
      (config->authority && strlen(config->authority) > NA_MAX_AUTHORITY))
    return -EINVAL; /* a peer that may be anybody would be no better than plaintext */
  memcpy(via->address, config->address, sizeof via->address);
  via->mtls = config->kind == NA_TUNNEL_MTLS;
  via->port = config->port ? (uint16_t)config->port : HBONE_PORT;
  int error = copy_text(&via->identities, config->identities);
  if (!error)
    error = copy_text(&via->inner, config->inner);
  if (!error)
    error = copy_text(&via->authority, config->authority);
  if (!error)
    error = copy_text(&via->network, config->network);
  via->hash = na_hash(via->address, 16) ^ via->port ^ (uint64_t)via->mtls << 16;
  via->hash = hash_text(via->hash, via->identities);
  via->hash = hash_text(via->hash, via->inner);
  via->hash = hash_text(via->hash, via->authority);
  via->hash = hash_text(via->hash, via->network);
  via->hash += via->hash == 0; /* 0 is for no tunnel */
  return error;
}

static int fill_vias(na_hosts *hosts, const na_hosts_args *args) {
  hosts->vias = calloc(args->ntunnels ? args->ntunnels : 1, sizeof *hosts->vias);
  if (!hosts->vias || args->ntunnels > UINT32_MAX)
    return -ENOMEM;
  hosts->nvias = (uint32_t)args->ntunnels;
  for (uint32_t i = 0; i < hosts->nvias; i++) {
    int error = fill_via(&hosts->vias[i], &args->tunnels[i]);
    if (error)
      return error;
  }
  return 0;
}

/* Copy the endpoints, sorted, each with its state. */
static int fill_hosts(na_hosts *hosts, const na_hosts_args *args, const na_hosts *previous) {
  const na_endpoint *endpoints = args->endpoints;
  size_t n = args->n;
  hosts->hosts = calloc(n ? n : 1, sizeof *hosts->hosts);
  if (!hosts->hosts)
    return -ENOMEM;
  hosts->n = (uint32_t)n;
  for (size_t i = 0; i < n; i++) {
    if (!endpoints[i].weight || !endpoints[i].port)
      return -EINVAL;
    hosts->hosts[i].endpoint = endpoints[i];
    uint32_t via = args->via ? args->via[i] : 0;
    if (via > hosts->nvias)
      return -EINVAL;
    hosts->hosts[i].via = via ? &hosts->vias[via - 1] : NULL;
  }
  qsort(hosts->hosts, n, sizeof *hosts->hosts, compare_hosts);
  for (size_t i = 0; i < n; i++) {
    if (i && compare_hosts(&hosts->hosts[i - 1], &hosts->hosts[i]) == 0)
      return -EINVAL;
    hosts->hosts[i].state = state_for(&hosts->hosts[i], previous);
    if (!hosts->hosts[i].state)
      return -ENOMEM;
  }
  return 0;
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

static uint64_t gcd(uint64_t a, uint64_t b) {
  while (b) {
    uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* The step of round robin through [0, total): coprime, so that one round meets each point once; near the golden
 * section, so that the points of a heavy host are met at even distances (three-distance theorem). */
static uint64_t golden_stride(uint64_t total) {
  assert(total > 1);
  uint64_t stride = (uint64_t)((__uint128_t)total * 0x9e3779b97f4a7c15u >> 64);
  while (gcd(stride, total) != 1)
    stride++;
  return stride;
}

static bool belongs(const na_host *host, uint8_t priority, bool all) {
  return host->endpoint.priority == priority && (all || host->endpoint.healthy);
}

/* Divide the weights by their greatest common divisor and sum them up. */
static int sum_weights(na_host_group *group) {
  uint64_t divisor = 0;
  bool equal = true;
  for (uint32_t i = 0; i < group->n; i++) {
    divisor = gcd(group->hosts[i]->endpoint.weight, divisor);
    equal = equal && group->hosts[i]->endpoint.weight == group->hosts[0]->endpoint.weight;
  }
  group->total = group->n;
  group->stride = 1;
  if (equal)
    return 0;
  group->upto = malloc(group->n * sizeof *group->upto);
  if (!group->upto)
    return -ENOMEM;
  group->total = 0;
  for (uint32_t i = 0; i < group->n; i++)
    group->upto[i] = group->total += group->hosts[i]->endpoint.weight / divisor;
  group->stride = golden_stride(group->total);
  return 0;
}

static int fill_group(na_host_group *group, const na_hosts *hosts, uint8_t priority, bool all) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < hosts->n; i++)
    n += belongs(&hosts->hosts[i], priority, all);
  group->hosts = malloc((n ? n : 1) * sizeof *group->hosts);
  if (!group->hosts)
    return -ENOMEM;
  for (uint32_t i = 0; i < hosts->n; i++)
    if (belongs(&hosts->hosts[i], priority, all))
      group->hosts[group->n++] = &hosts->hosts[i];
  return sum_weights(group);
}

/* ---- priorities --------------------------------------------------------------------------------------------- */

/* How much of a priority is there. */
typedef struct level {
  uint8_t priority;
  uint32_t total;
  uint32_t healthy;
} level;

/* List the priorities in use, lowest number first; returns how many. */
static uint32_t list_levels(const na_hosts *hosts, level levels[256]) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < hosts->n; i++) {
    const na_endpoint *endpoint = &hosts->hosts[i].endpoint;
    uint32_t at = 0;
    while (at < n && levels[at].priority != endpoint->priority)
      at++;
    if (at == n)
      levels[n++] = (level){.priority = endpoint->priority};
    levels[at].total++;
    levels[at].healthy += endpoint->healthy != 0;
  }
  _Static_assert(offsetof(level, priority) == 0, "compare_priorities reads the first byte");
  qsort(levels, n, sizeof *levels, compare_priorities);
  return n;
}

static uint32_t availability(const level *l) {
  uint32_t percent = (uint32_t)((uint64_t)OVERPROVISIONING * l->healthy / l->total);
  return percent < 100 ? percent : 100;
}

/* Share 100 parts among the priorities. With no healthy host anywhere, by number of hosts. */
static void share(const level *levels, uint32_t n, na_priority *priorities) {
  uint64_t available = 0, hosts = 0, upto = 0;
  uint32_t last = 0;
  for (uint32_t i = 0; i < n; i++) {
    available += availability(&levels[i]);
    hosts += levels[i].total;
  }
  for (uint32_t i = 0; i < n; i++) {
    uint64_t part = available >= 100 ? availability(&levels[i])
                    : available      ? availability(&levels[i]) * 100 / available
                                     : levels[i].total * UINT64_C(100) / hosts;
    last = part && upto < 100 ? i : last;
    upto = upto + part < 100 ? upto + part : 100;
    priorities[i].upto = (uint32_t)upto;
    priorities[i].panic = available < 100 && levels[i].healthy * UINT64_C(100) < levels[i].total * PANIC_PERCENT;
  }
  /* What rounding left over goes to the last priority that has a share. */
  for (uint32_t i = last; i < n; i++)
    priorities[i].upto = 100;
}

static int fill_priorities(na_hosts *hosts) {
  level levels[256];
  uint32_t n = list_levels(hosts, levels);
  hosts->priorities = calloc(n ? n : 1, sizeof *hosts->priorities);
  if (!hosts->priorities)
    return -ENOMEM;
  hosts->npriorities = n;
  share(levels, n, hosts->priorities);
  for (uint32_t i = 0; i < n; i++) {
    int rc = fill_group(&hosts->priorities[i].group, hosts, levels[i].priority, hosts->priorities[i].panic);
    if (rc)
      return rc;
  }
  return 0;
}

/* ---- whole -------------------------------------------------------------------------------------------------- */

static void free_via(na_via *via) {
  free(via->identities);
  free(via->inner);
  free(via->authority);
  free(via->network);
}

static void hosts_free(na_hosts *hosts) {
  for (uint32_t i = 0; i < hosts->npriorities; i++) {
    free(hosts->priorities[i].group.hosts);
    free(hosts->priorities[i].group.upto);
  }
  for (uint32_t i = 0; i < hosts->n; i++)
    na_host_state_unref(hosts->hosts[i].state);
  for (uint32_t i = 0; i < hosts->nvias; i++)
    free_via(&hosts->vias[i]);
  free(hosts->vias);
  free(hosts->priorities);
  free(hosts->hosts);
  free(hosts);
}

int na_hosts_create(const na_endpoint *endpoints, size_t n, const na_hosts *previous, na_hosts **out) {
  na_hosts_args args = {.endpoints = endpoints, .n = n};
  return na_hosts_create_via(&args, previous, out);
}

int na_hosts_create_via(const na_hosts_args *args, const na_hosts *previous, na_hosts **out) {
  if (args->n > UINT32_MAX)
    return -EINVAL;
  na_hosts *hosts = calloc(1, sizeof *hosts);
  if (!hosts)
    return -ENOMEM;
  atomic_init(&hosts->refs, 1);
  int rc = fill_vias(hosts, args);
  if (!rc)
    rc = fill_hosts(hosts, args, previous);
  if (!rc)
    rc = fill_priorities(hosts);
  if (rc)
    hosts_free(hosts);
  else
    *out = hosts;
  return rc;
}

const na_host *na_hosts_find(const na_hosts *hosts, const uint8_t address[16], uint16_t port, uint64_t via) {
  const na_via way = {.hash = via};
  na_host wanted = {.endpoint.port = port, .via = via ? &way : NULL};
  memcpy(wanted.endpoint.address, address, sizeof wanted.endpoint.address);
  return hosts->n ? bsearch(&wanted, hosts->hosts, hosts->n, sizeof wanted, compare_hosts) : NULL;
}

int na_local_endpoint_compare(const na_local_endpoint *local, const uint8_t address[16], uint16_t port) {
  int order = memcmp(local->address, address, sizeof local->address);
  return order ? order : (local->port > port) - (local->port < port);
}

void na_hosts_note_local(const na_hosts *hosts, const na_local_endpoint *local, size_t n) {
  size_t at = 0; /* both are sorted */
  for (uint32_t i = 0; i < hosts->n; i++) {
    const na_endpoint *endpoint = &hosts->hosts[i].endpoint;
    int order = -1;
    while (at < n && (order = na_local_endpoint_compare(&local[at], endpoint->address, endpoint->port)) < 0)
      at++;
    uint32_t workload = at < n && order == 0 ? local[at].workload : 0;
    atomic_store_explicit(&hosts->hosts[i].state->local, workload, memory_order_relaxed);
  }
}

na_hosts *na_hosts_ref(na_hosts *hosts) {
  atomic_fetch_add_explicit(&hosts->refs, 1, memory_order_relaxed);
  return hosts;
}

void na_hosts_unref(na_hosts *hosts) {
  if (hosts && atomic_fetch_sub_explicit(&hosts->refs, 1, memory_order_acq_rel) == 1)
    hosts_free(hosts);
}
