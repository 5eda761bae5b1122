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

#include "calls.h"
#include "flows.h"
#include "liveness.h"
#include "steer.h"
#include "verdict.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// NA_LISTENER_KEY_* or the index of a device -> listener. Sockets leave it when they are closed.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 35);
  __type(key, __u32);
  __type(value, __u64);
} listeners SEC(".maps");

// NA_GUARD_*, in the one slot.
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} guarded SEC(".maps");

// Which workload this namespace is.
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct na_here);
} here SEC(".maps");

static __always_inline struct na_bypass_key ends_of(const struct bpf_sk_lookup *ctx, const struct na_address *local,
                                                    const struct na_address *remote) {
  return (struct na_bypass_key){*remote, *local, bpf_ntohs((__u16)ctx->remote_port), (__u16)ctx->local_port, 0};
}

// The connection if connect() has let it past the engine (bypass.h).
static __always_inline struct na_bypass *find_flow(const struct bpf_sk_lookup *ctx, const struct na_address *local,
                                                   const struct na_address *remote) {
  struct na_bypass_key ends = ends_of(ctx, local, remote);

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

// Whether the agent is connecting to the workload in a client's name. In IPv6 that arrives by the device that has the
// workload's address, as what somebody outside sends from such a source.
static __always_inline int is_call(const struct bpf_sk_lookup *ctx, const struct na_address *local,
                                   const struct na_address *remote) {
  struct na_bypass_key ends = ends_of(ctx, local, remote);

  return bpf_map_lookup_elem(&calls, &ends) != 0;
}

static __always_inline int is_guarded(__u32 port) {
  __u32 only = 0, *which = bpf_map_lookup_elem(&guarded, &only);

  return which && *which & port;
}

// Nobody from outside may ask.
static __always_inline int give_to_dns(struct bpf_sk_lookup *ctx, const struct na_address *local,
                                       const struct na_address *remote) {
  if (ctx->ingress_ifindex != LOOPBACK_IFINDEX && !is_within(local, remote))
    return refuse();
  return give_to(ctx, &listeners, is_mapped(local) ? NA_LISTENER_KEY_DNS4 : NA_LISTENER_KEY_DNS6);
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
  if (ctx->local_port == NA_PORT_HBONE)
    return is_guarded(NA_GUARD_HBONE) ? give_to(ctx, &listeners, NA_LISTENER_KEY_HBONE) : SK_PASS;
  read_addresses(ctx, &local, &remote);
  if (ctx->local_port == NA_PORT_DNS && is_guarded(NA_GUARD_DNS))
    return give_to_dns(ctx, &local, &remote);
  // The workload to itself, or the agent to the workload.
  if (ctx->ingress_ifindex == LOOPBACK_IFINDEX)
    return SK_PASS;
  if (is_stand_in(&remote))
    return is_call(ctx, &local, &remote) ? SK_PASS : refuse();
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
