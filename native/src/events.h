/* SPDX-License-Identifier: Apache-2.0
 *
 * The only way up to the control thread: a bounded ring per worker, and one eventfd for all of them.
 */
#ifndef NODEAGENT_EVENTS_H
#define NODEAGENT_EVENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <nodeagent/engine.h>

#include "cluster.h"

typedef struct na_event_ring {
  na_event *events;
  uint32_t size;
  int fd; /* eventfd, shared by the workers; not owned */
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t head;
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t tail;
} na_event_ring;

/* What was handed out lately, so that a need that several workers have is told once. Control thread. */
typedef struct na_event_filter {
  struct {
    uint64_t hash;
    uint64_t until_ms;
  } recent[256];
} na_event_filter;

int na_events_init(na_event_ring *ring, uint32_t size, int fd);
void na_events_free(na_event_ring *ring);
/* Worker: false when the ring is full. */
bool na_events_raise(na_event_ring *ring, const na_event *event);
/* Control thread: take events that the filter has not let through within the last second. */
size_t na_events_take(na_event_ring *ring, na_event_filter *filter, uint64_t now_ms, na_event *out, size_t max);
bool na_events_waiting(const na_event_ring *ring);

#endif
