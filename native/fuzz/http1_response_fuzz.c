/* SPDX-License-Identifier: Apache-2.0
 *
 * Response heads: the verdict does not depend on how the bytes arrive, and a body length is never ambiguous. The first
 * byte of the input tells what the request was.
 */
#include <stdlib.h>
#include <string.h>

#include "http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const na_h1_limits limits = {.max_head_bytes = 4096, .max_headers = 20, .max_request_line = 512};
static na_h1_head head, pieces;

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition))                                                                                                  \
      abort();                                                                                                         \
  } while (0)

static int parse_in_pieces(const char *buf, size_t n, bool to_head, bool to_connect) {
  na_h1_error error;
  uint32_t scanned = 0;
  int rc = 0;
  for (size_t have = 0; rc == 0 && have <= n;) {
    rc = na_h1_parse_response(buf, have, &scanned, &limits, to_head, to_connect, &pieces, &error);
    if (have == n)
      break;
    have += 1 + (uint8_t)buf[have] % 7;
    have = have < n ? have : n;
  }
  return rc;
}

static void check_body(bool to_head) {
  bool length = head.index[NA_HDR_CONTENT_LENGTH] >= 0, coding = head.index[NA_HDR_TRANSFER_ENCODING] >= 0;
  CHECK(!(length && coding));
  CHECK(head.body != NA_BODY_CHUNKED || (coding && head.minor == 1));
  CHECK(head.body != NA_BODY_LENGTH || (length && head.content_length));
  CHECK(head.body != NA_BODY_UNTIL_CLOSE || !head.keep_alive);
  if (to_head || head.status < 200 || head.status == 204 || head.status == 304)
    CHECK(head.body == NA_BODY_NONE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!size)
    return 0;
  bool to_head = data[0] & 1, to_connect = data[0] & 2;
  size_t n = size - 1;
  char *buf = malloc(n ? n : 1);
  CHECK(buf);
  memcpy(buf, data + 1, n);
  na_h1_error error = {0};
  uint32_t scanned = 0;
  int whole = na_h1_parse_response(buf, n, &scanned, &limits, to_head, to_connect, &head, &error);
  CHECK(whole >= -1 && whole <= (int)n);
  CHECK(whole != -1 || error.reason);
  CHECK(parse_in_pieces(buf, n, to_head, to_connect) == whole);
  if (whole > 0) {
    CHECK(head.status >= 100 && head.status <= 599);
    check_body(to_head);
  }
  free(buf);
  return 0;
}
