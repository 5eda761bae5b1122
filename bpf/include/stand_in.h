/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Connections that the agent makes to an application in the name of its client. The agent asks for the client's address
 * as its source (IP_TRANSPARENT). It gets one of loopback that stands for it, and the application is told of the client
 * where it asks who has connected: accept(), getpeername().
 *
 * The client's very address would need a rule in the namespace by which answers to it come back, and one rule of its
 * own takes from a namespace the kernel's short way through its routing tables: 3.5 us of each connect().
 *
 * Kernel: >= 5.8 (getpeername hooks).
 */
#ifndef NODEAGENT_BPF_STAND_IN_H
#define NODEAGENT_BPF_STAND_IN_H

#include "calls.h"
#include "counters.h"
#include "ends.h"
#include "workloads.h"

#define IPPROTO_TCP 6

/* The agent's socket -> its client. */
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct na_destination);
} clients SEC(".maps");

static __always_inline void stand_in(struct na_address *a) {
  __u32 ip4 = bpf_ntohl(a->word[3]);

  if (is_mapped(a)) {
    a->word[3] = bpf_htonl(STAND_IN4 | ((ip4 ^ ip4 >> 16) & STAND_IN4_REST));
    return;
  }
  a->word[0] = bpf_htonl(STAND_IN6_HIGH);
  a->word[1] = bpf_htonl(STAND_IN6_LOW);
}

/* bind() of the agent's to a foreign address, which is changed; 0: it must fail. */
static __always_inline int bind_for_client(struct bpf_sock_addr *ctx, struct na_address *address,
                                           const struct na_workload_entry *workload) {
  struct bpf_sock *sk = ctx->sk;
  struct na_destination *client;

  if (!sk || ctx->protocol != IPPROTO_TCP || is_any(address) || is_loopback(address) || is_own(workload, address))
    return 1;
  client = bpf_sk_storage_get(&clients, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!client) {
    count(NA_COUNT_NO_STORAGE);
    return 0;
  }
  *client = (struct na_destination){*address, bpf_ntohs((__u16)ctx->user_port), 0, 0};
  stand_in(address);
  return 1;
}

/* What getpeername() must not tell: a stand-in whose client is not known. An application may trust loopback. */
static __always_inline int is_unknown_client(struct bpf_sock_addr *ctx, const struct na_address *peer) {
  __u64 cookie = bpf_get_netns_cookie(ctx);

  return is_stand_in(peer) && bpf_map_lookup_elem(&workloads, &cookie);
}

/* Before the SYN of a socket that may be such a one. */
static __always_inline void announce_client(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  const struct na_destination *client = bpf_sk_storage_get(&clients, sk, 0, 0);
  struct na_bypass_key call;

  if (!client)
    return;
  read_ends(ops, &call);
  if (bpf_map_update_elem(&calls, &call, client, BPF_ANY))
    count(NA_COUNT_NO_CLIENT);
  bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* The first change of state of such a socket: it is connected, or there was nobody to hear of the client. */
static __always_inline void retract_client(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  struct na_bypass_key call;

  if (ops->args[0] != BPF_TCP_SYN_SENT || !bpf_sk_storage_get(&clients, sk, 0, 0))
    return;
  bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_STATE_CB_FLAG);
  if (ops->args[1] == BPF_TCP_ESTABLISHED)
    return;
  read_ends(ops, &call);
  bpf_map_delete_elem(&calls, &call);
}

/* The application's end: remembers the client in `kept`, which getpeername() tells. */
static __always_inline void take_client(struct bpf_sock_ops *ops, struct bpf_sock *sk, void *storage) {
  struct na_bypass_key call;
  struct na_original *kept;
  struct na_destination *client;
  struct na_bypass_key here;

  read_ends(ops, &here);
  if (!is_stand_in(&here.destination))
    return;
  call = (struct na_bypass_key){here.destination, here.source, here.destination_port, here.source_port, 0};
  client = bpf_map_lookup_elem(&calls, &call);
  kept = client ? bpf_sk_storage_get(storage, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
  if (!kept) {
    count(NA_COUNT_NO_CLIENT);
    return;
  }
  kept->asked = *client;
  kept->life = 0;
  bpf_map_delete_elem(&calls, &call);
}

#endif
