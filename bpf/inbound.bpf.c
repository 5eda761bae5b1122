// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Inbound capture: connections that arrive at a workload's network namespace are given to the agent's listener there,
// whichever port they are for; getsockname() of the accepted socket is then the original destination. Loaded once for
// each namespace (sk_lookup programs know no netns cookie), attached to it by a link. Nothing here can be chosen by a
// program of the workload: not even one that listens on the agent's ports while the agent is away gets a connection.
//
// Each device has a listener of its own, bound to it: what is accepted stays with that device (outbound.bpf.c says
// why).
//
// Kernel: >= 5.17 (ingress_ifindex in sk_lookup).
#include <linux/bpf.h>

#include "address.h"
#include "counters.h"

#define AF_INET          2
#define IPPROTO_TCP      6
#define LOOPBACK_IFINDEX 1

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// NA_LISTENER_KEY_OUTBOUND or the index of a device -> listener. Sockets leave it when they are closed.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 32);
  __type(key, __u32);
  __type(value, __u64);
} listeners SEC(".maps");

static __always_inline int refuse(void) {
  count(NA_COUNT_NO_LISTENER);
  return SK_DROP; // TCP answers it with a reset
}

static __always_inline int give_to(struct bpf_sk_lookup *ctx, __u32 key) {
  struct bpf_sock *sk = bpf_map_lookup_elem(&listeners, &key);
  long failed;

  if (!sk)
    return refuse();
  failed = bpf_sk_assign(ctx, sk, 0);
  bpf_sk_release(sk);
  return failed ? refuse() : SK_PASS;
}

static __always_inline void read_addresses(struct bpf_sk_lookup *ctx, struct na_address *local,
                                           struct na_address *remote) {
  if (ctx->family == AF_INET) {
    set_mapped(local, ctx->local_ip4);
    KEEP_BRANCH();
    set_mapped(remote, ctx->remote_ip4);
    KEEP_BRANCH();
    return;
  }
  *local = (struct na_address){{ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]}};
  *remote = (struct na_address){{ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]}};
}

// The kubelet's probes, as istio-cni marks them by their source: 169.254.7.127, and fd16:9254:7127:1337:ffff:...:ffff.
static __always_inline int is_probe(const struct na_address *from) {
  struct na_address probe4, probe6 = {{bpf_htonl(0xfd169254), bpf_htonl(0x71271337), 0xffffffff, 0xffffffff}};

  set_mapped(&probe4, bpf_htonl(0xa9fe077f));
  return same_address(from, &probe4) || same_address(from, &probe6);
}

SEC("sk_lookup")
int inbound_lookup(struct bpf_sk_lookup *ctx) {
  struct na_address local, remote;
  int verdict;

  if (ctx->protocol != IPPROTO_TCP)
    return SK_PASS;
  if (ctx->local_port == NA_PORT_OUTBOUND)
    return give_to(ctx, NA_LISTENER_KEY_OUTBOUND);
  if (ctx->local_port == NA_PORT_INBOUND)
    return give_to(ctx, ctx->ingress_ifindex);
  // The workload to itself, or the agent to the workload.
  if (ctx->local_port == NA_PORT_HBONE || ctx->ingress_ifindex == LOOPBACK_IFINDEX)
    return SK_PASS;
  read_addresses(ctx, &local, &remote);
  // A workload that talks to its own address: the ingress device is then the one that owns the address, not lo.
  if (same_address(&local, &remote) || is_loopback(&remote) || is_probe(&remote))
    return SK_PASS;
  verdict = give_to(ctx, ctx->ingress_ifindex);
  if (verdict == SK_PASS)
    count(NA_COUNT_STEERED);
  return verdict;
}
