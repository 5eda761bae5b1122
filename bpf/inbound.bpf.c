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

#include "flows.h"
#include "liveness.h"
#include "steer.h"
#include "verdict.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// NA_LISTENER_KEY_OUTBOUND or the index of a device -> listener. Sockets leave it when they are closed.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 32);
  __type(key, __u32);
  __type(value, __u64);
} listeners SEC(".maps");

// Which workload this namespace is.
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct na_here);
} here SEC(".maps");

// The connection if connect() has let it past the engine (bypass.h).
static __always_inline struct na_bypass *find_flow(const struct bpf_sk_lookup *ctx, const struct na_address *local,
                                                   const struct na_address *remote) {
  struct na_bypass_key ends = {*remote, *local, bpf_ntohs((__u16)ctx->remote_port), (__u16)ctx->local_port, 0};

  return bpf_map_lookup_elem(&bypassed, &ends);
}

// Whether such a connection is for this workload, and allowed still; without an agent nothing is. Else it is refused:
// to the engine it would be anybody's. The client's next connect() is judged as it is now. One who is no client any
// more may have left a socket without a process, whose entry stays, and its address to somebody else.
static __always_inline int may_arrive(const struct na_bypass *flow, __u16 port) {
  const struct na_access_entry *verdict;
  const struct na_here *present;
  __u32 only = 0;

  if (!flow->life || flow->life != present_life())
    return 0;
  present = bpf_map_lookup_elem(&here, &only);
  if (!present || present->life != flow->life || present->workload != flow->destination)
    return 0;
  if (!is_source(flow->netns_cookie, flow->source))
    return 0;
  verdict = access_of(flow->source, flow->destination, port, IPPROTO_TCP);
  return verdict && verdict->access == NA_ACCESS_ALLOW && agent_is_alive();
}

static __always_inline int steer(struct bpf_sk_lookup *ctx, int open) {
  struct na_address local, remote;
  struct na_bypass *flow;

  if (ctx->protocol != IPPROTO_TCP)
    return SK_PASS;
  if (ctx->local_port == NA_PORT_OUTBOUND)
    return give_to(ctx, &listeners, NA_LISTENER_KEY_OUTBOUND);
  if (ctx->local_port == NA_PORT_INBOUND)
    return give_to(ctx, &listeners, ctx->ingress_ifindex);
  // The workload to itself, or the agent to the workload.
  if (ctx->local_port == NA_PORT_HBONE || ctx->ingress_ifindex == LOOPBACK_IFINDEX)
    return SK_PASS;
  read_addresses(ctx, &local, &remote);
  if (is_within(&local, &remote) || is_probe(&remote))
    return SK_PASS;
  flow = find_flow(ctx, &local, &remote);
  if (flow && may_arrive(flow, (__u16)ctx->local_port)) {
    flow->arrived = 1;
    return SK_PASS;
  }
  if (flow) {
    count(NA_COUNT_WITHDRAWN);
    return SK_DROP;
  }
  return steer_to(ctx, &listeners, ctx->ingress_ifindex, open);
}

SEC("sk_lookup")
int inbound_lookup(struct bpf_sk_lookup *ctx) {
  return steer(ctx, 0);
}

// In its place for workloads that go on without the agent (NA_WORKLOAD_OPEN).
SEC("sk_lookup")
int inbound_lookup_open(struct bpf_sk_lookup *ctx) {
  return steer(ctx, 1);
}
