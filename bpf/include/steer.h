/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Parts of sk_lookup programs: giving a connection to a listener of the agent's.
 */
#ifndef NODEAGENT_BPF_STEER_H
#define NODEAGENT_BPF_STEER_H

#include "arrival.h"
#include "counters.h"

#define IPPROTO_TCP 6

static __always_inline int refuse(void) {
  count(NA_COUNT_NO_LISTENER);
  return SK_DROP; /* TCP answers it with a reset */
}

/* 1: it is the listener's of that key, 0: there is none, or -1. */
static __always_inline int assign(struct bpf_sk_lookup *ctx, void *listeners, __u32 key) {
  struct bpf_sock *sk = bpf_map_lookup_elem(listeners, &key);
  long failed;

  if (!sk)
    return 0;
  failed = bpf_sk_assign(ctx, sk, 0);
  bpf_sk_release(sk);
  return failed ? -1 : 1;
}

/* What was sent to a port of the agent's. */
static __always_inline int give_to(struct bpf_sk_lookup *ctx, void *listeners, __u32 key) {
  return assign(ctx, listeners, key) > 0 ? SK_PASS : refuse();
}

/* What was sent to an application. Without a listener it is refused, or gets there where it is `open`. */
static __always_inline int steer_to(struct bpf_sk_lookup *ctx, void *listeners, __u32 key, int open) {
  int assigned = assign(ctx, listeners, key);

  if (assigned > 0)
    count(NA_COUNT_STEERED);
  return assigned > 0 || (!assigned && open) ? SK_PASS : refuse();
}

#endif
