/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy_protocol.h"

enum { VERSION_2_PROXY = 0x21, TCP_OVER_IPV4 = 0x11, TCP_OVER_IPV6 = 0x21, TLV_IDENTITY = 0xd0 };

#define MAX_IDENTITY 2048

static uint8_t *put_number(uint8_t *at, size_t value) {
  *at++ = (uint8_t)(value >> 8);
  *at++ = (uint8_t)value;
  return at;
}

static uint8_t *put(uint8_t *at, const void *bytes, size_t n) {
  memcpy(at, bytes, n);
  return at + n;
}

size_t na_proxy_header(const na_address *source, const na_address *destination, const char *identity,
                       uint8_t out[NA_PROXY_HEADER_MAX]) {
  bool v4 = na_ip_is_v4(source->ip) && na_ip_is_v4(destination->ip);
  size_t skip = v4 ? 12 : 0, n = strlen(identity);
  uint8_t *at = put(out, "\r\n\r\n\0\r\nQUIT\n", 12);
  *at++ = VERSION_2_PROXY;
  *at++ = v4 ? TCP_OVER_IPV4 : TCP_OVER_IPV6;
  uint8_t *length = at, *body = at + 2;
  at = put(body, source->ip + skip, 16 - skip);
  at = put(at, destination->ip + skip, 16 - skip);
  at = put_number(at, source->port);
  at = put_number(at, destination->port);
  if (n && n <= MAX_IDENTITY) {
    *at++ = TLV_IDENTITY;
    at = put(put_number(at, n), identity, n);
  }
  put_number(length, (size_t)(at - body));
  return (size_t)(at - out);
}
