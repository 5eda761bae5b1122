// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Inbound capture in a namespace that workloads share, such as the host's: only the ports that workloads have declared
// go to the agent, each to the listener of its workload; all others are nobody's business. What a machine says to
// itself is left alone, as is the agent's connection to the application, which comes from the machine's own address.
//
// The agent's own ports are among those of the map, so that nobody else can have them, nor speak to the agent there.
//
// Kernel: >= 5.17 (ingress_ifindex in sk_lookup).
#include <linux/bpf.h>

#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// An address, or the unspecified one, and port -> whose it is.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 8192);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_destination);
  __type(value, struct na_shared_port);
} ports SEC(".maps");

// NA_SHARED_LISTENER() -> listener. Sockets leave it when they are closed.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 3 * NA_SHARED_WORKLOADS);
  __type(key, __u32);
  __type(value, __u64);
} listeners SEC(".maps");

static __always_inline const struct na_shared_port *find_port(const struct na_address *local, __u32 port) {
  struct na_destination key = {.address = *local, .port = port};
  const struct na_shared_port *found = bpf_map_lookup_elem(&ports, &key);

  if (found)
    return found;
  key.address = (struct na_address){};
  return bpf_map_lookup_elem(&ports, &key);
}

SEC("sk_lookup")
int shared_lookup(struct bpf_sk_lookup *ctx) {
  const struct na_shared_port *port;
  struct na_address local, remote;

  if (ctx->protocol != IPPROTO_TCP)
    return SK_PASS;
  read_addresses(ctx, &local, &remote);
  port = find_port(&local, ctx->local_port);
  if (!port)
    return SK_PASS;
  if (port->flags & NA_SHARED_PORT_CLOSED)
    return refuse();
  if (port->listener < NA_SHARED_WORKLOADS) // outbound; only what connect() was sent there. 0: asked by fail_open.h
    return ctx->ingress_ifindex <= LOOPBACK_IFINDEX ? give_to(ctx, &listeners, port->listener) : refuse();
  if (is_within(&local, &remote) || is_probe(&remote))
    return SK_PASS;
  return steer_to(ctx, &listeners, port->listener, port->flags & NA_WORKLOAD_OPEN);
}
