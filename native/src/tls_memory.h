/* SPDX-License-Identifier: Apache-2.0
 *
 * What the TLS streams of a worker share: memory for ciphertext on its way between OpenSSL and the sockets, and the
 * right to keep OpenSSL's own buffers.
 */
#ifndef NODEAGENT_TLS_MEMORY_H
#define NODEAGENT_TLS_MEMORY_H

#include <stdint.h>

#include "list.h"

struct bio_st;
struct ssl_st;

/* Streams that keep OpenSSL's buffers, of 34 KB, between calls: those that were used last. To allocate them for each
 * record took 3 % of a small request. */
#define NA_TLS_MAX_WARM 64

/* Ciphertext that passes through during one call; one per worker. */
typedef struct na_tls_memory {
  char *in;
  size_t in_size;
  char *out; /* grows to what one call produces, and stays */
  size_t out_n;
  size_t out_size;
  na_link warm; /* na_tls_flow.warm, the latest used first */
  uint32_t warm_n;
} na_tls_memory;

int na_tls_memory_init(na_tls_memory *memory);
void na_tls_memory_free(na_tls_memory *memory);

/* A stream's part in it. */
typedef struct na_tls_flow {
  na_tls_memory *memory;
  struct ssl_st *ssl;
  const char *in; /* ciphertext not taken yet */
  size_t in_n;
  na_link warm;
} na_tls_flow;

void na_tls_flow_init(na_tls_flow *flow, na_tls_memory *memory);
/* Before the SSL is freed. */
void na_tls_flow_end(na_tls_flow *flow);
/* What OpenSSL reads from flow->in and writes to memory->out by; NULL without memory. The flow must outlive it. */
struct bio_st *na_tls_flow_bio(na_tls_flow *flow);
/* After a call: the stream was used, and keeps its buffers; the one that was longest unused may have to give up its
 * own. */
void na_tls_flow_warm(na_tls_flow *flow);

#endif
