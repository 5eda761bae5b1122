/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Workloads that shall go on without the agent (NA_WORKLOAD_OPEN). Asked is its listener, not whether it lives: so the
 * time in which a new agent has not yet taken the workload on is no outage either.
 */
#ifndef NODEAGENT_BPF_FAIL_OPEN_H
#define NODEAGENT_BPF_FAIL_OPEN_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

/* Whether the agent listens on a port of the loopback device, in the namespace of the socket. Nobody else is found
 * there: the programs of sk_lookup, which are asked here too, refuse what is not the agent's. */
static __always_inline int has_listener(struct bpf_sock_addr *ctx, __u16 port) {
  struct bpf_sock_tuple tuple = {.ipv4 = {.daddr = bpf_htonl(0x7f000001), .dport = bpf_htons(port)}};
  struct bpf_sock *sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);

  if (!sk)
    return 0;
  bpf_sk_release(sk);
  return 1;
}

static __always_inline int passes_without_agent(struct bpf_sock_addr *ctx, __u32 flags, __u16 port) {
  return flags & NA_WORKLOAD_OPEN && !has_listener(ctx, port);
}

#endif
