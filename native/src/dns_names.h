/* SPDX-License-Identifier: Apache-2.0
 *
 * The names that are answered here: host names of the mesh's services, with their addresses. Part of a snapshot.
 *
 * A key is a host name in lower case, perhaps with `*.` in place of its first labels, and with `/NAMESPACE` behind it
 * where clients of that namespace get another answer than others, or nobody else does.
 */
#ifndef NODEAGENT_DNS_NAMES_H
#define NODEAGENT_DNS_NAMES_H

#include <nodeagent/engine.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dns_message.h"
#include "table.h"

/* "/" and the longest name of a namespace (RFC 1123 label) behind a host. */
#define NA_DNS_KEY_TEXT (NA_DNS_NAME_TEXT + 64)

typedef struct na_dns_name {
  atomic_uint refs;
  atomic_uint turns[2]; /* answers so far, by family: where the next one begins */
  uint32_t n[2];        /* addresses: IPv4, IPv6 */
  uint8_t (*addresses[2])[16];
  uint32_t key_n;
  char *key;
} na_dns_name;

extern const na_map_ops na_dns_name_ops;

/* A name with its addresses, of either family in any order. -EINVAL for a key that no question can have, and for more
 * than NA_DNS_MAX_ADDRESSES; -ENOMEM. */
int na_dns_name_new(const char *key, const uint8_t *addresses, size_t n, na_dns_name **out);

/* What a question is answered with. */
typedef struct na_dns_match {
  na_dns_name *name; /* lives as long as the map */
  const char *alias; /* the question's name is one of this name; NULL: it is meant itself */
  char text[NA_DNS_NAME_TEXT];
} na_dns_match;

/* Look a question's name up for a client with a search list (domains with spaces between; that of its namespace comes
 * first). As the client's own resolver would have it: the name itself, then below a domain of the list; or, when the
 * resolver has appended a domain of the list already to a name that is known without it, that name. */
bool na_dns_find(const na_map *names, const char *question, const char *search, na_dns_match *out);

#endif
