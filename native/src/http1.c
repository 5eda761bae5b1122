/* SPDX-License-Identifier: Apache-2.0
 *
 * Request and response heads. What is refused, and why (RFC 9112 unless said otherwise):
 *
 *   lines        a bare LF or CR; more than 4 bytes of empty lines before the request line (2.2)
 *   request line not exactly METHOD SP TARGET SP VERSION; a method that is no token; over max_request_line (414)
 *   target       not in origin, absolute (http, https), authority (CONNECT) or asterisk (OPTIONS) form (3.2); bytes
 * that are no visible ASCII; a fragment; user information (RFC 9110 4.2.4); an authority that differs from Host version
 * HTTP/1.0 and HTTP/1.1 only (505) headers      no colon, space before the colon, empty or invalid names, folded lines
 * (5.2), NUL, CR, LF and other control bytes in values; too many (431), too long (431) Host         missing or twice in
 * HTTP/1.1 (3.2), twice in 1.0, not an authority, a comma in it (joined duplicates) body length  Transfer-Encoding with
 * Content-Length, in HTTP/1.0, twice, or other than `chunked` (501); a Content-Length that is twice there (equal or
 * not), a list, no number or above 2^63-1 (6.3) Connection   naming Host, framing or forwarding headers (removal
 * smuggling), or more than 10 headers CONNECT      with a body length responses    a status outside 100..599; 1xx and
 * 204 with a body length (RFC 9110 8.6)
 */
#include "http1.h"

#include <assert.h>
#include <string.h>

#include "http1_parse.h"

#define MAX_LEADING 4

/* Skip empty lines before a request line. */
static size_t skip_leading(const char *buf, size_t n) {
  size_t i = 0;
  while (i < MAX_LEADING && i + 1 < n && buf[i] == '\r' && buf[i + 1] == '\n')
    i += 2;
  return i;
}

/* Where the head that starts at `start` ends: an offset, 0 not there yet, -1 after a bare LF. Resumes at *scanned. */
static long find_end(const char *buf, size_t start, size_t n, uint32_t *scanned) {
  size_t at = *scanned > start ? *scanned : start;
  while (at < n) {
    const char *lf = memchr(buf + at, '\n', n - at);
    if (!lf)
      break;
    size_t i = (size_t)(lf - buf);
    if (i < start + 1 || lf[-1] != '\r')
      return -1;
    at = i + 1;
    if (i >= start + 3 && lf[-2] == '\n') {
      *scanned = (uint32_t)at;
      return (long)at;
    }
  }
  *scanned = (uint32_t)n;
  return 0;
}

/* ---- request line ------------------------------------------------------------------------------------------- */

static bool parse_version(na_str version, na_h1_head *head, na_h1_error *error) {
  const char *p = version.p;
  if (version.n != 8 || memcmp(p, "HTTP/", 5) != 0 || !na_h1_is(p[5], NA_C_DIGIT) || p[6] != '.' ||
      !na_h1_is(p[7], NA_C_DIGIT))
    return na_h1_refuse(error, 400, "malformed HTTP version");
  if (p[5] != '1' || p[7] > '1')
    return na_h1_refuse(error, 505, "HTTP version not supported");
  head->minor = (uint8_t)(p[7] - '0');
  return true;
}

/* Split what follows scheme and authority into path and query. */
static void split_path(na_str target, na_request *request) {
  const char *mark = memchr(target.p, '?', target.n);
  uint32_t n = mark ? (uint32_t)(mark - target.p) : target.n;
  request->path_query = target;
  request->path = (na_str){target.p, n};
  request->query = mark ? (na_str){mark + 1, target.n - n - 1} : (na_str){target.p + n, 0};
}

static bool parse_absolute(na_str target, na_request *request, na_h1_error *error) {
  const char *end = target.p + target.n;
  uint32_t scheme = target.n >= 7 && target.p[4] == ':' ? 4 : 5;
  na_str name = {target.p, scheme};
  if (target.n < scheme + 3 || memcmp(target.p + scheme, "://", 3) != 0 ||
      !(na_str_ieq(name, "http") || na_str_ieq(name, "https")))
    return na_h1_refuse(error, 400, "request target has no valid form");
  request->scheme = na_str_of(scheme == 4 ? "http" : "https");
  const char *authority = target.p + scheme + 3, *p = authority;
  while (p < end && *p != '/' && *p != '?')
    p++;
  request->authority = (na_str){authority, (uint32_t)(p - authority)};
  if (!na_h1_valid_authority(request->authority, false))
    return na_h1_refuse(error, 400, "invalid authority in request target");
  split_path((na_str){p, (uint32_t)(end - p)}, request);
  if (!request->path.n)
    request->path = na_str_of("/");
  if (!request->path_query.n)
    request->path_query = request->path;
  return true;
}

