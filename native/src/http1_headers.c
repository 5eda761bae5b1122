/* SPDX-License-Identifier: Apache-2.0
 *
 * The header block: lines to name and value views, and recognition of the names that the proxy itself reads.
 */
#include <string.h>

#include "http1_parse.h"
#include "http1_scan.h"

/* Letters and digits are tokens, targets, hosts and values alike; the rest is spelled out. */
#define T   NA_C_TOKEN
#define U   NA_C_TARGET
#define H   NA_C_HOST
#define D   NA_C_DIGIT
#define V   NA_C_VALUE
#define P   NA_C_PLAIN
#define ALL (T | U | H | V)

const uint8_t na_h1_class[256] = {
    ['\t'] = V,
    [' '] = V,
    ['0' ... '9'] = ALL | D | P,
    ['A' ... 'Z'] = ALL | P,
    ['a' ... 'z'] = ALL | P,
    ['!'] = ALL | P,
    ['"'] = U | V,
    ['#'] = T | V,
    ['$'] = ALL | P,
    ['%'] = ALL,
    ['&'] = ALL | P,
    ['\''] = ALL | P,
    ['('] = U | H | V | P,
    [')'] = U | H | V | P,
    ['*'] = ALL | P,
    ['+'] = ALL | P,
    [','] = U | V | P,
    ['-'] = ALL | P,
    ['.'] = ALL,
    ['/'] = U | V | P,
    [':'] = U | V | P,
    [';'] = U | H | V | P,
    ['<'] = U | V,
    ['='] = U | H | V | P,
    ['>'] = U | V,
    ['?'] = U | V | P,
    ['@'] = U | V | P,
    ['['] = U | V | P,
    ['\\'] = U | V,
    [']'] = U | V | P,
    ['^'] = T | U | V,
    ['_'] = ALL | P,
    ['`'] = T | U | V,
    ['{'] = U | V,
    ['|'] = T | U | V,
    ['}'] = U | V,
    ['~'] = ALL | P,
    [0x80 ... 0xff] = V,
};

#undef T
#undef U
#undef H
#undef D
#undef V
#undef P
#undef ALL

/* Bytes at p, as an integer; letters in lower case. Bytes that may not be in a name can come to look like others. */
static inline uint64_t folded8(const char *p) {
  uint64_t word;
  memcpy(&word, p, 8);
  return word | 0x2020202020202020u;
}

static inline uint32_t folded4(const char *p) {
  uint32_t word;
  memcpy(&word, p, 4);
  return word | 0x20202020u;
}

/* Whether a name of n bytes, all of them tokens, is the known one; n is a constant, so that so is the known one's part.
 * Words may overlap. Only for known names of letters and `-`, which no other token folds to. */
static inline bool is_name(const char *name, const char *known, size_t n) {
  if (n < 4)
    return (name[0] | 0x20) == known[0] && (name[n - 1] | 0x20) == known[n - 1];
  if (n < 8)
    return folded4(name) == folded4(known) && folded4(name + n - 4) == folded4(known + n - 4);
  return folded8(name) == folded8(known) && folded8(name + n - 8) == folded8(known + n - 8) &&
         (n <= 16 || folded8(name + 8) == folded8(known + 8));
}

#define KNOWN(text, known_id)                                                                                          \
  do {                                                                                                                 \
    _Static_assert(sizeof(text) - 1 <= 24, "is_name");                                                                 \
    if (is_name(name, text, sizeof(text) - 1))                                                                         \
      return known_id;                                                                                                 \
  } while (0)

uint8_t na_h1_header_id(const char *name, size_t n) {
  switch (n) {
  case 2:
    KNOWN("te", NA_HDR_TE);
    break;
  case 4:
    KNOWN("host", NA_HDR_HOST);
    KNOWN("date", NA_HDR_DATE);
    break;
  case 6:
    KNOWN("expect", NA_HDR_EXPECT);
    KNOWN("server", NA_HDR_SERVER);
    break;
  case 7:
    KNOWN("trailer", NA_HDR_TRAILER);
    KNOWN("upgrade", NA_HDR_UPGRADE);
    break;
  case 10:
    KNOWN("connection", NA_HDR_CONNECTION);
    KNOWN("keep-alive", NA_HDR_KEEP_ALIVE);
    KNOWN("user-agent", NA_HDR_USER_AGENT);
    break;
  case 12:
    KNOWN("content-type", NA_HDR_CONTENT_TYPE);
    KNOWN("x-request-id", NA_HDR_X_REQUEST_ID);
    break;
  case 14:
    KNOWN("content-length", NA_HDR_CONTENT_LENGTH);
    break;
  case 15:
    KNOWN("x-forwarded-for", NA_HDR_X_FORWARDED_FOR);
    break;
  case 16:
    KNOWN("proxy-connection", NA_HDR_PROXY_CONNECTION);
    break;
  case 17:
    KNOWN("transfer-encoding", NA_HDR_TRANSFER_ENCODING);
    KNOWN("x-forwarded-proto", NA_HDR_X_FORWARDED_PROTO);
    break;
  case 23:
    KNOWN("x-forwarded-client-cert", NA_HDR_X_FORWARDED_CLIENT_CERT);
    break;
  }
  return NA_HDR_OTHER;
}

