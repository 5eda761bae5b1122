/* SPDX-License-Identifier: Apache-2.0 */
#include "spiffe.h"

#include <string.h>

#define SCHEME "spiffe://"

/* SPIFFE-ID 2.1: a trust domain is [a-z0-9._-], at most 255 bytes. */
static bool is_domain_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
}

/* SPIFFE-ID 2.2 */
static bool is_segment_byte(char c) {
  return is_domain_byte(c) || (c >= 'A' && c <= 'Z');
}

static bool is_segment(const char *p, size_t n) {
  if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
    return false;
  for (size_t i = 0; i < n; i++)
    if (!is_segment_byte(p[i]))
      return false;
  return true;
}

static size_t segment_length(const char *p, const char *end) {
  const char *slash = memchr(p, '/', (size_t)(end - p));
  return (size_t)((slash ? slash : end) - p);
}

/* Walk the segments of a path; the first four are noted, *count tells how many there are. */
static bool split_path(const char *p, const char *end, na_str first[4], size_t *count) {
  for (*count = 0; p < end; ++*count) {
    size_t n = segment_length(++p, end);
    if (!is_segment(p, n))
      return false;
    if (*count < 4)
      first[*count] = (na_str){p, (uint32_t)n};
    p += n;
  }
  return true;
}

bool na_spiffe_parse(const char *text, size_t n, na_spiffe *out) {
  const size_t scheme = strlen(SCHEME);
  *out = (na_spiffe){0};
  if (n <= scheme || n > NA_SPIFFE_MAX || memcmp(text, SCHEME, scheme) != 0)
    return false;
  const char *end = text + n, *domain = text + scheme;
  size_t domain_n = segment_length(domain, end), count;
  if (domain_n == 0 || domain_n > 255)
    return false;
  for (size_t i = 0; i < domain_n; i++)
    if (!is_domain_byte(domain[i]))
      return false;
  na_str first[4];
  const char *path = domain + domain_n;
  if (!split_path(path, end, first, &count))
    return false;
  out->trust_domain = (na_str){domain, (uint32_t)domain_n};
  out->path = (na_str){path, (uint32_t)(end - path)};
  if (count == 4 && na_str_eq(first[0], "ns") && na_str_eq(first[2], "sa")) {
    out->namespace = first[1];
    out->service_account = first[3];
  }
  return true;
}

bool na_spiffe_in(const char *text, size_t n, const char *set) {
  while (*set) {
    size_t length = strcspn(set, " ");
    if (length == n && memcmp(set, text, n) == 0)
      return true;
    set += length;
    set += *set == ' ';
  }
  return false;
}
