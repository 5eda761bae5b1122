// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// DNS of enrolled workloads by datagrams: what goes to port 53 goes to the agent's port 15053 on the workload's own
// loopback, and the answer seems to come from the name server that was asked. (Connections to port 53 are captured as
// any, outbound.bpf.c.)
//
// The name server is kept in the client's socket. When the agent receives a datagram, a program of its own looks for
// that socket and tells in a map which name server it was. This is not done earlier, for a socket that is connected may
// have no port before it sends.
//
// This is configuration, not policy: where it cannot be done, and while the agent does not listen, the datagram goes
// where it was to go. A socket that is bound to a device is left alone, since loopback is another one.
//
// Kernel: >= 5.14 (netns cookies).
#include <linux/bpf.h>

#include "counters.h"
#include "sock_addr.h"
#include "workloads.h"

#define IPPROTO_UDP      17
#define LOOPBACK4        bpf_htonl(0x7f000001)
#define LOOPBACK_IFINDEX 1

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// The name server that a socket asked last.
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct na_destination);
} dns_servers SEC(".maps");

// Client whose datagram the agent has received -> name server. LRU: read at once, or not at all.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 4096);
  __type(key, struct na_flow);
  __type(value, struct na_destination);
} dns_flows SEC(".maps");

// Whether the agent listens in the socket's namespace. It binds the port as soon as it serves a workload, and the
// kernel lets nobody else have it then.
static __always_inline int has_listener(struct bpf_sock_addr *ctx, const struct na_address *to) {
  struct bpf_sock_tuple tuple = {};
  struct bpf_sock *sk;
  __u32 size = sizeof(tuple.ipv4);

  if (is_mapped(to)) {
    tuple.ipv4.daddr = LOOPBACK4;
    tuple.ipv4.dport = bpf_htons(NA_PORT_DNS);
  } else {
    size = sizeof(tuple.ipv6);
    tuple.ipv6.daddr[3] = bpf_htonl(1);
    tuple.ipv6.dport = bpf_htons(NA_PORT_DNS);
  }
  sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
  if (!sk)
    return 0;
  bpf_sk_release(sk);
  return 1;
}

// Whether a datagram to `to` goes to the agent; if so it is remembered where it was to go.
static __always_inline int decide(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct na_address *to) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);
  struct na_destination *kept;

  if (!workload || (workload->flags & (NA_WORKLOAD_DNS | NA_WORKLOAD_RELEASED)) != NA_WORKLOAD_DNS)
    return 0;
  if (ctx->user_port != bpf_htons(NA_DNS_SERVER_PORT) || sk->bound_dev_if > LOOPBACK_IFINDEX)
    return 0;
  if (bpf_get_current_ancestor_cgroup_id(workload->agent_level) == workload->agent_cgroup)
    return 0;
  // 169.254/16 is for name servers of nodes and clouds, too.
  if (is_loopback(to) || is_any(to) || is_of_link(to) || is_own(workload, to) || !has_listener(ctx, to))
    return 0;
  kept = bpf_sk_storage_get(&dns_servers, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!kept) {
    count(NA_COUNT_NO_STORAGE);
    return 0;
  }
  kept->address = *to;
  kept->port = NA_DNS_SERVER_PORT;
  return 1;
}

static __always_inline int lead4(struct bpf_sock_addr *ctx, int connects) {
  struct bpf_sock *sk = ctx->sk;
  struct na_address to;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  set_mapped(&to, ctx->user_ip4);
  if (decide(ctx, sk, &to)) {
    ctx->user_ip4 = LOOPBACK4;
    ctx->user_port = bpf_htons(NA_PORT_DNS);
  } else if (connects) {
    bpf_sk_storage_delete(&dns_servers, sk); // of an earlier connect() on the same socket
  }
  return 1;
}

static __always_inline int lead6(struct bpf_sock_addr *ctx, int connects) {
  struct na_address to = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  struct bpf_sock *sk = ctx->sk;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  if (!decide(ctx, sk, &to)) {
    if (connects)
      bpf_sk_storage_delete(&dns_servers, sk);
    return 1;
  }
  if (is_mapped(&to)) {
    ctx->user_ip6[3] = LOOPBACK4;
  } else {
    ctx->user_ip6[0] = 0;
    ctx->user_ip6[1] = 0;
    ctx->user_ip6[2] = 0;
    ctx->user_ip6[3] = bpf_htonl(1);
  }
  ctx->user_port = bpf_htons(NA_PORT_DNS);
  return 1;
}