static bool parse_target(na_str target, na_h1_head *head, na_h1_error *error) {
  na_request *request = &head->request;
  request->scheme = na_str_of("http");
  request->authority = (na_str){target.p, 0};
  if (!target.n)
    return na_h1_refuse(error, 400, "empty request target");
  size_t plain = na_h1_span(target.p, target.n, NA_C_PLAIN);
  size_t valid = plain + na_h1_span(target.p + plain, target.n - plain, NA_C_TARGET);
  request->plain = plain == target.n;
  if (valid != target.n)
    return na_h1_refuse(error, 400,
                        target.p[valid] == '#' ? "fragment in request target" : "invalid byte in request target");
  if (head->is_connect) {
    request->authority = target;
    split_path((na_str){target.p + target.n, 0}, request);
    return na_h1_valid_authority(target, true) || na_h1_refuse(error, 400, "CONNECT target is no host:port");
  }
  if (target.p[0] == '/') {
    split_path(target, request);
    return true;
  }
  if (target.n == 1 && target.p[0] == '*') {
    split_path(target, request);
    return na_str_eq(request->method, "OPTIONS") || na_h1_refuse(error, 400, "target * without OPTIONS");
  }
  return parse_absolute(target, request, error);
}

/* Parse [p, end), the request line without its CRLF. */
static bool parse_request_line(const char *p, const char *end, na_h1_head *head, na_h1_error *error) {
  size_t method = na_h1_span(p, (size_t)(end - p), NA_C_TOKEN);
  if (!method || p + method == end || p[method] != ' ')
    return na_h1_refuse(error, 400, "invalid method");
  head->request.method = (na_str){p, (uint32_t)method};
  head->is_head = na_str_eq(head->request.method, "HEAD");
  head->is_connect = na_str_eq(head->request.method, "CONNECT");
  const char *target = p + method + 1;
  const char *space = memchr(target, ' ', (size_t)(end - target));
  if (!space)
    return na_h1_refuse(error, 400, "request line without version");
  if (!parse_version((na_str){space + 1, (uint32_t)(end - space - 1)}, head, error))
    return false;
  return parse_target((na_str){target, (uint32_t)(space - target)}, head, error);
}

/* ---- request headers ---------------------------------------------------------------------------------------- */

/* Drop the scheme's default port. */
static na_str without_default_port(na_str authority, na_str scheme) {
  const char *suffix = scheme.n == 4 ? ":80" : ":443";
  size_t n = strlen(suffix);
  if (authority.n > n && memcmp(authority.p + authority.n - n, suffix, n) == 0)
    authority.n -= (uint32_t)n;
  return authority;
}

static bool read_host(na_h1_head *head, na_h1_error *error) {
  na_request *request = &head->request;
  int at = head->index[NA_HDR_HOST];
  if (at < 0)
    return head->minor == 0 || na_h1_refuse(error, 400, "HTTP/1.1 without Host");
  for (uint32_t i = (uint32_t)at + 1; i < head->nheaders; i++)
    if (head->headers[i].id == NA_HDR_HOST)
      return na_h1_refuse(error, 400, "more than one Host");
  na_str host = head->headers[at].value;
  if (host.n && !na_h1_valid_authority(host, false))
    return na_h1_refuse(error, 400, "invalid Host");
  if (!request->authority.n) {
    request->authority = host;
    return true;
  }
  /* RFC 9112 3.2.2 lets the target win; two hosts in one request are refused, since a peer might take the other. */
  if (!na_str_ieq2(without_default_port(host, request->scheme),
                   without_default_port(request->authority, request->scheme)))
    return na_h1_refuse(error, 400, "Host differs from the request target");
  return true;
}

static bool read_request_headers(na_h1_head *head, na_h1_error *error) {
  bool framed;
  if (!read_host(head, error) || !na_h1_read_connection(head, error) || !na_h1_read_framing(head, &framed, error))
    return false;
  if (head->is_connect && framed)
    return na_h1_refuse(error, 400, "CONNECT with a body length");
  int expect = head->index[NA_HDR_EXPECT];
  head->expect_continue = expect >= 0 && head->minor > 0 && na_str_ieq(head->headers[expect].value, "100-continue");
  if (head->index[NA_HDR_X_FORWARDED_CLIENT_CERT] >= 0)
    na_h1_leave_out(head, NA_HDR_X_FORWARDED_CLIENT_CERT); /* Envoy's forward_client_cert_details: SANITIZE */
  head->request.headers = head->headers;
  head->request.nheaders = head->nheaders;
  return true;
}

/* ---- heads -------------------------------------------------------------------------------------------------- */

/* What can be told of a head whose end has not arrived: garbage and a bad first line are refused at once. */
static int check_partial(const char *buf, size_t start, size_t n, const na_h1_limits *limits, na_h1_head *head,
                         na_h1_error *error) {
  if (start == MAX_LEADING && n > start && buf[start] == '\r')
    return na_h1_refuse(error, 400, "empty lines before the request"), -1;
  if (n > start && buf[start] != '\r' && !na_h1_is(buf[start], NA_C_TOKEN))
    return na_h1_refuse(error, 400, "invalid method"), -1;
  const char *line = buf + start;
  const char *lf = memchr(line, '\n', n - start);
  size_t length = lf ? (size_t)(lf - line) : n - start;
  if (length > (size_t)limits->max_request_line + 2)
    return na_h1_refuse(error, 414, "request line too long"), -1;
  if (lf && !parse_request_line(line, lf - 1, head, error))
    return -1;
  if (n >= limits->max_head_bytes)
    return na_h1_refuse(error, 431, "request head too long"), -1;
  return 0;
}

