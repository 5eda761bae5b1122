/* SPDX-License-Identifier: Apache-2.0 */
#include "http_path.h"

#include <string.h>

#include <nodeagent/engine.h>

#include "http1_parse.h"

bool na_path_is_plain(na_str path) {
  for (uint32_t i = 0; i < path.n; i++) {
    bool starts_segment = i == 0 || path.p[i - 1] == '/';
    if (!na_h1_is(path.p[i], NA_C_PLAIN) && (path.p[i] != '.' || starts_segment))
      return false;
  }
  return true;
}

static int digit_of(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* RFC 3986 2.3 */
static bool is_unreserved(int c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("-._~", c));
}

/* Whether a digit would make an encoding of what stands before it and is none: `%2%65` must not become `%2e`. */
static bool completes(const char *out, uint32_t n, int c) {
  bool open = n >= 1 && out[n - 1] == '%';
  bool half = n >= 2 && out[n - 2] == '%' && digit_of(out[n - 1]) >= 0;
  return (open || half) && digit_of((char)c) >= 0;
}

static uint32_t encode(char c, char *out) {
  static const char hex[] = "0123456789ABCDEF";
  out[0] = '%';
  out[1] = hex[(uint8_t)c >> 4];
  out[2] = hex[c & 15];
  return 3;
}

/* A byte that is sent as it is. */
static uint32_t copy(char c, char *out) {
  if (c != '%' && c != '.' && c != '\\' && !na_h1_is(c, NA_C_PLAIN))
    return encode(c, out);
  *out = c == '\\' ? '/' : c;
  return 1;
}

/* Decode what need not be encoded, encode what must be, and turn backslashes. Encodings that are none stay as they are.
 */
static long respell(na_str path, uint32_t slashes, char *out) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < path.n; i++) {
    char c = path.p[i];
    int high = c == '%' && i + 2 < path.n ? digit_of(path.p[i + 1]) : -1;
    int low = high >= 0 ? digit_of(path.p[i + 2]) : -1;
    int decoded = low >= 0 ? high * 16 + low : -1;
    bool slash = decoded == '/' || decoded == '\\';
    if (decoded == 0 || (slash && slashes & NA_SLASHES_REJECT))
      return -1;
    if (slash && slashes & NA_SLASHES_DECODE) {
      out[n++] = '/';
      i += 2;
    } else if (decoded > 0 && is_unreserved(decoded) && !completes(out, n, decoded)) {
      out[n++] = (char)decoded;
      i += 2;
    } else {
      n += copy(c, out + n);
    }
  }
  return n;
}

/* The segment at p, without its slash. */
static uint32_t segment_length(const char *p, const char *end) {
  const char *slash = memchr(p, '/', (size_t)(end - p));
  return (uint32_t)((slash ? slash : end) - p);
}

/* How many dots a segment consists of; with parameters, too: to servers that take these off (`..;a=b`, as Tomcat does)
 * it is one of dots, and so it is to Envoy. */
static uint32_t dots_of(const char *segment, uint32_t n) {
  uint32_t dots = 0;
  while (dots < n && segment[dots] == '.')
    dots++;
  return dots == n || segment[dots] == ';' ? dots : 0;
}

/* RFC 3986 5.2.4, in place; `n` bytes that begin with a slash. */
static uint32_t remove_dots(char *path, uint32_t n) {
  const char *p = path, *end = path + n;
  uint32_t out = 0; /* all segments so far, each with the slash before it */
  while (p < end) {
    uint32_t length = segment_length(p + 1, end);
    bool last = p + 1 + length == end;
    uint32_t dots = dots_of(p + 1, length);
    if (dots == 2)
      while (out && path[--out] != '/')
        ;
    if (dots != 1 && dots != 2) {
      memmove(path + out, p, length + 1);
      out += length + 1;
    } else if (last) {
      path[out++] = '/';
    }
    p += 1 + length;
  }
  return out;
}

static uint32_t merge_slashes(char *path, uint32_t n) {
  uint32_t out = 0;
  for (uint32_t i = 0; i < n; i++)
    if (path[i] != '/' || out == 0 || path[out - 1] != '/')
      path[out++] = path[i];
  return out;
}

bool na_path_repeats_slashes(na_str path) {
  return path.n && memmem(path.p, path.n, "//", 2);
}

long na_path_normalise(na_str path, uint32_t slashes, char *out) {
  long n = respell(path, slashes, out);
  if (n <= 0 || out[0] != '/')
    return n;
  uint32_t length = remove_dots(out, (uint32_t)n);
  return slashes & NA_SLASHES_MERGE ? merge_slashes(out, length) : length;
}
