/* SPDX-License-Identifier: Apache-2.0
 *
 * Where tunnels lead, as a key: connections that share it may share tunnels.
 */
#ifndef NODEAGENT_HBONE_KEY_H
#define NODEAGENT_HBONE_KEY_H

#include "hbone.h"

/* What a key says. Texts are in the key. */
typedef struct na_hbone_place {
  na_address address;
  const char *identities; /* whom the peer may be */
  const char *outer;      /* of an inner tunnel: whom the gateway at the address may be; else NULL, as what follows */
  const char *authority;  /* what the gateway is asked for */
  const char *network;    /* ours, to be told */
} na_hbone_place;

/* The key of where a dial leads, to be freed, and its length; NULL for want of memory. */
char *na_hbone_key_make(const na_hbone_dial *dial, size_t *n);
void na_hbone_key_read(const char *key, size_t n, na_hbone_place *out);

#endif
