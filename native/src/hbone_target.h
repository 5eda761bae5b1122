/* SPDX-License-Identifier: Apache-2.0
 *
 * Where tunnels of one kind lead: from one workload (so from one identity) to one address, whose owner must be one of a
 * set of identities. Or, of an inner tunnel: to one name, through the gateway at the address.
 */
#ifndef NODEAGENT_HBONE_TARGET_H
#define NODEAGENT_HBONE_TARGET_H

#include "hbone_key.h"
#include "hbone_sides.h"

struct na_hbone_target {
  na_worker *worker;
  na_workload *workload;
  na_link resting; /* hbone->resting */
  na_link tunnels;
  na_link calls;                  /* waiting */
  struct ssl_session_st *session; /* to resume; NULL: none */
  na_identity *session_identity;  /* that it was made with: the peer will take us for that */
  na_hbone_place place;           /* in the key */
  uint32_t most;                  /* streams that the peer takes in a tunnel, as it said last; 0: not yet */
  uint32_t key_n;
  char key[]; /* hbone_key.h */
};

/* The target of such a dial, which may be new; NULL without memory. */
na_hbone_target *na_hbone_target_for(const na_hbone_dial *dial);
/* Remember a TLS session, which is given away, and the identity that it was made with; NULL: forget the one there is.
 */
void na_hbone_target_session(na_hbone_target *target, struct ssl_session_st *session, na_identity *identity);
/* One that nobody uses rests if it has something to remember, else it goes. */
void na_hbone_target_release(na_hbone_target *target);
/* Let those go that rest, of one workload or of all. */
void na_hbone_targets_forget(na_worker *worker, const na_workload *workload);

#endif
