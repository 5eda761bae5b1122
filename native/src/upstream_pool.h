/* SPDX-License-Identifier: Apache-2.0
 *
 * Unused upstream connections of a worker, kept for the next request that goes the same way: from the same workload
 * (and client address, when that is kept), to the same endpoint, for the same cluster. The one used last goes first, so
 * that surplus ones grow old and are closed.
 */
#ifndef NODEAGENT_UPSTREAM_POOL_H
#define NODEAGENT_UPSTREAM_POOL_H

#include "address.h"
#include "worker.h"

typedef struct na_upstream na_upstream; /* http_upstream.h */

typedef struct na_pool_key {
  na_workload *workload;
  na_cluster_state *cluster; /* NULL: the original destination */
  na_address remote;
  na_address source; /* the client's, port 0; zeros: our own */
  uint64_t via;      /* na_via.hash of the tunnel; 0: directly */
} na_pool_key;

/* Connections of one key, idle and in use. Lives as long as there are any. */
typedef struct na_pool {
  struct na_pool *next; /* in its bucket */
  na_pool_key key;
  na_link idle;
  uint32_t nidle;
  uint32_t refs;
  uint32_t hash;
} na_pool;

int na_pools_init(na_worker *worker);
/* Closes what is idle. */
void na_pools_free(na_worker *worker);
/* The pool of the key, with a reference for a connection; NULL for want of memory. */
na_pool *na_pool_get(na_worker *worker, const na_pool_key *key);
void na_pool_unref(na_worker *worker, na_pool *pool);
/* Whether a connection of the key is there, unused. */
bool na_pool_has_idle(const na_worker *worker, const na_pool_key *key);
/* Whether a connection of the pool, opened for a version of the pool's cluster (or NULL), leads where requests still
 * go: neither the cluster nor the endpoint is gone, nor is it reached in another way. */
bool na_pool_is_wanted(const na_worker *worker, const na_pool *pool, const na_cluster *opened_for);
/* Close what is idle and not wanted any more: after a commit. */
void na_pools_prune(na_worker *worker);
/* Close the idle connections of the workload (NULL: all). */
void na_pools_close(na_worker *worker, const na_workload *workload);

#endif
