/* SPDX-License-Identifier: Apache-2.0
 *
 * A workload: a network namespace that the engine proxies for. Made and freed by the control thread; whatever works for
 * it (a listener, a connection, a pool) holds a reference. With the last one the namespace is let go and the workload
 * is gone; its memory stays until the control thread has seen that.
 */
#ifndef NODEAGENT_WORKLOAD_H
#define NODEAGENT_WORKLOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "netns.h"

typedef struct na_workload {
  struct na_workload *next; /* the registry's, control thread */
  atomic_uint refs;
  atomic_bool gone;
  atomic_bool removed; /* draining: nothing of it is kept for later */
  bool shared;         /* others are in its namespace; this and its ports are said before it listens */
  uint32_t id;
  na_netns netns;
  uint32_t naddresses;
  uint8_t (*addresses)[16];
  uint32_t nports;
  uint16_t *ports;          /* of a shared one: those that are its */
  _Atomic(char *) identity; /* name; NULL until it is told, then for good */
  _Atomic(char *) baggage;  /* likewise */
  _Atomic(char *) search;   /* likewise: domains of its search list */
  char view[];
} na_workload;

/* Copies everything; duplicates netns_fd (-1: the engine's own). One reference, for the registry. */
int na_workload_create(uint32_t id, int netns_fd, const char *view, const uint8_t *addresses, size_t n,
                       na_workload **out);
na_workload *na_workload_ref(na_workload *workload);
void na_workload_unref(na_workload *workload);
/* Control thread: free one that is gone, or that no worker ever saw. */
void na_workload_destroy(na_workload *workload);
/* Control thread: say who it is, once. -EEXIST if it is somebody else already. */
int na_workload_set_text(_Atomic(char *) *field, const char *text);
/* The name of its identity, "" until it has one; what it says about itself to peers, "" likewise. */
const char *na_workload_text(const _Atomic(char *) *field);
/* Control thread: let it share its namespace. 0 or -ENOMEM. */
int na_workload_set_ports(na_workload *workload, const uint16_t *ports, size_t n);
/* Whether a port of its addresses is its own. */
bool na_workload_serves(const na_workload *workload, uint16_t port);
/* Whether ip is one of its own addresses. */
bool na_workload_owns(const na_workload *workload, const uint8_t ip[16]);

#endif
