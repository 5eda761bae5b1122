/* SPDX-License-Identifier: Apache-2.0
 *
 * Identities of workloads: a certificate chain with its key, and whom it trusts. Immutable; a renewed certificate is
 * another na_identity of the same name, put into the snapshot in place of the one before. Connections keep the one that
 * they began with by a reference.
 */
#ifndef NODEAGENT_IDENTITY_H
#define NODEAGENT_IDENTITY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "http1.h"

struct ssl_ctx_st;

typedef struct na_identity {
  atomic_uint refs;
  struct ssl_ctx_st *context; /* for both roles: HBONE is mutual */
  int64_t not_after;          /* of its own certificate, seconds since the epoch */
  char *uri;                  /* its SPIFFE ID, as the certificate has it */
  uint32_t ntrusted;
  char **trusted; /* trust domains whose members may connect; never empty */
  char name[];
} na_identity;

/* What an identity is made of. */
typedef struct na_identity_args {
  const char *name;
  const char *chain_pem; /* leaf first */
  const char *key_pem;
  const char *bundle_pem; /* trust anchors */
  const char *const *trust_domains;
  size_t n; /* 0: the certificate's own */
} na_identity_args;

/* One reference. -EINVAL for what cannot be used, -EKEYEXPIRED for a certificate that has run out, -ENOMEM; `error`
 * then says why. */
int na_identity_create(const na_identity_args *args, char *error, size_t error_size, na_identity **out);
na_identity *na_identity_ref(na_identity *identity);
void na_identity_unref(na_identity *identity);
/* Whether members of the trust domain may connect. */
bool na_identity_trusts(const na_identity *identity, na_str trust_domain);
/* Whether its own certificate is over at `now` (seconds since the epoch). */
static inline bool na_identity_expired(const na_identity *identity, int64_t now) {
  return now >= identity->not_after;
}

#endif
