/* SPDX-License-Identifier: Apache-2.0
 *
 * Chunked framing: the same end, payload and verdict whether the bytes come at once or one by one, and the end is where
 * a plain reader of the grammar finds it.
 */
#include <stdlib.h>
#include <string.h>

#include "http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition))                                                                                                  \
      abort();                                                                                                         \
  } while (0)

/* Feed in pieces of `step` bytes; returns what was consumed, or -1. */
static long feed(const char *buf, size_t n, size_t step, na_h1_chunked *c, bool *done) {
  na_h1_error error = {0};
  long used = 0;
  *done = false;
  na_h1_chunked_init(c);
  for (size_t at = 0; at < n && !*done; at += step) {
    size_t piece = step < n - at ? step : n - at;
    long rc = na_h1_chunked_feed(c, buf + at, piece, done, &error);
    if (rc < 0) {
      CHECK(error.reason && (error.status == 400 || error.status == 431));
      return -1;
    }
    CHECK((size_t)rc == piece || *done);
    used += rc;
  }
  return used;
}

/* Where a complete message ends, read line by line with the C library. */
static long plain_end(const char *buf, size_t n, uint64_t *payload) {
  size_t at = 0;
  *payload = 0;
  for (;;) {
    char digits[20] = {0};
    size_t i = 0;
    while (at + 1 < n && buf[at] == '0' && buf[at + 1] == '0')
      at++;
    while (at + i < n && i < 19 && strchr("0123456789abcdefABCDEF", buf[at + i]) && buf[at + i])
      digits[i] = buf[at + i], i++;
    uint64_t length = strtoull(digits, NULL, 16);
    const char *lf = memchr(buf + at, '\n', n - at);
    CHECK(lf);
    at = (size_t)(lf - buf) + 1;
    if (!length)
      break;
    CHECK(n - at >= length + 2);
    *payload += length;
    at += length + 2;
  }
  for (;;) {
    const char *lf = memchr(buf + at, '\n', n - at);
    CHECK(lf);
    size_t line = (size_t)(lf - buf) - at;
    at += line + 1;
    if (line == 1)
      return (long)at;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  na_h1_chunked whole, bytes;
  bool whole_done, bytes_done;
  char *buf = malloc(size ? size : 1);
  CHECK(buf);
  memcpy(buf, data, size);
  long used = feed(buf, size, size ? size : 1, &whole, &whole_done);
  CHECK(feed(buf, size, 1, &bytes, &bytes_done) == used);
  if (used >= 0) {
    CHECK(whole_done == bytes_done && whole.data_bytes == bytes.data_bytes && whole.state == bytes.state);
    uint64_t payload;
    if (whole_done)
      CHECK(plain_end(buf, size, &payload) == used && payload == whole.data_bytes);
  }
  free(buf);
  return 0;
}
