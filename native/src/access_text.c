/* SPDX-License-Identifier: Apache-2.0 */
#include "access_text.h"

#include <stdbool.h>
#include <string.h>

char *na_access_put(char *out, const char *text) {
  size_t n = strlen(text);
  memcpy(out, text, n);
  return out + n;
}

char *na_access_put_number(char *out, uint64_t number) {
  char digits[20];
  size_t n = 0;
  do {
    digits[n++] = (char)('0' + number % 10);
    number /= 10;
  } while (number);
  while (n)
    *out++ = digits[--n];
  return out;
}

static char *put_hex(char *out, const char *prefix, uint32_t value, int digits) {
  out = na_access_put(out, prefix);
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4)
    *out++ = "0123456789abcdef"[value >> shift & 15];
  return out;
}

static bool continues(uint8_t byte) {
  return (byte & 0xc0) == 0x80;
}

/* Length of the UTF-8 sequence of more than one byte at p (RFC 3629: shortest form, no surrogates); 0 if it is none. */
static size_t sequence(const uint8_t *p, const uint8_t *end) {
  size_t left = (size_t)(end - p);
  if (p[0] >= 0xc2 && p[0] <= 0xdf)
    return left >= 2 && continues(p[1]) ? 2 : 0;
  if (p[0] >= 0xe0 && p[0] <= 0xef) {
    uint8_t low = p[0] == 0xe0 ? 0xa0 : 0x80, high = p[0] == 0xed ? 0x9f : 0xbf;
    return left >= 3 && p[1] >= low && p[1] <= high && continues(p[2]) ? 3 : 0;
  }
  if (p[0] >= 0xf0 && p[0] <= 0xf4) {
    uint8_t low = p[0] == 0xf0 ? 0x90 : 0x80, high = p[0] == 0xf4 ? 0x8f : 0xbf;
    return left >= 4 && p[1] >= low && p[1] <= high && continues(p[2]) && continues(p[3]) ? 4 : 0;
  }
  return 0;
}

/* The character that a sequence of two or three bytes stands for; 0 for longer ones. */
static uint32_t code_point(const uint8_t *p, size_t n) {
  if (n == 2)
    return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
  return n == 3 ? (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu) : 0;
}

/* Beyond ASCII: control characters, and those that break lines, are invisible or turn the direction of writing.
 * log_format.py has the same list. */
static bool hidden(uint32_t c) {
  return (c >= 0x80 && c <= 0x9f) || c == 0xad || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
         (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

char *na_access_escape_text(char *out, const char *text, size_t max) {
  const uint8_t *p = (const uint8_t *)text, *end = p + strnlen(text, max);
  while (p < end) {
    if (*p >= 0x20 && *p < 0x7f) {
      *out++ = (char)*p++;
      continue;
    }
    size_t n = sequence(p, end);
    uint32_t c = n ? code_point(p, n) : *p;
    if (n && !hidden(c)) {
      memcpy(out, p, n);
      out += n;
    } else {
      out = c > 0xff ? put_hex(out, "\\u", c, 4) : put_hex(out, "\\x", c, 2);
    }
    p += n ? n : 1;
  }
  return out;
}

static char *put_json_ascii(char *out, uint8_t c) {
  static const char plain[] = "\"\\\n\r\t\f\b", named[] = "\"\\nrtfb";
  const char *at = memchr(plain, c, sizeof plain - 1);
  if (!at)
    return put_hex(out, "\\u", c, 4);
  *out++ = '\\';
  *out++ = named[at - plain];
  return out;
}

char *na_access_escape_json(char *out, const char *text, size_t max) {
  const uint8_t *p = (const uint8_t *)text, *end = p + strnlen(text, max);
  while (p < end) {
    if (*p < 0x80) {
      if (*p >= 0x20 && *p != '"' && *p != '\\')
        *out++ = (char)*p;
      else
        out = put_json_ascii(out, *p);
      p++;
      continue;
    }
    size_t n = sequence(p, end);
    if (n) {
      memcpy(out, p, n);
      out += n;
    } else {
      out = put_hex(out, "\\\\x", *p, 2);
    }
    p += n ? n : 1;
  }
  return out;
}
