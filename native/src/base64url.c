/* SPDX-License-Identifier: Apache-2.0 */
#include "base64url.h"

/* The value of a character, or -1. */
static int digit(char c) {
  if (c >= 'A' && c <= 'Z')
    return c - 'A';
  if (c >= 'a' && c <= 'z')
    return c - 'a' + 26;
  if (c >= '0' && c <= '9')
    return c - '0' + 52;
  if (c == '-')
    return 62;
  return c == '_' ? 63 : -1;
}

long na_base64url_decode(na_str text, unsigned char *out) {
  uint32_t bits = 0, nbits = 0;
  long n = 0;
  if (text.n % 4 == 1)
    return -1;
  for (uint32_t i = 0; i < text.n; i++) {
    int value = digit(text.p[i]);
    if (value < 0)
      return -1;
    bits = bits << 6 | (uint32_t)value;
    nbits += 6;
    if (nbits < 8)
      continue;
    nbits -= 8;
    out[n++] = (unsigned char)(bits >> nbits);
    bits &= (1u << nbits) - 1;
  }
  return bits ? -1 : n;
}
