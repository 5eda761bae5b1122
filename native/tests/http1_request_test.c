/* SPDX-License-Identifier: Apache-2.0
 *
 * Request heads: what is accepted and how it is read, what is refused and why, limits, arrival in pieces.
 */
#include <ctype.h>
#include <nodeagent/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "http1_parse.h"

static const na_h1_limits limits = {.max_head_bytes = 61440, .max_headers = 100, .max_request_line = 8192};

/* Parse a copy that ends where the bytes end, so that the sanitizer sees each read beyond. */
static int parse(const char *bytes, size_t n, na_h1_head *head, na_h1_error *error) {
  static char *copy;
  free(copy);
  copy = malloc(n ? n : 1);
  assert_non_null(copy);
  memcpy(copy, bytes, n);
  uint32_t scanned = 0;
  return na_h1_parse_request(copy, n, &scanned, &limits, head, error);
}

static void assert_str(na_str actual, const char *expected) {
  if (!na_str_eq(actual, expected))
    fail_msg("'%.*s' is not '%s'", (int)actual.n, actual.p, expected);
}

/* ---- scanning ----------------------------------------------------------------------------------------------- */

/* Whether a byte may be in a field's name, or value: RFC 9110 5.6.2, 5.5. */
static bool belongs(int c, bool name) {
  bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  if (name)
    return alphanumeric || (c && strchr("!#$%&'*+-.^_`|~", c));
  return c == '\t' || (c >= ' ' && c != 0x7f);
}

/* A head whose second header has a name or value of n bytes, of which the one at `at` is c. */
static size_t head_with(char *out, bool name, size_t n, size_t at, int c) {
  char run[64];
  memset(run, name ? 'n' : 'v', n);
  run[at] = (char)c;
  const char *before = name ? "GET / HTTP/1.1\r\nHost: a\r\n" : "GET / HTTP/1.1\r\nHost: a\r\nx: ";
  const char *after = name ? ": v\r\n\r\n" : "\r\n\r\n";
  size_t start = strlen(before);
  memcpy(out, before, start);
  memcpy(out + start, run, n);
  memcpy(out + start + n, after, strlen(after));
  return start + n + strlen(after);
}

/* Every byte at every place of runs around the steps in which they are scanned. */
static void checks_every_byte(void **state) {
  static const size_t lengths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33};
  static na_h1_head head;
  na_h1_error error;
  char bytes[160];
  for (size_t i = 0; i < COUNT(lengths); i++)
    for (size_t at = 0; at < lengths[i]; at++)
      for (int c = 0; c < 256; c++)
        for (int name = 0; name < 2; name++) {
          if (c == '\n' || (name && c == ':')) /* it would be another head */
            continue;
          size_t n = head_with(bytes, name, lengths[i], at, c);
          int rc = parse(bytes, n, &head, &error);
          if (rc != (belongs(c, name) ? (int)n : -1))
            fail_msg("byte %#x at %zu of %zu in a %s: %d", c, at, lengths[i], name ? "name" : "value", rc);
        }
}

static const struct {
  const char *name;
  enum na_header_id id;
} known[] = {
    {"te", NA_HDR_TE},
    {"host", NA_HDR_HOST},
    {"date", NA_HDR_DATE},
    {"expect", NA_HDR_EXPECT},
    {"server", NA_HDR_SERVER},
    {"trailer", NA_HDR_TRAILER},
    {"upgrade", NA_HDR_UPGRADE},
    {"connection", NA_HDR_CONNECTION},
    {"keep-alive", NA_HDR_KEEP_ALIVE},
    {"user-agent", NA_HDR_USER_AGENT},
    {"content-type", NA_HDR_CONTENT_TYPE},
    {"x-request-id", NA_HDR_X_REQUEST_ID},
    {"content-length", NA_HDR_CONTENT_LENGTH},
    {"x-forwarded-for", NA_HDR_X_FORWARDED_FOR},
    {"proxy-connection", NA_HDR_PROXY_CONNECTION},
    {"transfer-encoding", NA_HDR_TRANSFER_ENCODING},
    {"x-forwarded-proto", NA_HDR_X_FORWARDED_PROTO},
    {"x-forwarded-client-cert", NA_HDR_X_FORWARDED_CLIENT_CERT},
};

