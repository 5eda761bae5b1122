/* SPDX-License-Identifier: Apache-2.0
 *
 * Response heads, sniffing, and chunked framing.
 */
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "http1.h"

static const na_h1_limits limits = {.max_head_bytes = 61440, .max_headers = 100, .max_request_line = 8192};

enum { TO_HEAD = 1, TO_CONNECT = 2 };

static int parse(const char *bytes, int to, na_h1_head *head, na_h1_error *error) {
  uint32_t scanned = 0;
  return na_h1_parse_response(bytes, strlen(bytes), &scanned, &limits, to == TO_HEAD, to == TO_CONNECT, head, error);
}

static const struct {
  const char *head;
  int to, status, body;
  uint64_t length;
  int keep_alive;
} accepted[] = {
    {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", 0, 200, NA_BODY_LENGTH, 3, 1},
    {"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0, 200, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 0, 200, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 200, NA_BODY_CHUNKED, 0, 1},
    {"HTTP/1.1 200 OK\r\n\r\n", 0, 200, NA_BODY_UNTIL_CLOSE, 0, 0},
    {"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", 0, 200, NA_BODY_LENGTH, 3, 0},
    {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n", 0, 200, NA_BODY_LENGTH, 3, 1},
    {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", 0, 200, NA_BODY_UNTIL_CLOSE, 0, 0},
    {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n", 0, 200, NA_BODY_LENGTH, 3, 0},
    {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", TO_HEAD, 200, NA_BODY_NONE, 3, 1},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", TO_HEAD, 200, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 200 OK\r\n\r\n", TO_HEAD, 200, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 0, 304, NA_BODY_NONE, 9, 1},
    {"HTTP/1.1 204 No Content\r\n\r\n", 0, 204, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 0, 204, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 100 Continue\r\n\r\n", 0, 100, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 0, 101, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 200 Fine\r\n\r\n", TO_CONNECT, 200, NA_BODY_NONE, 0, 1},
    {"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n", TO_CONNECT, 403, NA_BODY_LENGTH, 2, 1},
    {"HTTP/1.1 599 \xfcml\xe4ut\r\nContent-Length: 1\r\n\r\n", 0, 599, NA_BODY_LENGTH, 1, 1},
};

static void accepts_responses(void **state) {
  for (size_t i = 0; i < COUNT(accepted); i++) {
    na_h1_head head;
    na_h1_error error = {0};
    int rc = parse(accepted[i].head, accepted[i].to, &head, &error);
    if (rc != (int)strlen(accepted[i].head))
      fail_msg("%s: %d %s", accepted[i].head, rc, rc < 0 ? error.reason : "");
    assert_int_equal(head.status, accepted[i].status);
    assert_int_equal(head.body, accepted[i].body);
    assert_int_equal(head.content_length, accepted[i].length);
    assert_int_equal(head.keep_alive, accepted[i].keep_alive);
  }
}

static const char *const refused[] = {
    "HTTP/1.1 200 OK\nContent-Length: 3\n\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 101 Switching\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 99 Low\r\n\r\n",
    "HTTP/1.1 099 Low\r\n\r\n",
    "HTTP/1.1 600 High\r\n\r\n",
    "HTTP/1.1 2000 Long\r\n\r\n",
    "HTTP/1.1 2x0 Odd\r\n\r\n",
    "HTTP/1.1  200 OK\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.1 200 O\x01K\r\n\r\n",
    "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "\r\nHTTP/1.1 200 OK\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "H2",
};

static void refuses_responses(void **state) {
  for (size_t i = 0; i < COUNT(refused); i++) {
    na_h1_head head;
    na_h1_error error;
    if (parse(refused[i], 0, &head, &error) != -1)
      fail_msg("accepted: %s", refused[i]);
  }
}

static void takes_responses_in_pieces(void **state) {
  const char *bytes = accepted[0].head;
  uint32_t scanned = 0;
  na_h1_head head;
  na_h1_error error;
  for (size_t n = 0; n < strlen(bytes); n++)
    assert_int_equal(na_h1_parse_response(bytes, n, &scanned, &limits, false, false, &head, &error), 0);
  assert_int_equal(na_h1_parse_response(bytes, strlen(bytes), &scanned, &limits, false, false, &head, &error),
                   strlen(bytes));
  na_h1_limits small = {.max_head_bytes = 20, .max_headers = 100};
  scanned = 0;
  assert_int_equal(na_h1_parse_response(bytes, 20, &scanned, &small, false, false, &head, &error), -1);
  assert_int_equal(error.status, 431);
}

/* ---- sniffing ----------------------------------------------------------------------------------------------- */

static const struct {
  const char *bytes;
  size_t n; /* 0: a string */
  int expected;
} sniffed[] = {
    {"GET / HTTP/1.1\r\n", 0, 1},
    {"GET /", 0, 1},
    {"GET ", 0, 0},
    {"GE", 0, 0},
    {"\r\n\r\nPOST /", 0, 1},
    {"\r\n", 0, 0},
    {"\rx", 0, -1},
    {"GET http://a/ HTTP/1.0\r\n", 0, 1},
    {"FOO /x HTTP/1.1\r\n", 0, 1},
    {"FOO /x", 0, 0},
    {"FOO /x\r\n", 0, -1},
    {"GET key\r\n", 0, -1},
    {"get /foo\r\n", 0, -1},
    {"EHLO example.org\r\n", 0, -1},
    {"PING\r\n", 0, -1},
    {"*1\r\n$4\r\nPING\r\n", 0, -1},
    {"SSH-2.0-OpenSSH\r\n", 0, -1},
    {"AMQP\0\0\x09\x01", 8, -1},
    {"\0\0\0\x08\x04\xd2\x16\x2f", 8, -1},
    {"P", 0, 0},
    {"PRI * HTTP/2.0", 0, 0},
    {"PRI * HTTP/2.0\r\n", 0, 2},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 2},
    {"PRI * HTTP/1.1\r\n", 0, 1},
    {"\x16", 0, 0},
    {"\x16\x03\x01", 0, -2},
    {"\x16\x03\x09", 0, -1},
    {"\x16\x02", 0, -1},
    {"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZ", 0, -1},
    {" GET /", 0, -1},
    {"GET \x01", 0, -1},
};

static void sniffs(void **state) {
  assert_int_equal(na_h1_sniff("", 0), 0);
  for (size_t i = 0; i < COUNT(sniffed); i++) {
    size_t n = sniffed[i].n ? sniffed[i].n : strlen(sniffed[i].bytes);
    int verdict = na_h1_sniff(sniffed[i].bytes, n);
    if (verdict != sniffed[i].expected)
      fail_msg("row %zu: %d, not %d: %s", i, verdict, sniffed[i].expected, sniffed[i].bytes);
  }
}

/* ---- chunked ------------------------------------------------------------------------------------------------ */

/* Feed the bytes in pieces of `step`; returns what was consumed, or -1. */
static long feed(const char *bytes, size_t n, size_t step, bool *done, na_h1_chunked *c, na_h1_error *error) {
  long used = 0;
  *done = false;
  na_h1_chunked_init(c);
  for (size_t at = 0; at < n && !*done; at += step) {
    size_t piece = step < n - at ? step : n - at;
    char *copy = malloc(piece);
    memcpy(copy, bytes + at, piece);
    long rc = na_h1_chunked_feed(c, copy, piece, done, error);
    free(copy);
    if (rc < 0)
      return -1;
    used += rc;
  }
  return used;
}

static const struct {
  const char *bytes;
  long consumed;
  uint64_t data;
  bool done;
} chunked[] = {
    {"0\r\n\r\n", 5, 0, true},
    {"5\r\nhello\r\n0\r\n\r\n", 15, 5, true},
    {"5\r\nhello\r\n0\r\n\r\nGET /", 15, 5, true},
    {"a\r\n0123456789\r\n000A\r\n0123456789\r\n00\r\n\r\n", 39, 20, true},
    {"5\r\nhel", 6, 3, false},
    {"5;a\r\nhello\r\n0;b=c;d=\"e;\\\"\t\"\r\n\r\n", 31, 5, true},
    {"0\r\nGrpc-Status: 0\r\nX-T: a b\r\n\r\n", 31, 0, true},
    {"0\r\nHos: x\r\nHosts:\r\n\r\n", 21, 0, true},
    {"7fffffffffffffff\r\nx", 19, 1, false},
};

static void follows_chunks(void **state) {
  for (size_t i = 0; i < COUNT(chunked); i++) {
    size_t n = strlen(chunked[i].bytes);
    for (size_t step = 1; step <= n; step++) {
      na_h1_chunked c;
      na_h1_error error = {0};
      bool done;
      long used = feed(chunked[i].bytes, n, step, &done, &c, &error);
      if (used != chunked[i].consumed || done != chunked[i].done || c.data_bytes != chunked[i].data)
        fail_msg("row %zu step %zu: %ld, %d, %llu: %s", i, step, used, done, (unsigned long long)c.data_bytes,
                 used < 0 ? error.reason : "");
    }
  }
}

static const char *const broken_chunks[] = {
    "\r\n",
    "g\r\n",
    "-1\r\n",
    "+1\r\n",
    "0x1\r\n",
    "5 \r\nhello",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello",
    " 5\r\nhello",
    "5\r\nhello0\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r0\r\n",
    "5;\r\nhello",
    "5;a=\r\nhello",
    "5;a b\r\nhello",
    "5; a\r\nhello",
    "5;a=\"\r\n\"\r\nhello",
    "5;a=\"b\"c\r\nhello",
    "5;a\n",
    "8000000000000000\r\n",
    "10000000000000000\r\n",
    "0\r\nA b: c\r\n\r\n",
    "0\r\n: c\r\n\r\n",
    "0\r\n folded\r\n\r\n",
    "0\r\nA: b\nC: d\r\n\r\n",
    "0\r\nA: b\x01\r\n\r\n",
    "0\r\nA: b\rc\r\n\r\n",
    "0\r\n\rx",
    "0\r\n\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-encoding: chunked\r\n\r\n",
    "0\r\nhOST: a\r\n\r\n",
    "0\r\nA: b\r\nAuthorization: c\r\n\r\n",
    "0\r\nX-Forwarded-For: 1\r\n\r\n",
};

static void refuses_broken_chunks(void **state) {
  for (size_t i = 0; i < COUNT(broken_chunks); i++) {
    size_t n = strlen(broken_chunks[i]);
    for (size_t step = 1; step <= n; step++) {
      na_h1_chunked c;
      na_h1_error error;
      bool done;
      if (feed(broken_chunks[i], n, step, &done, &c, &error) != -1)
        fail_msg("row %zu step %zu accepted: %s", i, step, broken_chunks[i]);
    }
  }
}

static void bounds_chunk_lines(void **state) {
  char bytes[10000];
  na_h1_chunked c;
  na_h1_error error;
  bool done;
  memset(bytes, 'a', sizeof bytes);
  memcpy(bytes, "5;", 2);
  assert_int_equal(feed(bytes, sizeof bytes, 100, &done, &c, &error), -1);
  assert_int_equal(error.status, 400);
  memset(bytes, '0', sizeof bytes);
  assert_int_equal(feed(bytes, sizeof bytes, 100, &done, &c, &error), -1);
  memset(bytes, 'a', sizeof bytes);
  memcpy(bytes, "0\r\nx: ", 6);
  assert_int_equal(feed(bytes, sizeof bytes, 100, &done, &c, &error), -1);
  assert_int_equal(error.status, 431);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(accepts_responses),
      cmocka_unit_test(refuses_responses),
      cmocka_unit_test(takes_responses_in_pieces),
      cmocka_unit_test(sniffs),
      cmocka_unit_test(follows_chunks),
      cmocka_unit_test(refuses_broken_chunks),
      cmocka_unit_test(bounds_chunk_lines),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
