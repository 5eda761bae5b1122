/* SPDX-License-Identifier: Apache-2.0 */
#include "address.h"

#include <arpa/inet.h>
#include <stdio.h>

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool na_ip_is_v4(const uint8_t ip[16]) {
  return memcmp(ip, v4_prefix, sizeof v4_prefix) == 0;
}

bool na_ip_is_loopback(const uint8_t ip[16]) {
  static const uint8_t v6_loopback[16] = {[15] = 1};
  return na_ip_is_v4(ip) ? ip[12] == 127 : memcmp(ip, v6_loopback, 16) == 0;
}

bool na_ip_is_link_local(const uint8_t ip[16]) {
  return na_ip_is_v4(ip) ? ip[12] == 169 && ip[13] == 254 : ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

bool na_ip_is_any(const uint8_t ip[16]) {
  static const uint8_t zero[16];
  return na_ip_is_v4(ip) ? memcmp(ip + 12, zero, 4) == 0 : memcmp(ip, zero, 16) == 0;
}

bool na_ip_parse(const char *text, size_t n, uint8_t ip[16]) {
  char copy[INET6_ADDRSTRLEN];
  if (n >= sizeof copy || memchr(text, '\0', n))
    return false;
  memcpy(copy, text, n);
  copy[n] = '\0';
  if (memchr(text, ':', n))
    return inet_pton(AF_INET6, copy, ip) == 1;
  memcpy(ip, v4_prefix, sizeof v4_prefix);
  return inet_pton(AF_INET, copy, ip + 12) == 1;
}

bool na_address_from_sockaddr(na_address *out, const struct sockaddr_storage *in) {
  if (in->ss_family == AF_INET) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)in;
    memcpy(out->ip, v4_prefix, sizeof v4_prefix);
    memcpy(out->ip + 12, &v4->sin_addr, 4);
    out->port = ntohs(v4->sin_port);
    return true;
  }
  if (in->ss_family == AF_INET6) {
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)in;
    memcpy(out->ip, &v6->sin6_addr, 16);
    out->port = ntohs(v6->sin6_port);
    return true;
  }
  return false;
}

socklen_t na_address_to_sockaddr(const na_address *in, struct sockaddr_storage *out) {
  memset(out, 0, sizeof *out);
  if (na_ip_is_v4(in->ip)) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    v4->sin_family = AF_INET;
    v4->sin_port = htons(in->port);
    memcpy(&v4->sin_addr, in->ip + 12, 4);
    return sizeof *v4;
  }
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons(in->port);
  memcpy(&v6->sin6_addr, in->ip, 16);
  return sizeof *v6;
}

int na_address_family(const na_address *address) {
  return na_ip_is_v4(address->ip) ? AF_INET : AF_INET6;
}

void na_address_format(const na_address *address, char out[NA_ADDRESS_TEXT]) {
  char ip[INET6_ADDRSTRLEN];
  bool v4 = na_ip_is_v4(address->ip);
  inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? address->ip + 12 : address->ip, ip, sizeof ip);
  snprintf(out, NA_ADDRESS_TEXT, v4 ? "%s:%u" : "[%s]:%u", ip, address->port);
}
