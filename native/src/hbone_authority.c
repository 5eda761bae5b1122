/* SPDX-License-Identifier: Apache-2.0 */
#include "hbone_authority.h"

#include <arpa/inet.h>

/* RFC 1035 2.3.4 */
#define MAX_HOST 253

static bool parse_port(const char *p, const char *end, uint16_t *port) {
  uint32_t value = 0;
  if (p == end || end - p > 5 || *p == '0')
    return false;
  for (; p < end; p++) {
    if (*p < '0' || *p > '9')
      return false;
    value = value * 10 + (uint32_t)(*p - '0');
  }
  *port = (uint16_t)value;
  return value <= UINT16_MAX;
}

static bool is_host(const char *p, size_t n) {
  bool letter = false;
  if (n == 0 || n > MAX_HOST || p[0] == '.')
    return false;
  for (size_t i = 0; i < n; i++) {
    bool alpha = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= 'A' && p[i] <= 'Z') || p[i] == '-' || p[i] == '_';
    bool digit = p[i] >= '0' && p[i] <= '9';
    if (!alpha && !digit && (p[i] != '.' || p[i - 1] == '.'))
      return false;
    letter = letter || alpha;
  }
  return letter; /* digits and dots alone would be an address that was mistyped */
}

bool na_hbone_parse_authority(na_str text, na_hbone_authority *out) {
  *out = (na_hbone_authority){0};
  if (text.n == 0)
    return false;
  const char *end = text.p + text.n, *colon = end;
  while (colon > text.p && *--colon != ':')
    ;
  if (*colon != ':' || !parse_port(colon + 1, end, &out->address.port))
    return false;
  size_t n = (size_t)(colon - text.p);
  if (n >= 2 && text.p[0] == '[' && text.p[n - 1] == ']')
    return memchr(text.p, ':', n) && na_ip_parse(text.p + 1, n - 2, out->address.ip);
  if (!memchr(text.p, ':', n) && na_ip_parse(text.p, n, out->address.ip))
    return true;
  memset(out->address.ip, 0, sizeof out->address.ip);
  out->host = (na_str){text.p, (uint32_t)n};
  return is_host(text.p, n);
}
