/* SPDX-License-Identifier: Apache-2.0
 *
 * The header block: lines to name and value views, and recognition of the names that the proxy itself reads.
 */
#include <string.h>

#include "http1_parse.h"

/* Letters and digits are tokens, targets, hosts and values alike; the rest is spelled out. */
#define T   NA_C_TOKEN
#define U   NA_C_TARGET
#define H   NA_C_HOST
#define D   NA_C_DIGIT
#define V   NA_C_VALUE
#define ALL (T | U | H | V)

const uint8_t na_h1_class[256] = {
    ['\t'] = V,          [' '] = V,           ['0' ... '9'] = ALL | D,
    ['A' ... 'Z'] = ALL, ['a' ... 'z'] = ALL, ['!'] = ALL,
    ['"'] = U | V,       ['#'] = T | V,       ['$'] = ALL,
    ['%'] = ALL,         ['&'] = ALL,         ['\''] = ALL,
    ['('] = U | H | V,   [')'] = U | H | V,   ['*'] = ALL,
    ['+'] = ALL,         [','] = U | V,       ['-'] = ALL,
    ['.'] = ALL,         ['/'] = U | V,       [':'] = U | V,
    [';'] = U | H | V,   ['<'] = U | V,       ['='] = U | H | V,
    ['>'] = U | V,       ['?'] = U | V,       ['@'] = U | V,
    ['['] = U | V,       ['\\'] = U | V,      [']'] = U | V,
    ['^'] = T | U | V,   ['_'] = ALL,         ['`'] = T | U | V,
    ['{'] = U | V,       ['|'] = T | U | V,   ['}'] = U | V,
    ['~'] = ALL,         [0x80 ... 0xff] = V,
};

#undef T
#undef U
#undef H
#undef D
#undef V
#undef ALL

/* The known names by length; a name is compared with the few of its own length. */
static const struct {
  const char *name;
  uint8_t n;
  uint8_t id;
} known_headers[] = {
    {"te", 2, NA_HDR_TE},
    {"host", 4, NA_HDR_HOST},
    {"date", 4, NA_HDR_DATE},
    {"expect", 6, NA_HDR_EXPECT},
    {"server", 6, NA_HDR_SERVER},
    {"trailer", 7, NA_HDR_TRAILER},
    {"upgrade", 7, NA_HDR_UPGRADE},
    {"connection", 10, NA_HDR_CONNECTION},
    {"keep-alive", 10, NA_HDR_KEEP_ALIVE},
    {"user-agent", 10, NA_HDR_USER_AGENT},
    {"content-type", 12, NA_HDR_CONTENT_TYPE},
    {"x-request-id", 12, NA_HDR_X_REQUEST_ID},
    {"content-length", 14, NA_HDR_CONTENT_LENGTH},
    {"x-forwarded-for", 15, NA_HDR_X_FORWARDED_FOR},
    {"proxy-connection", 16, NA_HDR_PROXY_CONNECTION},
    {"transfer-encoding", 17, NA_HDR_TRANSFER_ENCODING},
    {"x-forwarded-proto", 17, NA_HDR_X_FORWARDED_PROTO},
};

/* Index of the first known name of each length; the last one ends the table. */
static const uint8_t known_from[] = {0, 0, 0, 1, 1, 3, 3, 5, 7, 7, 7, 10, 10, 12, 12, 13, 14, 15, 17};

uint8_t na_h1_header_id(const char *name, size_t n) {
  if (n + 1 >= sizeof known_from)
    return NA_HDR_OTHER;
  for (uint32_t i = known_from[n]; i < known_from[n + 1]; i++) {
    const char *known = known_headers[i].name;
    if (na_lower(name[0]) != known[0])
      continue;
    size_t k = 1;
    while (k < n && na_lower(name[k]) == known[k])
      k++;
    if (k == n)
      return known_headers[i].id;
  }
  return NA_HDR_OTHER;
}

/* The length of the leading run of bytes that surely are field content: eight at a time, none below 0x20 and none 0x7f.
 * It may stop early, at a tab or right after a control byte within the same word. */
static size_t span_plain(const char *p, size_t n) {
  const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    memcpy(&word, p + i, 8);
    uint64_t below_space = (word - ones * 0x20) & ~word & high;
    uint64_t without_del = word ^ (ones * 0x7f);
    uint64_t del = (without_del - ones) & ~without_del & high;
    if (below_space | del)
      break;
  }
  return i;
}

/* The end of a field value: the first byte that may not be in one. */
static const char *value_end(const char *p, const char *end) {
  for (;;) {
    p += span_plain(p, (size_t)(end - p));
    const char *stop = p + 8 < end ? p + 8 : end;
    while (p < stop && na_h1_is(*p, NA_C_VALUE))
      p++;
    if (p < stop || p == end)
      return p;
  }
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
  p += na_h1_span(p, (size_t)(end - p), NA_C_TOKEN);
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
