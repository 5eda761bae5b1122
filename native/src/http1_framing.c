/* SPDX-License-Identifier: Apache-2.0
 *
 * What the headers of a message say of the connection and of the length of the body. All that two implementations could
 * read in two ways is refused (request smuggling).
 */
#include <string.h>

#include "http1_parse.h"

/* More nominated headers than any honest client sends; Envoy has the same bound. */
#define MAX_NOMINATED 10

static const char *const never_nominated[] = {
    "content-length", "transfer-encoding", "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
};

static bool may_nominate(na_str name) {
  for (size_t i = 0; i < sizeof never_nominated / sizeof *never_nominated; i++)
    if (na_str_ieq(name, never_nominated[i]))
      return false;
  return true;
}

static void mark_hop(na_h1_head *head, na_str name) {
  for (uint32_t i = 0; i < head->nheaders; i++)
    if (na_str_ieq2(head->headers[i].name, name))
      head->headers[i].hop = 1;
}

/* The next element of a comma-separated list, without white space around it; empty elements are skipped (RFC 9110
 * 5.6.1.2). False at the end. */
static bool next_element(na_str *rest, na_str *element) {
  while (rest->n) {
    const char *comma = memchr(rest->p, ',', rest->n);
    uint32_t n = comma ? (uint32_t)(comma - rest->p) : rest->n;
    na_str e = {rest->p, n};
    uint32_t used = comma ? n + 1 : n;
    rest->p += used;
    rest->n -= used;
    while (e.n && (*e.p == ' ' || *e.p == '\t'))
      e.p++, e.n--;
    while (e.n && (e.p[e.n - 1] == ' ' || e.p[e.n - 1] == '\t'))
      e.n--;
    if (e.n) {
      *element = e;
      return true;
    }
  }
  return false;
}

/* What the Connection options add up to. */
typedef struct options {
  bool close;
  bool keep_alive;
  bool upgrade;
  uint32_t nominated;
} options;

static bool read_option(na_h1_head *head, na_str option, options *seen, na_h1_error *error) {
  if (na_str_ieq(option, "close")) {
    seen->close = true;
  } else if (na_str_ieq(option, "keep-alive")) {
    seen->keep_alive = true;
  } else if (na_str_ieq(option, "upgrade")) {
    seen->upgrade = true;
  } else {
    if (na_h1_span(option.p, option.n, NA_C_TOKEN) != option.n)
      return na_h1_refuse(error, 400, "invalid Connection option");
    if (!may_nominate(option))
      return na_h1_refuse(error, 400, "Connection names a header that must not be removed");
    if (++seen->nominated > MAX_NOMINATED)
      return na_h1_refuse(error, 400, "Connection names too many headers");
    mark_hop(head, option);
  }
  return true;
}

bool na_h1_read_connection(na_h1_head *head, na_h1_error *error) {
  options seen = {0};
  int first = head->index[NA_HDR_CONNECTION];
  for (uint32_t i = first < 0 ? head->nheaders : (uint32_t)first; i < head->nheaders; i++) {
    if (head->headers[i].id != NA_HDR_CONNECTION)
      continue;
    na_str rest = head->headers[i].value, option;
    while (next_element(&rest, &option))
      if (!read_option(head, option, &seen, error))
        return false;
  }
  head->keep_alive = !seen.close && (head->minor > 0 || seen.keep_alive);
  /* RFC 9110 7.8: Upgrade in HTTP/1.0 is ignored. */
  head->upgrade = seen.upgrade && head->minor > 0 && head->index[NA_HDR_UPGRADE] >= 0;
  return true;
}

static bool more_than_one(const na_h1_head *head, uint8_t id) {
  for (uint32_t i = (uint32_t)head->index[id] + 1; i < head->nheaders; i++)
    if (head->headers[i].id == id)
      return true;
  return false;
}

/* 1*DIGIT, at most 2^63-1. */
static bool parse_length(na_str value, uint64_t *out) {
  uint64_t length = 0;
  if (!value.n || value.n > 19 || na_h1_span(value.p, value.n, NA_C_DIGIT) != value.n)
    return false;
  for (uint32_t i = 0; i < value.n; i++)
    length = length * 10 + (uint64_t)(value.p[i] - '0');
  *out = length;
  return length <= INT64_MAX;
}

static bool read_coding(const na_h1_head *head, na_h1_error *error) {
  if (head->minor == 0)
    return na_h1_refuse(error, 400, "Transfer-Encoding in HTTP/1.0");
  if (head->index[NA_HDR_CONTENT_LENGTH] >= 0)
    return na_h1_refuse(error, 400, "Transfer-Encoding with Content-Length");
  if (more_than_one(head, NA_HDR_TRANSFER_ENCODING))
    return na_h1_refuse(error, 400, "more than one Transfer-Encoding");
  if (!na_str_ieq(head->headers[head->index[NA_HDR_TRANSFER_ENCODING]].value, "chunked"))
    return na_h1_refuse(error, 501, "transfer coding other than chunked");
  return true;
}

bool na_h1_read_framing(na_h1_head *head, bool *framed, na_h1_error *error) {
  head->content_length = 0;
  head->body = NA_BODY_NONE;
  *framed = true;
  if (head->index[NA_HDR_TRANSFER_ENCODING] >= 0) {
    head->body = NA_BODY_CHUNKED;
    return read_coding(head, error);
  }
  int at = head->index[NA_HDR_CONTENT_LENGTH];
  if (at < 0) {
    *framed = false;
    return true;
  }
  if (more_than_one(head, NA_HDR_CONTENT_LENGTH))
    return na_h1_refuse(error, 400, "more than one Content-Length");
  if (!parse_length(head->headers[at].value, &head->content_length))
    return na_h1_refuse(error, 400, "invalid Content-Length");
  if (head->content_length)
    head->body = NA_BODY_LENGTH;
  return true;
}

/* "[" 1*( HEXDIG / ":" / "." ) "]"; returns its length, or 0. */
static size_t span_ip_literal(const char *p, size_t n) {
  size_t i = 1;
  while (i < n && (na_h1_is(p[i], NA_C_DIGIT) || (uint8_t)((p[i] | 0x20) - 'a') < 6 || p[i] == ':' || p[i] == '.'))
    i++;
  return i > 1 && i < n && p[i] == ']' ? i + 1 : 0;
}

bool na_h1_valid_authority(na_str authority, bool need_port) {
  const char *p = authority.p;
  size_t n = authority.n;
  size_t host = n && p[0] == '[' ? span_ip_literal(p, n) : na_h1_span(p, n, NA_C_HOST);
  if (!host)
    return false;
  if (host == n)
    return !need_port;
  if (p[host] != ':')
    return false;
  size_t digits = n - host - 1;
  if (digits > 5 || (need_port && !digits))
    return false;
  uint32_t port = 0;
  for (size_t i = host + 1; i < n; i++) {
    if (!na_h1_is(p[i], NA_C_DIGIT))
      return false;
    port = port * 10 + (uint32_t)(p[i] - '0');
  }
  return port <= 65535;
}
