/* SPDX-License-Identifier: Apache-2.0
 *
 * What was read from a stream and not used yet. During one event the bytes are borrowed from the worker's I/O buffer;
 * what is left at its end is kept in memory of its own, so that a connection that waits owns only what it must.
 */
#ifndef NODEAGENT_INPUT_H
#define NODEAGENT_INPUT_H

#include "stream.h"

typedef struct na_input {
  na_buffer kept;
  const char *borrowed; /* only while `kept` is empty */
  uint32_t n;
} na_input;

static inline size_t na_input_length(const na_input *input) {
  return input->n ? input->n : na_buffer_length(&input->kept);
}

static inline const char *na_input_bytes(const na_input *input) {
  return input->n ? input->borrowed : na_buffer_bytes(&input->kept);
}

/* Read more: into `io` (of io_size) when nothing waits, else behind what waits, up to `limit` bytes in all. Returns as
 * na_stream_recv; -ENOBUFS when the limit is reached. */
ssize_t na_input_fill(na_input *input, na_stream *stream, char *io, size_t io_size, size_t limit);
/* Drop n bytes from the front. They stay where they are until the next fill or keep. */
void na_input_consume(na_input *input, size_t n);
/* At the end of an event, before the I/O buffer serves somebody else: copy what is borrowed, give back what is used up.
 * 0 or -ENOMEM. */
int na_input_keep(na_input *input);
void na_input_free(na_input *input);

#endif
