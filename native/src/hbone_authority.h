/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a CONNECT wants to go: `a.b.c.d:port`, `[v6]:port` or `host:port` (RFC 9113 8.5, RFC 9110 7.2).
 */
#ifndef NODEAGENT_HBONE_AUTHORITY_H
#define NODEAGENT_HBONE_AUTHORITY_H

#include "address.h"
#include "http1.h"

typedef struct na_hbone_authority {
  na_address address; /* the port always; the IP if there is no host */
  na_str host;        /* a name, as given; empty for an IP */
} na_hbone_authority;

/* Strict: a port of 1 to 65535 without sign or leading zero; a name of letters, digits, '-', '_' and '.', at most 253.
 */
bool na_hbone_parse_authority(na_str text, na_hbone_authority *out);

#endif
