/* SPDX-License-Identifier: Apache-2.0 */
#include "http_body.h"

#include <string.h>

void na_h1_body_init(na_h1_body *body, const na_h1_head *head) {
  *body = (na_h1_body){.kind = head->body};
  if (body->kind == NA_BODY_CHUNKED)
    na_h1_chunked_init(&body->chunked);
  else if (body->kind == NA_BODY_LENGTH)
    body->left = head->content_length;
  body->done = body->kind == NA_BODY_NONE || (body->kind == NA_BODY_LENGTH && body->left == 0);
}

static long feed_chunked(na_h1_body *body, const char *bytes, size_t n, na_h1_error *error) {
  bool done = false;
  long taken = na_h1_chunked_feed(&body->chunked, bytes, n, &done, error);
  body->bytes = body->chunked.data_bytes;
  body->done = done;
  return taken;
}

long na_h1_body_feed(na_h1_body *body, const char *bytes, size_t n, na_h1_error *error) {
  if (body->done)
    return 0;
  if (body->kind == NA_BODY_CHUNKED)
    return feed_chunked(body, bytes, n, error);
  if (body->kind == NA_BODY_LENGTH) {
    if (n > body->left)
      n = (size_t)body->left;
    body->left -= n;
    body->done = body->left == 0;
  }
  body->bytes += n;
  return (long)n;
}

long na_h1_body_decode(na_h1_body *body, char *bytes, size_t n, size_t *payload, na_h1_error *error) {
  size_t in = 0, out = 0;
  while (in < n && !body->done) {
    uint64_t before = body->bytes;
    long taken = feed_chunked(body, bytes + in, 1, error);
    if (taken < 0)
      return -1;
    size_t data = (size_t)(body->bytes - before);
    if (data) { /* inside a chunk: the rest of it follows */
      size_t rest = n - in - 1 < body->chunked.left ? n - in - 1 : (size_t)body->chunked.left;
      if (rest && feed_chunked(body, bytes + in + 1, rest, error) < 0)
        return -1;
      data += rest;
      memmove(bytes + out, bytes + in, data);
      out += data;
    }
    in += data ? data : (size_t)taken;
  }
  *payload = out;
  return (long)in;
}
