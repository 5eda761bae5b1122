/* SPDX-License-Identifier: Apache-2.0
 *
 * Request heads: the verdict does not depend on how the bytes arrive; what is accepted lies within the buffer, and
 * written again and parsed again it reads the same.
 */
#include <stdlib.h>
#include <string.h>

#include "http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const na_h1_limits limits = {.max_head_bytes = 4096, .max_headers = 20, .max_request_line = 512};
static na_h1_head head, pieces, again;

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition))                                                                                                  \
      abort();                                                                                                         \
  } while (0)

static bool within(na_str s, const char *buf, size_t n) {
  return s.n == 0 || (s.p >= buf && s.p + s.n <= buf + n);
}

static bool equal(na_str a, na_str b) {
  return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* Feed the bytes in pieces whose lengths come from the bytes themselves. */
static int parse_in_pieces(const char *buf, size_t n) {
  na_h1_error error;
  uint32_t scanned = 0;
  int rc = 0;
  for (size_t have = 0; rc == 0 && have <= n;) {
    rc = na_h1_parse_request(buf, have, &scanned, &limits, &pieces, &error);
    if (have == n)
      break;
    have += 1 + (uint8_t)buf[have] % 7;
    have = have < n ? have : n;
  }
  return rc;
}

static void check_views(const char *buf, size_t n) {
  CHECK(within(head.request.method, buf, n) && head.request.method.n);
  CHECK(within(head.request.query, buf, n));
  for (uint32_t i = 0; i < head.nheaders; i++) {
    CHECK(within(head.headers[i].name, buf, n) && head.headers[i].name.n);
    CHECK(within(head.headers[i].value, buf, n));
    CHECK(!memchr(head.headers[i].value.p, '\n', head.headers[i].value.n));
  }
  CHECK(head.head_bytes <= limits.max_head_bytes && head.nheaders <= limits.max_headers);
}

/* Write the head as a client would and read it back. */
static void check_round_trip(const char *target, size_t target_n) {
  static char buf[16384];
  na_out out = {.p = buf, .size = sizeof buf};
  na_out_str(&out, head.request.method);
  na_out_bytes(&out, " ", 1);
  na_out_bytes(&out, target, target_n);
  na_out_cstr(&out, head.minor ? " HTTP/1.1\r\n" : " HTTP/1.0\r\n");
  for (uint32_t i = 0; i < head.nheaders; i++)
    na_out_header(&out, head.headers[i].name, head.headers[i].value);
  na_out_cstr(&out, "\r\n");
  CHECK(!out.over);
  na_h1_limits wide = {.max_head_bytes = sizeof buf, .max_headers = 20, .max_request_line = 512};
  na_h1_error error;
  uint32_t scanned = 0;
  CHECK(na_h1_parse_request(buf, out.n, &scanned, &wide, &again, &error) == (int)out.n);
  CHECK(equal(head.request.path, again.request.path) && equal(head.request.query, again.request.query));
  CHECK(equal(head.request.authority, again.request.authority));
  CHECK(head.nheaders == again.nheaders && head.body == again.body && head.keep_alive == again.keep_alive);
  CHECK(head.content_length == again.content_length && head.upgrade == again.upgrade);
  for (uint32_t i = 0; i < head.nheaders; i++)
    CHECK(equal(head.headers[i].value, again.headers[i].value) && head.headers[i].hop == again.headers[i].hop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *buf = malloc(size ? size : 1);
  CHECK(buf);
  memcpy(buf, data, size);
  na_h1_error error = {0};
  uint32_t scanned = 0;
  int whole = na_h1_parse_request(buf, size, &scanned, &limits, &head, &error);
  CHECK(whole >= -1 && whole <= (int)size);
  CHECK(whole != -1 || (error.reason && (error.status == 400 || error.status == 414 || error.status == 431 ||
                                         error.status == 501 || error.status == 505)));
  CHECK(parse_in_pieces(buf, size) == whole);
  na_h1_sniff(buf, size);
  if (whole > 0) {
    check_views(buf, size);
    const char *target = head.request.method.p + head.request.method.n + 1;
    check_round_trip(target, (size_t)((const char *)memchr(target, ' ', (size_t)(buf + size - target)) - target));
  }
  free(buf);
  return 0;
}
