/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes that wait: what a short send left over, or an incomplete head. Empty buffers own no memory. Bounds are the
 * callers', who know what they read; nothing here grows by itself.
 */
#ifndef NODEAGENT_BUFFER_H
#define NODEAGENT_BUFFER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct na_buffer {
  char *data; /* NULL when empty */
  uint32_t start;
  uint32_t end;
  uint32_t size;
} na_buffer;

static inline size_t na_buffer_length(const na_buffer *buffer) {
  return buffer->end - buffer->start;
}

static inline char *na_buffer_bytes(const na_buffer *buffer) {
  return buffer->data ? buffer->data + buffer->start : NULL;
}

/* Make room for n more bytes at the end; 0 or -ENOMEM. */
int na_buffer_reserve(na_buffer *buffer, size_t n);
/* Append a copy; 0 or -ENOMEM. */
int na_buffer_append(na_buffer *buffer, const void *bytes, size_t n);
/* Drop n bytes from the front; frees the memory when nothing is left. */
void na_buffer_consume(na_buffer *buffer, size_t n);
void na_buffer_free(na_buffer *buffer);

#endif
