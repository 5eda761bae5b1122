/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing heads, and small operations on string views.
 */
#include <string.h>
#include <strings.h>

#include "http1_parse.h"

void na_out_bytes(na_out *out, const char *p, size_t n) {
  if (n > out->size - out->n) {
    out->over = true;
    return;
  }
  if (n)
    memcpy(out->p + out->n, p, n);
  out->n += n;
}

void na_out_str(na_out *out, na_str s) {
  na_out_bytes(out, s.p, s.n);
}

void na_out_cstr(na_out *out, const char *s) {
  na_out_bytes(out, s, strlen(s));
}

void na_out_u64(na_out *out, uint64_t v) {
  char digits[20];
  size_t n = sizeof digits;
  do {
    digits[--n] = (char)('0' + v % 10);
    v /= 10;
  } while (v);
  na_out_bytes(out, digits + n, sizeof digits - n);
}

void na_out_header(na_out *out, na_str name, na_str value) {
  size_t n = (size_t)name.n + value.n + 4;
  if (n > out->size - out->n) {
    out->over = true;
    return;
  }
  char *p = out->p + out->n;
  memcpy(p, name.p, name.n);
  p += name.n;
  *p++ = ':';
  *p++ = ' ';
  if (value.n)
    memcpy(p, value.p, value.n);
  p += value.n;
  *p++ = '\r';
  *p = '\n';
  out->n += n;
}

bool na_str_eq(na_str a, const char *b) {
  size_t n = strlen(b);
  return a.n == n && memcmp(a.p, b, n) == 0;
}

bool na_str_ieq2(na_str a, na_str b) {
  if (a.n != b.n)
    return false;
  for (uint32_t i = 0; i < a.n; i++)
    if (a.p[i] != b.p[i] && na_lower(a.p[i]) != na_lower(b.p[i]))
      return false;
  return true;
}

bool na_str_ieq(na_str a, const char *b) {
  return na_str_ieq2(a, na_str_of(b));
}

na_str na_str_of(const char *s) {
  return (na_str){s, (uint32_t)strlen(s)};
}

const na_header *na_h1_find(const na_request *request, na_str name) {
  for (uint32_t i = 0; i < request->nheaders; i++)
    if (na_str_ieq2(request->headers[i].name, name))
      return &request->headers[i];
  return NULL;
}

/* The IANA registry of status codes, and RFC 9110 15. */
static const struct {
  uint16_t status;
  const char *reason;
} reasons[] = {
    {100, "Continue"},
    {101, "Switching Protocols"},
    {102, "Processing"},
    {103, "Early Hints"},
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {203, "Non-Authoritative Information"},
    {204, "No Content"},
    {205, "Reset Content"},
    {206, "Partial Content"},
    {207, "Multi-Status"},
    {208, "Already Reported"},
    {226, "IM Used"},
    {300, "Multiple Choices"},
    {301, "Moved Permanently"},
    {302, "Found"},
    {303, "See Other"},
    {304, "Not Modified"},
    {305, "Use Proxy"},
    {307, "Temporary Redirect"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {402, "Payment Required"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {407, "Proxy Authentication Required"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {412, "Precondition Failed"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {416, "Range Not Satisfiable"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {422, "Unprocessable Content"},
    {423, "Locked"},
    {424, "Failed Dependency"},
    {425, "Too Early"},
    {426, "Upgrade Required"},
    {428, "Precondition Required"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {451, "Unavailable For Legal Reasons"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {502, "Bad Gateway"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
    {506, "Variant Also Negotiates"},
    {507, "Insufficient Storage"},
    {508, "Loop Detected"},
    {511, "Network Authentication Required"},
};

const char *na_h1_reason(unsigned status) {
  size_t low = 0, high = sizeof reasons / sizeof *reasons;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (reasons[middle].status == status)
      return reasons[middle].reason;
    if (reasons[middle].status < status)
      low = middle + 1;
    else
      high = middle;
  }
  return "";
}
