/* SPDX-License-Identifier: Apache-2.0
 *
 * Socket addresses in one form: 16 bytes in network order (IPv4 as IPv4-mapped IPv6) and a port in host order.
 */
#ifndef NODEAGENT_ADDRESS_H
#define NODEAGENT_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct na_address {
  uint8_t ip[16];
  uint16_t port;
} na_address;

/* Room for "[v6]:port" with its NUL. */
#define NA_ADDRESS_TEXT (INET6_ADDRSTRLEN + 8)

bool na_ip_is_v4(const uint8_t ip[16]);
bool na_ip_is_loopback(const uint8_t ip[16]);
bool na_ip_is_link_local(const uint8_t ip[16]);
bool na_ip_is_any(const uint8_t ip[16]);

/* Read `a.b.c.d` or an address of IPv6, without brackets or zone. */
bool na_ip_parse(const char *text, size_t n, uint8_t ip[16]);

static inline bool na_address_eq(const na_address *a, const na_address *b) {
  return a->port == b->port && memcmp(a->ip, b->ip, 16) == 0;
}

/* From what the kernel gave; false for other families. */
bool na_address_from_sockaddr(na_address *out, const struct sockaddr_storage *in);
/* To what the kernel takes: AF_INET for IPv4 and IPv4-mapped, else AF_INET6. Returns the length. */
socklen_t na_address_to_sockaddr(const na_address *in, struct sockaddr_storage *out);
/* AF_INET or AF_INET6. */
int na_address_family(const na_address *address);
/* "a.b.c.d:port" or "[v6]:port". */
void na_address_format(const na_address *address, char out[NA_ADDRESS_TEXT]);

#endif