#undef KNOWN

/* The end of a header's name: the first byte that may not be in one. */
static const char *name_end(const char *p, const char *end) {
  p = na_h1_skip_plain_name(p, end);
  return p + na_h1_span(p, (size_t)(end - p), NA_C_TOKEN);
}

/* The end of a field value: the first byte that may not be in one. */
static const char *value_end(const char *p, const char *end) {
  p = na_h1_skip_plain_value(p, end);
  return p + na_h1_span(p, (size_t)(end - p), NA_C_VALUE);
}

static na_str trim(const char *p, const char *end) {
  while (p < end && (*p == ' ' || *p == '\t'))
    p++;
  while (end > p && (end[-1] == ' ' || end[-1] == '\t'))
    end--;
  return (na_str){p, (uint32_t)(end - p)};
}

/* Headers that concern one connection only, whatever Connection says: RFC 9110 7.6.1. */
static bool always_hop(uint8_t id) {
  return id == NA_HDR_CONNECTION || id == NA_HDR_KEEP_ALIVE || id == NA_HDR_PROXY_CONNECTION || id == NA_HDR_TE ||
         id == NA_HDR_TRANSFER_ENCODING || id == NA_HDR_UPGRADE;
}

/* What is wrong with a line whose name does not end in a colon. */
static const char *bad_name(const char *line, const char *p, const char *end) {
  if (p == line && p < end && (*p == ' ' || *p == '\t'))
    return "folded header line";
  if (p == line)
    return "empty header name";
  if (p < end && (*p == ' ' || *p == '\t'))
    return "space before the colon of a header";
  return "invalid character in a header name";
}

static const char *bad_value(const char *p, const char *end) {
  if (p == end || *p == '\r')
    return "bare CR in a header";
  return *p == 0 ? "NUL in a header" : "control character in a header value";
}

/* Parse the line at p into *header; returns the start of the next line, or NULL. */
static const char *parse_line(const char *p, const char *end, na_header *header, na_h1_error *error) {
  const char *line = p;
  p = name_end(p, end);
  if (p == line || p == end || *p != ':') {
    na_h1_refuse(error, 400, bad_name(line, p, end));
    return NULL;
  }
  header->name = (na_str){line, (uint32_t)(p - line)};
  const char *value = p + 1;
  p = value_end(value, end);
  if (end - p < 2 || p[0] != '\r' || p[1] != '\n') {
    na_h1_refuse(error, 400, bad_value(p, end));
    return NULL;
  }
  header->value = trim(value, p);
  header->id = na_h1_header_id(header->name.p, header->name.n);
  header->hop = always_hop(header->id);
  return p + 2;
}

bool na_h1_parse_headers(const char *p, const char *end, uint32_t max_headers, na_h1_head *head, na_h1_error *error) {
  if (max_headers > NA_H1_MAX_HEADERS)
    max_headers = NA_H1_MAX_HEADERS;
  memset(head->index, 0xff, sizeof head->index);
  uint32_t n = 0;
  while (p < end) {
    if (n == max_headers)
      return na_h1_refuse(error, 431, "too many headers");
    p = parse_line(p, end, &head->headers[n], error);
    if (!p)
      return false;
    uint8_t id = head->headers[n].id;
    if (head->index[id] < 0)
      head->index[id] = (int16_t)n;
    n++;
  }
  head->nheaders = n;
  return true;
}

void na_h1_leave_out(na_h1_head *head, uint8_t id) {
  uint32_t n = 0;
  memset(head->index, 0xff, sizeof head->index);
  for (uint32_t i = 0; i < head->nheaders; i++) {
    const na_header header = head->headers[i];
    if (header.id == id)
      continue;
    if (head->index[header.id] < 0)
      head->index[header.id] = (int16_t)n;
    head->headers[n++] = header;
  }
  head->nheaders = n;
}
