/* SPDX-License-Identifier: Apache-2.0 */
#include "input.h"

#include <assert.h>
#include <errno.h>

/* Room for one read behind kept bytes. */
#define NA_INPUT_STEP 16384

ssize_t na_input_fill(na_input *input, na_stream *stream, char *io, size_t io_size, size_t limit) {
  int error = na_input_keep(input);
  if (error)
    return error;
  size_t length = na_buffer_length(&input->kept);
  if (length == 0) { /* na_input_keep has given back the memory */
    ssize_t n = na_stream_recv(stream, io, io_size < limit ? io_size : limit);
    if (n > 0) {
      input->borrowed = io;
      input->n = (uint32_t)n;
    }
    return n;
  }
  if (length >= limit)
    return -ENOBUFS;
  size_t room = limit - length < NA_INPUT_STEP ? limit - length : NA_INPUT_STEP;
  if ((error = na_buffer_reserve(&input->kept, room)))
    return error;
  ssize_t n = na_stream_recv(stream, input->kept.data + input->kept.end, room);
  if (n > 0)
    input->kept.end += (uint32_t)n;
  return n;
}

void na_input_consume(na_input *input, size_t n) {
  assert(n <= na_input_length(input));
  if (input->n) {
    input->borrowed += n;
    input->n -= (uint32_t)n;
  } else {
    input->kept.start += (uint32_t)n;
  }
}

int na_input_keep(na_input *input) {
  if (na_buffer_length(&input->kept) == 0)
    na_buffer_free(&input->kept);
  if (input->n == 0)
    return 0;
  assert(!input->kept.data);
  int error = na_buffer_append(&input->kept, input->borrowed, input->n);
  input->n = 0;
  return error;
}

void na_input_free(na_input *input) {
  input->n = 0;
  na_buffer_free(&input->kept);
}
