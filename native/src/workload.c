/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int na_workload_create(uint32_t id, int netns_fd, const char *view, const uint8_t *addresses, size_t n,
                       na_workload **out) {
  size_t view_size = strlen(view) + 1;
  na_workload *workload = calloc(1, sizeof *workload + view_size);
  if (!workload)
    return -ENOMEM;
  int error = -ENOMEM;
  workload->addresses = calloc(n ? n : 1, sizeof *workload->addresses);
  if (!workload->addresses)
    goto fail;
  workload->netns.fd = -1;
  if (netns_fd >= 0 && (error = na_netns_dup(netns_fd, &workload->netns)) < 0)
    goto fail;
  workload->id = id;
  workload->naddresses = (uint32_t)n;
  if (n)
    memcpy(workload->addresses, addresses, n * sizeof *workload->addresses);
  memcpy(workload->view, view, view_size);
  atomic_init(&workload->refs, 1);
  atomic_init(&workload->gone, false);
  atomic_init(&workload->removed, false);
  *out = workload;
  return 0;
fail:
  free(workload->addresses);
  free(workload);
  return error;
}

na_workload *na_workload_ref(na_workload *workload) {
  atomic_fetch_add_explicit(&workload->refs, 1, memory_order_relaxed);
  return workload;
}

void na_workload_unref(na_workload *workload) {
  unsigned before = atomic_fetch_sub_explicit(&workload->refs, 1, memory_order_acq_rel);
  assert(before > 0);
  if (before > 1)
    return;
  na_netns_close(&workload->netns);
  atomic_store_explicit(&workload->gone, true, memory_order_release); /* the control thread may free it now */
}

void na_workload_destroy(na_workload *workload) {
  na_netns_close(&workload->netns);
  free(atomic_load(&workload->identity));
  free(atomic_load(&workload->baggage));
  free(atomic_load(&workload->search));
  free(workload->addresses);
  free(workload->ports);
  free(workload);
}

int na_workload_set_ports(na_workload *workload, const uint16_t *ports, size_t n) {
  uint16_t *copy = calloc(n ? n : 1, sizeof *copy);
  if (!copy)
    return -ENOMEM;
  if (n)
    memcpy(copy, ports, n * sizeof *copy);
  free(workload->ports);
  workload->ports = copy;
  workload->nports = (uint32_t)n;
  workload->shared = true;
  return 0;
}

bool na_workload_serves(const na_workload *workload, uint16_t port) {
  bool found = !workload->shared;
  for (uint32_t i = 0; i < workload->nports && !found; i++)
    found = workload->ports[i] == port;
  return found;
}

bool na_workload_owns(const na_workload *workload, const uint8_t ip[16]) {
  for (uint32_t i = 0; i < workload->naddresses; i++)
    if (memcmp(workload->addresses[i], ip, 16) == 0)
      return true;
  return false;
}

int na_workload_set_text(_Atomic(char *) *field, const char *text) {
  const char *now = atomic_load_explicit(field, memory_order_relaxed);
  if (now)
    return strcmp(now, text) == 0 ? 0 : -EEXIST;
  char *copy = strdup(text);
  if (!copy)
    return -ENOMEM;
  atomic_store_explicit(field, copy, memory_order_release);
  return 0;
}

const char *na_workload_text(const _Atomic(char *) *field) {
  const char *text = atomic_load_explicit(field, memory_order_acquire);
  return text ? text : "";
}
