/* SPDX-License-Identifier: Apache-2.0 */
#include "buffer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int na_buffer_reserve(na_buffer *buffer, size_t n) {
  size_t length = na_buffer_length(buffer);
  if (buffer->size - buffer->end >= n && buffer->data)
    return 0;
  if (buffer->start && buffer->size - length >= n) {
    memmove(buffer->data, buffer->data + buffer->start, length);
  } else {
    size_t size = buffer->size ? buffer->size : 512;
    while (size < length + n)
      size *= 2;
    if (size > UINT32_MAX)
      return -ENOMEM;
    char *data = malloc(size);
    if (!data)
      return -ENOMEM;
    if (length)
      memcpy(data, buffer->data + buffer->start, length);
    free(buffer->data);
    buffer->data = data;
    buffer->size = (uint32_t)size;
  }
  buffer->start = 0;
  buffer->end = (uint32_t)length;
  return 0;
}

int na_buffer_append(na_buffer *buffer, const void *bytes, size_t n) {
  if (n == 0)
    return 0;
  int error = na_buffer_reserve(buffer, n);
  if (error)
    return error;
  memcpy(buffer->data + buffer->end, bytes, n);
  buffer->end += (uint32_t)n;
  return 0;
}

void na_buffer_consume(na_buffer *buffer, size_t n) {
  assert(n <= na_buffer_length(buffer));
  buffer->start += (uint32_t)n;
  if (buffer->start == buffer->end)
    na_buffer_free(buffer);
}

void na_buffer_free(na_buffer *buffer) {
  free(buffer->data);
  *buffer = (na_buffer){0};
}
