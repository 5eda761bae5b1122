/* SPDX-License-Identifier: Apache-2.0
 *
 * The extent of an HTTP/1 message body, followed while its bytes pass.
 */
#ifndef NODEAGENT_HTTP_BODY_H
#define NODEAGENT_HTTP_BODY_H

#include "http1.h"

typedef struct na_h1_body {
  uint8_t kind; /* enum na_body */
  bool done;
  uint64_t bytes; /* payload that passed, framing not counted */
  union {
    uint64_t left; /* NA_BODY_LENGTH */
    na_h1_chunked chunked;
  };
} na_h1_body;

void na_h1_body_init(na_h1_body *body, const na_h1_head *head);
/* How many of the n bytes belong to the body; updates `done`. -1 with *error for invalid framing. */
long na_h1_body_feed(na_h1_body *body, const char *bytes, size_t n, na_h1_error *error);
/* As above for a chunked body whose payload is wanted: moves it to the front of `bytes`, its length in *payload. */
long na_h1_body_decode(na_h1_body *body, char *bytes, size_t n, size_t *payload, na_h1_error *error);

#endif
