/* SPDX-License-Identifier: Apache-2.0 */
#include "hbone_headers.h"

#include <inttypes.h>
#include <stdio.h>
#include <strings.h>

static bool is_space(char c) {
  return c == ' ' || c == '\t';
}

static na_str trim(const char *p, const char *end) {
  while (p < end && is_space(*p))
    p++;
  while (end > p && is_space(end[-1]))
    end--;
  return (na_str){p, (uint32_t)(end - p)};
}

na_str na_baggage_find(na_str baggage, const char *key) {
  const char *p = baggage.p, *end = baggage.p + baggage.n;
  while (p < end) {
    const char *comma = memchr(p, ',', (size_t)(end - p)), *member_end = comma ? comma : end;
    const char *properties = memchr(p, ';', (size_t)(member_end - p));
    const char *equals = memchr(p, '=', (size_t)(member_end - p));
    if (equals && na_str_eq(trim(p, equals), key))
      return trim(equals + 1, properties && properties > equals ? properties : member_end);
    p = comma ? comma + 1 : end;
  }
  return (na_str){0};
}

na_str na_forwarded_client(na_str forwarded) {
  const char *p = forwarded.p, *end = forwarded.p + forwarded.n;
  if (forwarded.n < 4 || strncasecmp(p, "for=", 4) != 0)
    return (na_str){0};
  p += 4;
  bool quoted = p < end && *p == '"';
  p += quoted;
  const char *stop = p;
  while (stop < end && (quoted ? *stop != '"' : *stop != ';' && *stop != ','))
    stop++;
  return trim(p, stop);
}

static bool all_hex(const char *p, size_t n, bool *zero) {
  *zero = true;
  for (size_t i = 0; i < n; i++) {
    if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f')))
      return false;
    *zero = *zero && p[i] == '0';
  }
  return true;
}

bool na_traceparent_valid(na_str value) {
  const char *p = value.p;
  bool zero_version, zero_trace, zero_parent, zero_flags;
  if (value.n < 55 || (value.n > 55 && (p[55] != '-' || memcmp(p, "00", 2) == 0)))
    return false;
  if (p[2] != '-' || p[35] != '-' || p[52] != '-' || memcmp(p, "ff", 2) == 0)
    return false;
  return all_hex(p, 2, &zero_version) && all_hex(p + 3, 32, &zero_trace) && all_hex(p + 36, 16, &zero_parent) &&
         all_hex(p + 53, 2, &zero_flags) && !zero_trace && !zero_parent;
}

void na_traceparent_new(uint64_t a, uint64_t b, uint64_t c, char out[NA_TRACEPARENT_TEXT]) {
  snprintf(out, NA_TRACEPARENT_TEXT, "00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-00", a, b | 1, c | 1);
}

/* Bytes that need no quoting in a quoted string, nor could end it. */
static bool is_plain(na_str host) {
  for (uint32_t i = 0; i < host.n; i++)
    if (host.p[i] <= 0x20 || host.p[i] >= 0x7f || host.p[i] == '"' || host.p[i] == '\\' || host.p[i] == ';')
      return false;
  return host.n > 0;
}

static bool is_token(na_str host) {
  for (uint32_t i = 0; i < host.n; i++) {
    char c = host.p[i];
    bool fits =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    if (!fits)
      return false;
  }
  return true;
}

size_t na_forwarded_format(const na_address *client, na_str host, char *out, size_t size) {
  char address[NA_ADDRESS_TEXT];
  na_address_format(client, address);
  const char *quote = is_token(host) ? "" : "\"";
  int n = is_plain(host) ? snprintf(out, size, "for=\"%s\";host=%s%.*s%s", address, quote, (int)host.n, host.p, quote)
                         : snprintf(out, size, "for=\"%s\"", address);
  return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}
