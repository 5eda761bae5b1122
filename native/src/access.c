/* SPDX-License-Identifier: Apache-2.0 */
#include "access.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int na_access_init(na_access_ring *ring, uint32_t records) {
  ring->size = records;
  ring->records = malloc(records * sizeof *ring->records); /* pages are touched as they come into use */
  atomic_init(&ring->head, 0);
  atomic_init(&ring->tail, 0);
  return ring->records ? 0 : -ENOMEM;
}

void na_access_free(na_access_ring *ring) {
  free(ring->records);
  ring->records = NULL;
}

uint32_t na_access_room(const na_access_ring *ring) {
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
  return ring->size - (uint32_t)(head - atomic_load_explicit(&ring->tail, memory_order_acquire));
}

na_access_record *na_access_begin(na_access_ring *ring) {
  if (!na_access_room(ring))
    return NULL;
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
  na_access_record *record = &ring->records[head % ring->size];
  memset(record, 0, sizeof *record);
  return record;
}

void na_access_publish(na_access_ring *ring) {
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
  atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

size_t na_access_take(na_access_ring *ring, na_access_record *out, size_t max) {
  if (!ring->records)
    return 0;
  uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
  uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
  size_t n = 0;
  for (; n < max && tail < head; n++, tail++)
    out[n] = ring->records[tail % ring->size];
  atomic_store_explicit(&ring->tail, tail, memory_order_release);
  return n;
}

void na_access_text(char *field, size_t size, na_str text) {
  size_t n = text.n < size - 1 ? text.n : size - 1;
  if (n)
    memcpy(field, text.p, n);
  field[n] = '\0';
}
