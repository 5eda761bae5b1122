/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's finished requests and connections on their way to the control thread: a ring with one writer and one
 * reader. A full ring drops the new record and counts it; a worker never waits.
 */
#ifndef NODEAGENT_ACCESS_H
#define NODEAGENT_ACCESS_H

#include <stdatomic.h>
#include <stddef.h>

#include <nodeagent/engine.h>

#include "cluster.h"
#include "http1.h"

typedef struct na_access_ring {
  na_access_record *records; /* NULL: access log off */
  uint32_t size;
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t head; /* written by the worker */
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t tail; /* read by the control thread */
} na_access_ring;

int na_access_init(na_access_ring *ring, uint32_t records);
void na_access_free(na_access_ring *ring);
/* Worker: how many more records have room. */
uint32_t na_access_room(const na_access_ring *ring);
/* Worker: a zeroed record to fill, published by na_access_publish; NULL when the ring is full. */
na_access_record *na_access_begin(na_access_ring *ring);
void na_access_publish(na_access_ring *ring);
/* Control thread. */
size_t na_access_take(na_access_ring *ring, na_access_record *out, size_t max);

/* Copy text into a field of a record, cut at its size and terminated. */
void na_access_text(char *field, size_t size, na_str text);

#endif
