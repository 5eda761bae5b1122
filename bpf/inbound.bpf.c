// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Inbound capture: connections that arrive at a workload's network namespace are given to the agent's listener there,
// whichever port they are for; getsockname() of the accepted socket is then the original destination. Loaded once for
// each namespace (sk_lookup programs know no netns cookie), attached to it by a link. Kernel: >= 5.9.
#include <linux/bpf.h>

#include "address.h"

#define AF_INET          2
#define IPPROTO_TCP      6
#define LOOPBACK_IFINDEX 1

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// What happens when the agent is not there: 0 refuses (fail closed), 1 lets connections through uncaptured. Set before
// loading; only for workloads whose policy is permissive.
const volatile __u32 fail_open = 0;

// The listener: index 0 IPv4, 1 IPv6 (both may be one dual-stack socket).
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 2);
  __type(key, __u32);
  __type(value, __u64);
} listener SEC(".maps");

// The agent's own connections to the workload, written by sockops before their SYN leaves.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct na_tuple);
  __type(value, __u8);
} own SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, NA_COUNTERS);
  __type(key, __u32);
  __type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which) {
  __u64 *value = bpf_map_lookup_elem(&counters, &which);
  if (value)
    *value += 1;
}

static __always_inline void read_tuple(struct bpf_sk_lookup *ctx, struct na_tuple *t) {
  if (ctx->family == AF_INET) {
    set_mapped(&t->local, ctx->local_ip4);
    KEEP_BRANCH();
    set_mapped(&t->remote, ctx->remote_ip4);
    KEEP_BRANCH();
  } else {
    t->local = (struct na_address){{ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]}};
    t->remote = (struct na_address){{ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]}};
  }
  t->local_port = (__u16)ctx->local_port;
  t->remote_port = bpf_ntohs((__u16)ctx->remote_port);
}

static __always_inline int is_agent_port(__u32 port) {
  return port == NA_PORT_OUTBOUND || port == NA_PORT_INBOUND || port == NA_PORT_HBONE || port == NA_PORT_DNS;
}

SEC("sk_lookup")
int inbound_lookup(struct bpf_sk_lookup *ctx) {
  __u32 family = ctx->family == AF_INET ? 0 : 1;
  struct na_tuple tuple = {};
  struct bpf_sock *sk;
  long failed;

  if (ctx->protocol != IPPROTO_TCP || is_agent_port(ctx->local_port) || ctx->ingress_ifindex == LOOPBACK_IFINDEX)
    return SK_PASS;
  read_tuple(ctx, &tuple);
  // A workload that talks to its own address: the ingress device is then the one that owns the address, not lo.
  if (same_address(&tuple.local, &tuple.remote) || is_loopback(&tuple.remote) || bpf_map_lookup_elem(&own, &tuple))
    return SK_PASS;
  sk = bpf_map_lookup_elem(&listener, &family);
  if (!sk) {
    count(NA_COUNT_NO_LISTENER);
    return fail_open ? SK_PASS : SK_DROP;
  }
  failed = bpf_sk_assign(ctx, sk, 0);
  bpf_sk_release(sk);
  if (failed) {
    count(NA_COUNT_NO_LISTENER);
    return fail_open ? SK_PASS : SK_DROP;
  }
  count(NA_COUNT_STEERED);
  return SK_PASS;
}
