/* SPDX-License-Identifier: Apache-2.0 */
#include "upstream_pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hbone.h"
#include "http_upstream.h"

#define POOL_BUCKETS_MIN 256

struct na_pools {
  na_pool **buckets;
  uint32_t mask;
  uint32_t n;
};

int na_pools_init(na_worker *worker) {
  na_pools *pools = calloc(1, sizeof *pools);
  if (!pools)
    return -ENOMEM;
  pools->buckets = calloc(POOL_BUCKETS_MIN, sizeof *pools->buckets);
  if (!pools->buckets) {
    free(pools);
    return -ENOMEM;
  }
  pools->mask = POOL_BUCKETS_MIN - 1;
  worker->pools = pools;
  return 0;
}

void na_pools_free(na_worker *worker) {
  if (!worker->pools)
    return;
  na_pools_close(worker, NULL);
  assert(worker->pools->n == 0);
  free(worker->pools->buckets);
  free(worker->pools);
  worker->pools = NULL;
}

static uint32_t hash_key(const na_pool_key *key) {
  uint64_t words[4], h = ((uintptr_t)key->workload ^ (uintptr_t)key->cluster << 7) + key->remote.port + key->via;
  memcpy(words, key->remote.ip, 16);
  memcpy(words + 2, key->source.ip, 16);
  for (int i = 0; i < 4; i++) {
    h = (h ^ words[i]) * 0xd6e8feb86659fd93;
    h ^= h >> 32;
  }
  return (uint32_t)h;
}

static bool same_key(const na_pool_key *a, const na_pool_key *b) {
  return a->workload == b->workload && a->cluster == b->cluster && na_address_eq(&a->remote, &b->remote) &&
         na_address_eq(&a->source, &b->source) && a->via == b->via;
}

/* Keep chains short; without memory they just get longer. */
static void grow(na_pools *pools) {
  uint32_t size = (pools->mask + 1) * 2;
  na_pool **buckets = calloc(size, sizeof *buckets);
  if (!buckets)
    return;
  for (uint32_t i = 0; i <= pools->mask; i++)
    for (na_pool *pool = pools->buckets[i], *next; pool; pool = next) {
      next = pool->next;
      pool->next = buckets[pool->hash & (size - 1)];
      buckets[pool->hash & (size - 1)] = pool;
    }
  free(pools->buckets);
  pools->buckets = buckets;
  pools->mask = size - 1;
}

static na_pool *find(const na_pools *pools, const na_pool_key *key, uint32_t hash) {
  na_pool *pool = pools->buckets[hash & pools->mask];
  while (pool && (pool->hash != hash || !same_key(&pool->key, key)))
    pool = pool->next;
  return pool;
}

bool na_pool_has_idle(const na_worker *worker, const na_pool_key *key) {
  const na_pool *pool = find(worker->pools, key, hash_key(key));
  return pool && pool->nidle > 0;
}

na_pool *na_pool_get(na_worker *worker, const na_pool_key *key) {
  na_pools *pools = worker->pools;
  uint32_t hash = hash_key(key);
  na_pool *pool = find(pools, key, hash);
  if (pool) {
    pool->refs++;
    return pool;
  }
  pool = calloc(1, sizeof *pool);
  if (!pool)
    return NULL;
  if (pools->n > pools->mask)
    grow(pools);
  pool->key = *key;
  pool->hash = hash;
  pool->refs = 1;
  na_link_init(&pool->idle);
  na_workload_ref(key->workload);
  pool->next = pools->buckets[hash & pools->mask];
  pools->buckets[hash & pools->mask] = pool;
  pools->n++;
  return pool;
}

void na_pool_unref(na_worker *worker, na_pool *pool) {
  if (--pool->refs)
    return;
  assert(pool->nidle == 0);
  na_pool **at = &worker->pools->buckets[pool->hash & worker->pools->mask];
  while (*at != pool)
    at = &(*at)->next;
  *at = pool->next;
  worker->pools->n--;
  na_workload_unref(pool->key.workload);
  free(pool);
}

static void close_idle(na_worker *worker, na_pool *pool) {
  pool->refs++; /* the last connection would take the pool with it */
  while (!na_list_empty(&pool->idle))
    na_upstream_close(na_container_of(pool->idle.next, na_upstream, idle));
  na_pool_unref(worker, pool);
}

/* Close what came through tunnels whose identities are not the present ones. */
static void close_outdated(na_worker *worker, na_pool *pool) {
  pool->refs++;
  for (na_link *link = pool->idle.next, *next; link != &pool->idle; link = next) {
    next = link->next;
    na_upstream *upstream = na_container_of(link, na_upstream, idle);
    if (!na_hbone_is_current(&upstream->stream))
      na_upstream_close(upstream);
  }
  na_pool_unref(worker, pool);
}

bool na_pool_is_wanted(const na_worker *worker, const na_pool *pool, const na_cluster *opened_for) {
  if (!opened_for)
    return true;
  const na_cluster *now = na_snapshot_cluster(worker->snapshot, opened_for->slot);
  if (now == opened_for)
    return true;
  if (!now || now->state != pool->key.cluster || now->config.kind != opened_for->config.kind)
    return false;
  if (now->config.kind != NA_CLUSTER_ENDPOINTS || now->hosts == opened_for->hosts)
    return true;
  return na_hosts_find(now->hosts, pool->key.remote.ip, pool->key.remote.port, pool->key.via) != NULL;
}

void na_pools_prune(na_worker *worker) {
  na_pools *pools = worker->pools;
  for (uint32_t i = 0; i <= pools->mask; i++)
    for (na_pool *pool = pools->buckets[i], *next; pool; pool = next) {
      next = pool->next;
      if (na_list_empty(&pool->idle))
        continue;
      const na_upstream *any = na_container_of(pool->idle.next, na_upstream, idle);
      if (!na_pool_is_wanted(worker, pool, any->cluster))
        close_idle(worker, pool);
      else if (pool->key.via)
        close_outdated(worker, pool);
    }
}

void na_pools_close(na_worker *worker, const na_workload *workload) {
  na_pools *pools = worker->pools;
  for (uint32_t i = 0; i <= pools->mask; i++)
    for (na_pool *pool = pools->buckets[i], *next; pool; pool = next) {
      next = pool->next;
      if (!workload || pool->key.workload == workload)
        close_idle(worker, pool);
    }
}
