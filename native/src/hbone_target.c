/* SPDX-License-Identifier: Apache-2.0 */
#include "hbone_target.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "tls.h"

/* Targets that are remembered for their TLS session alone, per worker. */
#define MAX_RESTING 256

static na_hbone_target *new_target(const na_hbone_dial *dial, const char *key, size_t n) {
  na_hbone_target *target = calloc(1, sizeof *target + n);
  if (!target)
    return NULL;
  memcpy(target->key, key, n);
  target->key_n = (uint32_t)n;
  na_hbone_key_read(target->key, n, &target->place);
  target->worker = dial->worker;
  na_link_init(&target->resting);
  na_link_init(&target->tunnels);
  na_link_init(&target->calls);
  /* The map takes no references: a target takes itself out. */
  if (na_map_put(&dial->worker->hbone->targets, target->key, target->key_n, target) < 0) {
    free(target);
    return NULL;
  }
  target->workload = na_workload_ref(dial->workload);
  return target;
}

static void stop_resting(na_hbone_target *target) {
  if (!na_link_in_list(&target->resting))
    return;
  na_link_remove(&target->resting);
  target->worker->hbone->nresting--;
}

na_hbone_target *na_hbone_target_for(const na_hbone_dial *dial) {
  size_t n;
  char *key = na_hbone_key_make(dial, &n);
  if (!key)
    return NULL;
  na_hbone_target *target = na_map_find(&dial->worker->hbone->targets, key, (uint32_t)n);
  if (target)
    stop_resting(target);
  else
    target = new_target(dial, key, n);
  free(key);
  return target;
}

void na_hbone_target_session(na_hbone_target *target, struct ssl_session_st *session, na_identity *identity) {
  na_tls_session_free(target->session);
  na_identity_unref(target->session_identity);
  target->session = session;
  target->session_identity = session ? na_identity_ref(identity) : NULL;
}

static void target_free(na_hbone_target *target) {
  assert(na_list_empty(&target->tunnels) && na_list_empty(&target->calls));
  stop_resting(target);
  na_map_remove(&target->worker->hbone->targets, target->key, target->key_n);
  na_hbone_target_session(target, NULL, NULL);
  na_workload_unref(target->workload);
  free(target);
}

void na_hbone_target_release(na_hbone_target *target) {
  na_hbone *hbone = target->worker->hbone;
  if (!na_list_empty(&target->tunnels) || !na_list_empty(&target->calls) || na_link_in_list(&target->resting))
    return;
  bool over = target->worker->stopping || atomic_load_explicit(&target->workload->removed, memory_order_relaxed);
  if (over || !target->session) {
    target_free(target);
    return;
  }
  na_list_push_back(&hbone->resting, &target->resting);
  if (++hbone->nresting > MAX_RESTING)
    target_free(na_container_of(hbone->resting.next, na_hbone_target, resting));
}

void na_hbone_targets_forget(na_worker *worker, const na_workload *workload) {
  na_link *resting = &worker->hbone->resting;
  for (na_link *link = resting->next, *next; link != resting; link = next) {
    next = link->next;
    na_hbone_target *target = na_container_of(link, na_hbone_target, resting);
    if (!workload || target->workload == workload)
      target_free(target);
  }
}