int na_h1_parse_request(const char *buf, size_t n, uint32_t *scanned, const na_h1_limits *limits, na_h1_head *head,
                        na_h1_error *error) {
  assert(limits->max_head_bytes > 0 && limits->max_head_bytes <= INT32_MAX);
  size_t start = skip_leading(buf, n);
  long end = find_end(buf, start, n, scanned);
  if (end < 0)
    return na_h1_refuse(error, 400, "line ended by a bare LF"), -1;
  if (end == 0)
    return check_partial(buf, start, n, limits, head, error);
  const char *line = buf + start;
  const char *lf = memchr(line, '\n', (size_t)end - start);
  if ((size_t)(lf - line) > (size_t)limits->max_request_line + 1)
    return na_h1_refuse(error, 414, "request line too long"), -1;
  if (end > (long)limits->max_head_bytes)
    return na_h1_refuse(error, 431, "request head too long"), -1;
  head->status = 0;
  head->reason = (na_str){0};
  if (!parse_request_line(line, lf - 1, head, error) ||
      !na_h1_parse_headers(lf + 1, buf + end - 2, limits->max_headers, head, error) ||
      !read_request_headers(head, error))
    return -1;
  head->head_bytes = (uint32_t)end;
  return (int)end;
}

/* Parse [p, end), the status line without its CRLF. The space before an empty reason may be missing, as many servers
 * have it. */
static bool parse_status_line(const char *p, const char *end, na_h1_head *head, na_h1_error *error) {
  size_t n = (size_t)(end - p);
  if (n < 12 || p[8] != ' ')
    return na_h1_refuse(error, 400, "malformed status line");
  if (!parse_version((na_str){p, 8}, head, error))
    return false;
  if (na_h1_span(p + 9, 3, NA_C_DIGIT) != 3 || (n > 12 && p[12] != ' '))
    return na_h1_refuse(error, 400, "malformed status line");
  head->status = (uint16_t)((p[9] - '0') * 100 + (p[10] - '0') * 10 + (p[11] - '0'));
  if (head->status < 100 || head->status > 599)
    return na_h1_refuse(error, 400, "status out of range");
  head->reason = n > 13 ? (na_str){p + 13, (uint32_t)(n - 13)} : (na_str){end, 0};
  if (na_h1_span(head->reason.p, head->reason.n, NA_C_VALUE) != head->reason.n)
    return na_h1_refuse(error, 400, "control character in the reason phrase");
  return true;
}

/* How long the body is: RFC 9112 6.3. */
static bool read_response_headers(na_h1_head *head, bool to_head, bool to_connect, na_h1_error *error) {
  bool framed;
  if (!na_h1_read_connection(head, error) || !na_h1_read_framing(head, &framed, error))
    return false;
  if (head->status < 200 || head->status == 204) {
    if (head->body != NA_BODY_NONE)
      return na_h1_refuse(error, 400, "body length in a response that has no body");
    return true;
  }
  if (to_head || head->status == 304 || (to_connect && head->status < 300)) {
    head->body = NA_BODY_NONE;
    return true;
  }
  if (!framed) {
    head->body = NA_BODY_UNTIL_CLOSE;
    head->keep_alive = false;
  }
  return true;
}

int na_h1_parse_response(const char *buf, size_t n, uint32_t *scanned, const na_h1_limits *limits, bool to_head,
                         bool to_connect, na_h1_head *head, na_h1_error *error) {
  assert(limits->max_head_bytes > 0 && limits->max_head_bytes <= INT32_MAX);
  if (n && memcmp(buf, "HTTP/", n < 5 ? n : 5) != 0)
    return na_h1_refuse(error, 400, "not an HTTP/1 response"), -1;
  long end = find_end(buf, 0, n, scanned);
  if (end < 0)
    return na_h1_refuse(error, 400, "line ended by a bare LF"), -1;
  if (end == 0 ? n >= limits->max_head_bytes : end > (long)limits->max_head_bytes)
    return na_h1_refuse(error, 431, "response head too long"), -1;
  if (end == 0)
    return 0;
  const char *lf = memchr(buf, '\n', (size_t)end);
  memset(&head->request, 0, sizeof head->request);
  head->is_head = to_head;
  head->is_connect = to_connect;
  head->expect_continue = false;
  if (!parse_status_line(buf, lf - 1, head, error) ||
      !na_h1_parse_headers(lf + 1, buf + end - 2, limits->max_headers, head, error) ||
      !read_response_headers(head, to_head, to_connect, error))
    return -1;
  head->head_bytes = (uint32_t)end;
  return (int)end;
}
