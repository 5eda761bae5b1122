/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "table.h"

int na_events_init(na_event_ring *ring, uint32_t size, int fd) {
  ring->size = size;
  ring->fd = fd;
  ring->events = malloc(size * sizeof *ring->events);
  atomic_init(&ring->head, 0);
  atomic_init(&ring->tail, 0);
  return ring->events ? 0 : -ENOMEM;
}

void na_events_free(na_event_ring *ring) {
  free(ring->events);
  ring->events = NULL;
}

bool na_events_raise(na_event_ring *ring, const na_event *event) {
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
  if (head - atomic_load_explicit(&ring->tail, memory_order_acquire) >= ring->size)
    return false;
  ring->events[head % ring->size] = *event;
  atomic_store_explicit(&ring->head, head + 1, memory_order_release);
  /* Cannot block or fail in a way that matters: a saturated eventfd is readable already. */
  (void)eventfd_write(ring->fd, 1);
  return true;
}

/* A worker repeats a need after a full second; a little less, so that jitter never swallows a repetition. */
#define FILTER_MS 900

static bool is_new(na_event_filter *filter, uint64_t now_ms, const na_event *event) {
  uint64_t hash = na_hash(event, sizeof *event); /* zero beyond its strings */
  size_t at = hash % (sizeof filter->recent / sizeof *filter->recent);
  if (filter->recent[at].hash == hash && filter->recent[at].until_ms > now_ms)
    return false;
  filter->recent[at].hash = hash;
  filter->recent[at].until_ms = now_ms + FILTER_MS;
  return true;
}

size_t na_events_take(na_event_ring *ring, na_event_filter *filter, uint64_t now_ms, na_event *out, size_t max) {
  uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
  size_t n = 0;
  for (; n < max && tail < head; tail++) {
    const na_event *event = &ring->events[tail % ring->size];
    if (is_new(filter, now_ms, event))
      out[n++] = *event;
  }
  atomic_store_explicit(&ring->tail, tail, memory_order_release);
  return n;
}

bool na_events_waiting(const na_event_ring *ring) {
  return atomic_load_explicit(&ring->head, memory_order_acquire) !=
         atomic_load_explicit(&ring->tail, memory_order_relaxed);
}
