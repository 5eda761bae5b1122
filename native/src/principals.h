/* SPDX-License-Identifier: Apache-2.0
 *
 * Authenticated peers by number, so that a statistics row need not carry a SPIFFE ID: one table per engine, filled when
 * a tunnel's handshake is over. Only identities that a trusted CA has vouched for come in here.
 */
#ifndef NODEAGENT_PRINCIPALS_H
#define NODEAGENT_PRINCIPALS_H

#include <pthread.h>
#include <stdint.h>

/* Distinct peers of an engine; beyond, they are reported without a name. */
#define NA_MAX_PRINCIPALS 65536

typedef struct na_principals {
  pthread_mutex_t lock;
  char **names;    /* by id - 1; a name stays for the life of the engine */
  uint32_t *index; /* open addressing: id, 0 empty; twice as many places as names */
  uint32_t size;
  uint32_t n;
} na_principals;

void na_principals_init(na_principals *principals);
void na_principals_free(na_principals *principals);
/* The id of a name, from 1; 0 when the table is full or memory is short. Any thread. */
uint32_t na_principals_intern(na_principals *principals, const char *name);
/* "" for 0 and unknown ids. Any thread; valid for the life of the engine. */
const char *na_principals_text(na_principals *principals, uint32_t id);

#endif