SEC("cgroup/connect4")
int dns_connect4(struct bpf_sock_addr *ctx) {
  return lead4(ctx, 1);
}

SEC("cgroup/connect6")
int dns_connect6(struct bpf_sock_addr *ctx) {
  return lead6(ctx, 1);
}

SEC("cgroup/sendmsg4")
int dns_sendmsg4(struct bpf_sock_addr *ctx) {
  return lead4(ctx, 0);
}

SEC("cgroup/sendmsg6")
int dns_sendmsg6(struct bpf_sock_addr *ctx) {
  return lead6(ctx, 0);
}

// The name server in place of the agent: where a datagram comes from, or whom a socket is connected to.
static __always_inline int disguise4(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_destination *kept;

  if (!sk || ctx->user_port != bpf_htons(NA_PORT_DNS) || ctx->user_ip4 != LOOPBACK4)
    return 1;
  kept = bpf_sk_storage_get(&dns_servers, sk, 0, 0);
  if (kept && is_mapped(&kept->address)) {
    write_user4(ctx, kept);
  }
  return 1;
}

static __always_inline int disguise6(struct bpf_sock_addr *ctx) {
  struct na_address from = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  struct bpf_sock *sk = ctx->sk;
  struct na_destination *kept;

  if (!sk || ctx->user_port != bpf_htons(NA_PORT_DNS) || !is_loopback(&from))
    return 1;
  kept = bpf_sk_storage_get(&dns_servers, sk, 0, 0);
  if (kept) {
    write_user6(ctx, kept);
  }
  return 1;
}

SEC("cgroup/recvmsg4")
int dns_recvmsg4(struct bpf_sock_addr *ctx) {
  return disguise4(ctx);
}

SEC("cgroup/recvmsg6")
int dns_recvmsg6(struct bpf_sock_addr *ctx) {
  return disguise6(ctx);
}

SEC("cgroup/getpeername4")
int dns_getpeername4(struct bpf_sock_addr *ctx) {
  return disguise4(ctx);
}

SEC("cgroup/getpeername6")
int dns_getpeername6(struct bpf_sock_addr *ctx) {
  return disguise6(ctx);
}

// Tell the agent which name server a client's socket asked. The reference to the socket is given back.
static __always_inline void tell(struct bpf_sock_addr *ctx, struct bpf_sock *client, struct na_flow *flow) {
  struct na_destination *kept = bpf_sk_storage_get(&dns_servers, client, 0, 0), value;

  if (kept) {
    value = *kept;
    flow->netns_cookie = bpf_get_netns_cookie(ctx);
    flow->source_port = bpf_ntohs((__u16)ctx->user_port);
    if (bpf_map_update_elem(&dns_flows, flow, &value, BPF_ANY))
      count(NA_COUNT_NO_FLOW);
  }
  bpf_sk_release(client);
}

// Both are attached to the agent's cgroup only; its sockets of that port are bound to loopback.
SEC("cgroup/recvmsg4")
int agent_dns_recvmsg4(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk, *client;
  struct bpf_sock_tuple tuple = {};
  struct na_flow flow = {};

  if (!sk || sk->src_port != NA_PORT_DNS)
    return 1;
  tuple.ipv4.saddr = LOOPBACK4;
  tuple.ipv4.sport = bpf_htons(NA_PORT_DNS);
  tuple.ipv4.daddr = ctx->user_ip4;
  tuple.ipv4.dport = (__u16)ctx->user_port;
  client = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
  if (!client)
    return 1;
  set_mapped(&flow.source, ctx->user_ip4);
  tell(ctx, client, &flow);
  return 1;
}

SEC("cgroup/recvmsg6")
int agent_dns_recvmsg6(struct bpf_sock_addr *ctx) {
  struct na_address from = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  struct bpf_sock *sk = ctx->sk, *client;
  struct bpf_sock_tuple tuple = {};
  struct na_flow flow = {};

  if (!sk || sk->src_port != NA_PORT_DNS)
    return 1;
  tuple.ipv6.saddr[3] = bpf_htonl(1);
  tuple.ipv6.sport = bpf_htons(NA_PORT_DNS);
  __builtin_memcpy(tuple.ipv6.daddr, &from, sizeof(from));
  tuple.ipv6.dport = (__u16)ctx->user_port;
  client = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
  if (!client)
    return 1;
  flow.source = from;
  tell(ctx, client, &flow);
  return 1;
}