/* In either case, and not by all but one of its bytes, whatever token stands there instead. */
static void knows_names_exactly(void **state) {
  char name[32];
  assert_int_equal(COUNT(known), NA_HDR_COUNT - 1);
  for (size_t i = 0; i < COUNT(known); i++) {
    size_t n = strlen(known[i].name);
    for (size_t at = 0; at < n; at++)
      for (int c = 1; c < 256; c++) {
        if (!belongs(c, true))
          continue;
        memcpy(name, known[i].name, n);
        name[at] = (char)c;
        bool same = tolower(c) == known[i].name[at];
        assert_int_equal(na_h1_header_id(name, n), same ? known[i].id : NA_HDR_OTHER);
      }
  }
}

/* ---- accepted ----------------------------------------------------------------------------------------------- */

static const struct {
  const char *head, *method, *authority, *path, *query;
  int minor, body;
  uint64_t length;
  int keep_alive;
} accepted[] = {
    {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "a", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "a", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET /a/b?c=d&e HTTP/1.1\r\nhOsT:a:80\r\n\r\n", "GET", "a:80", "/a/b", "c=d&e", 1, NA_BODY_NONE, 0, 1},
    {"GET /? HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "a", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET /?a?b HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "a", "/", "a?b", 1, NA_BODY_NONE, 0, 1},
    {"GET http://b/p?q HTTP/1.1\r\nHost: B\r\n\r\n", "GET", "b", "/p", "q", 1, NA_BODY_NONE, 0, 1},
    {"GET http://b HTTP/1.1\r\nHost: b:80\r\n\r\n", "GET", "b", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET https://b:443/ HTTP/1.1\r\nHost: b\r\n\r\n", "GET", "b:443", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET http://b?q HTTP/1.1\r\nHost: b\r\n\r\n", "GET", "b", "/", "q", 1, NA_BODY_NONE, 0, 1},
    {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS", "a", "*", "", 1, NA_BODY_NONE, 0, 1},
    {"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "CONNECT", "a:443", "", "", 1, NA_BODY_NONE, 0, 1},
    {"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "CONNECT", "[::1]:443", "", "", 1, NA_BODY_NONE, 0, 1},
    {"GET / HTTP/1.1\r\nHost: [fd00::1]:80\r\n\r\n", "GET", "[fd00::1]:80", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET", "", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET / HTTP/1.0\r\n\r\n", "GET", "", "/", "", 0, NA_BODY_NONE, 0, 0},
    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET", "", "/", "", 0, NA_BODY_NONE, 0, 1},
    {"GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, CLOSE\r\n\r\n", "GET", "a", "/", "", 1, NA_BODY_NONE, 0, 0},
    {"GET / HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n", "GET", "", "/", "", 0, NA_BODY_NONE, 0, 0},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", "POST", "a", "/", "", 1, NA_BODY_LENGTH, 5, 1},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "POST", "a", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:\t 007 \t\r\n\r\n", "POST", "a", "/", "", 1, NA_BODY_LENGTH, 7, 1},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n", "POST", "a", "/", "", 1,
     NA_BODY_LENGTH, INT64_MAX, 1},
    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", "POST", "a", "/", "", 1, NA_BODY_CHUNKED, 0,
     1},
    {"M-SEARCH /x HTTP/1.1\r\nHost: a\r\nX-Utf8: \xc3\xbc\r\nEmpty:\r\nTab: a\tb\r\n\r\n", "M-SEARCH", "a", "/x", "", 1,
     NA_BODY_NONE, 0, 1},
    {"!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n", "!#$%&'*+-.^_`|~", "a", "/", "", 1, NA_BODY_NONE, 0, 1},
    {"GET /\"<>[\\]^`{|} HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "a", "/\"<>[\\]^`{|}", "", 1, NA_BODY_NONE, 0, 1},
};

static void accepts_and_reads(void **state) {
  for (size_t i = 0; i < COUNT(accepted); i++) {
    na_h1_head head;
    na_h1_error error = {0};
    size_t n = strlen(accepted[i].head);
    int rc = parse(accepted[i].head, n, &head, &error);
    if (rc != (int)n)
      fail_msg("%s: %d, %s", accepted[i].head, rc, error.reason ? error.reason : "");
    assert_str(head.request.method, accepted[i].method);
    assert_str(head.request.authority, accepted[i].authority);
    assert_str(head.request.path, accepted[i].path);
    assert_str(head.request.query, accepted[i].query);
    assert_int_equal(head.minor, accepted[i].minor);
    assert_int_equal(head.body, accepted[i].body);
    assert_int_equal(head.content_length, accepted[i].length);
    assert_int_equal(head.keep_alive, accepted[i].keep_alive);
    assert_int_equal(head.head_bytes, n);
  }
}

/* Whatever the pieces, the answer is the same, and it comes with the last byte of the head. */
static void accepts_byte_by_byte(void **state) {
  for (size_t i = 0; i < COUNT(accepted); i++) {
    size_t n = strlen(accepted[i].head);
    char *copy = strdup(accepted[i].head);
    uint32_t scanned = 0;
    na_h1_head head;
    na_h1_error error = {0};
    for (size_t have = 0; have < n; have++) {
      int rc = na_h1_parse_request(copy, have, &scanned, &limits, &head, &error);
      if (rc != 0)
        fail_msg("%s: %d after %zu bytes (%s)", copy, rc, have, rc < 0 ? error.reason : "");
    }
    assert_int_equal(na_h1_parse_request(copy, n, &scanned, &limits, &head, &error), n);
    free(copy);
  }
}

static void leaves_what_follows(void **state) {
  const char bytes[] = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
  na_h1_head head;
  na_h1_error error;
  int first = parse(bytes, sizeof bytes - 1, &head, &error);
  assert_int_equal(first, (sizeof bytes - 1) / 2);
  assert_str(head.request.path, "/1");
}

static void recognises_headers(void **state) {
  const char bytes[] = "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: ua\r\nTE: trailers\r\nX-Forwarded-For: 1\r\n"
                       "X-FORWARDED-PROTO: https\r\nX-Request-Id: id\r\nExpect: 100-Continue\r\nUpgrade: websocket\r\n"
                       "Connection: Upgrade, X-Hop\r\nx-hop: 1\r\nDate: d\r\nServer: s\r\nContent-Type: t\r\n"
                       "Keep-Alive: 1\r\nProxy-Connection: x\r\nTrailer: y\r\nOther: z\r\nHos: q\r\n\r\n";
  static const struct {
    int id;
    const char *value;
    int hop;
  } expected[] = {
      {NA_HDR_HOST, "a", 0},
      {NA_HDR_USER_AGENT, "ua", 0},
      {NA_HDR_TE, "trailers", 1},
      {NA_HDR_X_FORWARDED_FOR, "1", 0},
      {NA_HDR_X_FORWARDED_PROTO, "https", 0},
      {NA_HDR_X_REQUEST_ID, "id", 0},
      {NA_HDR_EXPECT, "100-Continue", 0},
      {NA_HDR_UPGRADE, "websocket", 1},
      {NA_HDR_CONNECTION, "Upgrade, X-Hop", 1},
      {NA_HDR_OTHER, "1", 1},
      {NA_HDR_DATE, "d", 0},
      {NA_HDR_SERVER, "s", 0},
      {NA_HDR_CONTENT_TYPE, "t", 0},
      {NA_HDR_KEEP_ALIVE, "1", 1},
      {NA_HDR_PROXY_CONNECTION, "x", 1},
      {NA_HDR_TRAILER, "y", 0},
      {NA_HDR_OTHER, "z", 0},
      {NA_HDR_OTHER, "q", 0},
  };
  na_h1_head head;
  na_h1_error error;
  assert_true(parse(bytes, sizeof bytes - 1, &head, &error) > 0);
  assert_int_equal(head.nheaders, COUNT(expected));
  for (size_t i = 0; i < COUNT(expected); i++) {
    assert_int_equal(head.headers[i].id, expected[i].id);
    assert_int_equal(head.headers[i].hop, expected[i].hop);
    assert_str(head.headers[i].value, expected[i].value);
  }
  assert_true(head.upgrade);
  assert_true(head.expect_continue);
  assert_int_equal(head.index[NA_HDR_USER_AGENT], 1);
  assert_int_equal(head.index[NA_HDR_CONTENT_LENGTH], -1);
  assert_ptr_equal(na_h1_find(&head.request, na_str_of("OTHER")), &head.headers[16]);
  assert_null(na_h1_find(&head.request, na_str_of("absent")));
}

/* ---- refused ------------------------------------------------------------------------------------------------ */

#define H "GET / HTTP/1.1\r\nHost: a\r\n"
#define P "POST / HTTP/1.1\r\nHost: a\r\n"

static const struct {
  const char *head;
  size_t n; /* 0: a string */
  int status;
  const char *reason;
} refused[] = {
    /* lines */
    {"GET / HTTP/1.1\nHost: a\n\n", 0, 400, "bare LF"},
    {"GET / HTTP/1.1\r\nHost: a\n\r\n", 0, 400, "bare LF"},
    {"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "bare LF"},
    {"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "method"},
    {H "A: b\rc\r\n\r\n", 0, 400, "bare CR"},
    {H "A: b\r\r\n\r\n", 0, 400, "bare CR"},
    {"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 0, 400, "version"},
    /* request line */
    {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "method"},
    {"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "method"},
    {"GET\r\nHost: a\r\n\r\n", 0, 400, "method"},
    {"GET /\r\n\r\n", 0, 400, "without version"},
    {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "method"},
    {"GET / http/1.1\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET / HTTP/11\r\nHost: a\r\n\r\n", 0, 400, "version"},
    {"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 0, 505, "not supported"},
    {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 0, 505, "not supported"},
    {"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 0, 505, "not supported"},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 505, "not supported"},
    /* target */
    {"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "form"},
    {"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "OPTIONS"},
    {"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "fragment"},
    {"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "target"},
    {"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "target"},
    {"GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "target"},
    {"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 29, 400, "target"},
    {"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "form"},
    {"GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "form"},
    {"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "authority"},
    {"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "authority"},
    {"GET http://a:99999/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "authority"},
    {"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "differs"},
    {"GET http://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n", 0, 400, "differs"},
    {"GET http://a/ HTTP/1.1\r\n\r\n", 0, 400, "without Host"},
    {"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "CONNECT"},
    {"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "CONNECT"},
    {"CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n", 0, 400, "CONNECT"},
    {"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", 0, 400, "CONNECT"},
    {"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 400, "CONNECT"},
    /* headers */
    {H "A : b\r\n\r\n", 0, 400, "before the colon"},
    {H "A\t: b\r\n\r\n", 0, 400, "before the colon"},
    {H ": b\r\n\r\n", 0, 400, "empty header name"},
    {H "A\r\n\r\n", 0, 400, "header name"},
    {H "A(: b\r\n\r\n", 0, 400, "header name"},
    {H "\xc3\xbc: b\r\n\r\n", 0, 400, "header name"},
    {H " A: b\r\n\r\n", 0, 400, "folded"},
    {H "A: b\r\n c\r\n\r\n", 0, 400, "folded"},
    {H "A: b\r\n\tc\r\n\r\n", 0, 400, "folded"},
    {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 0, 400, "folded"},
    {H "A: b\0c\r\n\r\n", 36, 400, "NUL"},
    {H "A\0: b\r\n\r\n", 35, 400, "header name"},
    {H "A: b\x01\r\n\r\n", 0, 400, "control"},
    {H "A: 12345678\x7f\r\n\r\n", 0, 400, "control"},
    /* Host */
    {"GET / HTTP/1.1\r\n\r\n", 0, 400, "without Host"},
    {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 0, 400, "more than one Host"},
    {"GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", 0, 400, "more than one Host"},
    {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 0, 400, "invalid Host"},
    {"GET / HTTP/1.1\r\nHost: \xc3\xbc\r\n\r\n", 0, 400, "invalid Host"},
    /* body length */
    {P "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 400, "with Content-Length"},
    {P "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 0, 400, "with Content-Length"},
    {P "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 400, "more than one Transfer"},
    {P "Transfer-Encoding: chunked, identity\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding: gzip, chunked\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding: xchunked\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding: chunked;a=b\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding: \"chunked\"\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding:\r\n\r\n", 0, 501, "other than chunked"},
    {P "Transfer-Encoding: \x0b"
       "chunked\r\n\r\n",
     0, 400, "control"},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 400, "HTTP/1.0"},
    {P "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 0, 400, "more than one Content-Length"},
    {P "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 0, 400, "more than one Content-Length"},
    {P "Content-Length: 5, 5\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: +5\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: -5\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: 0x5\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: 5 5\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length:\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: 9223372036854775808\r\n\r\n", 0, 400, "invalid Content-Length"},
    {P "Content-Length: 18446744073709551621\r\n\r\n", 0, 400, "invalid Content-Length"},
    /* Connection */
    {P "Connection: Content-Length\r\nContent-Length: 1\r\n\r\n", 0, 400, "must not be removed"},
    {P "Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 400, "must not be removed"},
    {H "Connection: HOST\r\n\r\n", 0, 400, "must not be removed"},
    {H "Connection: x-forwarded-for\r\n\r\n", 0, 400, "must not be removed"},
    {H "Connection: :authority\r\n\r\n", 0, 400, "invalid Connection"},
    {H "Connection: a b\r\n\r\n", 0, 400, "invalid Connection"},
    {H "Connection: a,b,c,d,e,f\r\nConnection: g,h,i,j,k\r\n\r\n", 0, 400, "too many headers"},
};

/* In any spelling and any number; what stands around it is still found where it is. */
static void leaves_out_the_certificates_that_clients_claim(void **state) {
  const char bytes[] = "GET / HTTP/1.1\r\nX-Forwarded-Client-Cert: URI=spiffe://a\r\nHost: a\r\n"
                       "x-forwarded-client-cert:\r\nX-FORWARDED-CLIENT-CERT: b\r\nX-Forwarded-Client-Certs: kept\r\n"
                       "Connection: close\r\nContent-Length: 2\r\nX-Forwarded-Client-Cert: c\r\n\r\n";
  na_h1_head head;
  na_h1_error error;
  assert_int_equal(parse(bytes, sizeof bytes - 1, &head, &error), sizeof bytes - 1);
  assert_int_equal(head.nheaders, 4);
  assert_int_equal(head.request.nheaders, 4);
  assert_int_equal(head.index[NA_HDR_X_FORWARDED_CLIENT_CERT], -1);
  assert_int_equal(head.index[NA_HDR_HOST], 0);
  assert_int_equal(head.index[NA_HDR_CONNECTION], 2);
  assert_int_equal(head.index[NA_HDR_CONTENT_LENGTH], 3);
  assert_str(head.headers[1].value, "kept");
  assert_str(head.headers[3].value, "2");
  assert_null(na_h1_find(&head.request, na_str_of("x-forwarded-client-cert")));
}

static void refuses(void **state) {
  for (size_t i = 0; i < COUNT(refused); i++) {
    na_h1_head head;
    na_h1_error error = {0};
    size_t n = refused[i].n ? refused[i].n : strlen(refused[i].head);
    int rc = parse(refused[i].head, n, &head, &error);
    if (rc != -1)
      fail_msg("row %zu accepted: %s", i, refused[i].head);
    if (error.status != refused[i].status || !strstr(error.reason, refused[i].reason))
      fail_msg("row %zu: %u %s, not %d %s: %s", i, error.status, error.reason, refused[i].status, refused[i].reason,
               refused[i].head);
  }
}

/* A refusal may come early, but it comes, however the bytes arrive. */
static void refuses_byte_by_byte(void **state) {
  for (size_t i = 0; i < COUNT(refused); i++) {
    size_t n = refused[i].n ? refused[i].n : strlen(refused[i].head);
    uint32_t scanned = 0;
    na_h1_head head;
    na_h1_error error;
    int rc = 0;
    for (size_t have = 0; have <= n && rc == 0; have++)
      rc = na_h1_parse_request(refused[i].head, have, &scanned, &limits, &head, &error);
    if (rc != -1)
      fail_msg("row %zu: %d: %s", i, rc, refused[i].head);
  }
}

/* What cannot become a request is refused before its head has ended. */
static void refuses_garbage_early(void **state) {
  static const char *const early[] = {"\x16\x03\x01", "GET /\r\n", "GET / HTTP/2.0\r\n",
                                      "\r\n\r\n\r",   " ",         "GET / HTTP/1.1\n"};
  for (size_t i = 0; i < COUNT(early); i++) {
    na_h1_head head;
    na_h1_error error;
    assert_int_equal(parse(early[i], strlen(early[i]), &head, &error), -1);
  }
}

/* ---- limits ------------------------------------------------------------------------------------------------- */

static int parse_limited(const char *bytes, size_t n, na_h1_limits bounds, na_h1_error *error) {
  na_h1_head head;
  uint32_t scanned = 0;
  return na_h1_parse_request(bytes, n, &scanned, &bounds, &head, error);
}

static void bounds_heads(void **state) {
  const char bytes[] = "GET /abc HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n";
  const size_t n = sizeof bytes - 1;
  na_h1_error error;
  na_h1_limits fitting = {.max_head_bytes = (uint32_t)n, .max_headers = 2, .max_request_line = 17};
  assert_int_equal(parse_limited(bytes, n, fitting, &error), n);

  na_h1_limits small = fitting;
  small.max_head_bytes--;
  assert_int_equal(parse_limited(bytes, n, small, &error), -1);
  assert_int_equal(error.status, 431);
  assert_int_equal(parse_limited(bytes, n - 1, small, &error), -1);
  assert_int_equal(error.status, 431);
  assert_int_equal(parse_limited(bytes, n - 2, small, &error), 0);

  na_h1_limits few = fitting;
  few.max_headers = 1;
  assert_int_equal(parse_limited(bytes, n, few, &error), -1);
  assert_int_equal(error.status, 431);

  na_h1_limits line = fitting;
  line.max_request_line = 16;
  assert_int_equal(parse_limited(bytes, n, line, &error), -1);
  assert_int_equal(error.status, 414);
}

static void bounds_unfinished_lines(void **state) {
  char line[100];
  memset(line, 'A', sizeof line);
  na_h1_error error;
  na_h1_limits bounds = {.max_head_bytes = 1000, .max_headers = 2, .max_request_line = 50};
  assert_int_equal(parse_limited(line, 52, bounds, &error), 0);
  assert_int_equal(parse_limited(line, 53, bounds, &error), -1);
  assert_int_equal(error.status, 414);
}

static void bounds_headers_absolutely(void **state) {
  char bytes[8192];
  int n = snprintf(bytes, sizeof bytes, "GET / HTTP/1.1\r\nHost: a\r\n");
  for (int i = 1; i < NA_H1_MAX_HEADERS + 1; i++)
    n += snprintf(bytes + n, sizeof bytes - (size_t)n, "A: b\r\n");
  n += snprintf(bytes + n, sizeof bytes - (size_t)n, "\r\n");
  na_h1_error error;
  na_h1_limits bounds = {.max_head_bytes = 61440, .max_headers = 100000, .max_request_line = 8192};
  assert_int_equal(parse_limited(bytes, (size_t)n, bounds, &error), -1);
  assert_int_equal(error.status, 431);
}

/* ---- evaluator ---------------------------------------------------------------------------------------------- */

static void explains_refusals(void **state) {
  char why[64];
  assert_int_equal(na_http1_check_request("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", 31, why, sizeof why), 27);
  assert_string_equal(why, "GET / a 1 none 0 1\nHost: a\n");
  assert_int_equal(na_http1_check_request("GET / HTTP/1.1\r\n", 16, why, sizeof why), 0);
  assert_int_equal(na_http1_check_request("GET / HTTP/3.0\r\n\r\n", 18, why, sizeof why), -505);
  assert_string_equal(why, "HTTP version not supported");
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

static void writes_within_bounds(void **state) {
  char buf[24];
  na_out out = {.p = buf, .size = sizeof buf};
  na_out_header(&out, na_str_of("a"), na_str_of("b"));
  na_out_header(&out, na_str_of("c"), na_str_of(""));
  na_out_u64(&out, 0);
  na_out_u64(&out, 1234567890);
  assert_int_equal(out.n, 22);
  assert_memory_equal(buf, "a: b\r\nc: \r\n01234567890", 22);
  assert_false(out.over);
  na_out_cstr(&out, "xyz");
  assert_true(out.over);
  assert_int_equal(out.n, 22);
  na_out full = {.p = buf, .size = 5};
  na_out_header(&full, na_str_of("a"), na_str_of("b"));
  assert_true(full.over);
  char digits[20];
  na_out big = {.p = digits, .size = sizeof digits};
  na_out_u64(&big, UINT64_MAX);
  assert_memory_equal(digits, "18446744073709551615", 20);
}

static void knows_reasons(void **state) {
  assert_string_equal(na_h1_reason(200), "OK");
  assert_string_equal(na_h1_reason(503), "Service Unavailable");
  assert_string_equal(na_h1_reason(100), "Continue");
  assert_string_equal(na_h1_reason(511), "Network Authentication Required");
  assert_string_equal(na_h1_reason(299), "");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(checks_every_byte),
      cmocka_unit_test(knows_names_exactly),
      cmocka_unit_test(accepts_and_reads),
      cmocka_unit_test(accepts_byte_by_byte),
      cmocka_unit_test(leaves_what_follows),
      cmocka_unit_test(recognises_headers),
      cmocka_unit_test(leaves_out_the_certificates_that_clients_claim),
      cmocka_unit_test(refuses),
      cmocka_unit_test(refuses_byte_by_byte),
      cmocka_unit_test(refuses_garbage_early),
      cmocka_unit_test(bounds_heads),
      cmocka_unit_test(bounds_unfinished_lines),
      cmocka_unit_test(bounds_headers_absolutely),
      cmocka_unit_test(explains_refusals),
      cmocka_unit_test(writes_within_bounds),
      cmocka_unit_test(knows_reasons),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
