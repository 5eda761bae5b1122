// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Outbound capture: connect() of an enrolled workload goes to the agent's listener on the workload's own loopback; the
// destination that was asked for is kept in the socket, shown to the application by getpeername(), and handed to the
// agent through `destinations` when the connection is established, which is before accept() can return.
// Kernel: >= 5.15 (netns cookie in sock_addr and sock_ops programs).
#include <linux/bpf.h>

#include "address.h"

#define AF_INET         2
#define IPPROTO_TCP     6
#define SOL_SOCKET      1
#define SO_BINDTODEVICE 25

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Network namespace cookie -> enrolled workload. Written by the agent at enrolment.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __type(key, __u64);
  __type(value, struct na_workload_entry);
} workloads SEC(".maps");

// The destination that the application asked for; lives and dies with the socket.
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct na_destination);
} original SEC(".maps");

// Client side of an established captured connection -> destination. LRU: an entry lost under pressure makes the agent
// refuse that connection, never pass it.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct na_flow);
  __type(value, struct na_destination);
} destinations SEC(".maps");

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

// Decide on a connect() and remember its destination. Returns 1 to redirect, 0 to leave it alone, -1 to refuse.
static __always_inline int capture(struct bpf_sock_addr *ctx, const struct na_address *to) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  struct na_destination *kept;
  struct bpf_sock *sk = ctx->sk;

  if (ctx->protocol != IPPROTO_TCP || !sk || is_loopback(to) || !bpf_map_lookup_elem(&workloads, &cookie))
    return 0;
  kept = bpf_sk_storage_get(&original, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!kept) {
    count(NA_COUNT_NO_STORAGE);
    return -1;
  }
  kept->address = *to;
  kept->port = bpf_ntohs((__u16)ctx->user_port);
  if (sk->bound_dev_if) {
    char lo[] = "lo"; // a socket bound to another device would not find the loopback listener
    if (bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, lo, sizeof(lo)))
      return -1;
  }
  count(NA_COUNT_CAPTURED);
  return 1;
}

SEC("cgroup/connect4")
int outbound_connect4(struct bpf_sock_addr *ctx) {
  struct na_address to;
  int verdict;

  set_mapped(&to, ctx->user_ip4);
  verdict = capture(ctx, &to);
  if (verdict <= 0)
    return verdict == 0;
  ctx->user_ip4 = bpf_htonl(0x7f000001);
  ctx->user_port = bpf_htons(NA_PORT_OUTBOUND);
  return 1;
}

SEC("cgroup/connect6")
int outbound_connect6(struct bpf_sock_addr *ctx) {
  struct na_address to = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  int verdict = capture(ctx, &to);

  if (verdict <= 0)
    return verdict == 0;
  if (is_mapped(&to)) {
    ctx->user_ip6[3] = bpf_htonl(0x7f000001);
  } else {
    ctx->user_ip6[0] = 0;
    ctx->user_ip6[1] = 0;
    ctx->user_ip6[2] = 0;
    ctx->user_ip6[3] = bpf_htonl(1);
  }
  ctx->user_port = bpf_htons(NA_PORT_OUTBOUND);
  return 1;
}

SEC("cgroup/getpeername4")
int outbound_getpeername4(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_destination *kept = sk ? bpf_sk_storage_get(&original, sk, 0, 0) : 0;

  if (kept && is_mapped(&kept->address)) {
    ctx->user_ip4 = kept->address.word[3];
    ctx->user_port = bpf_htons(kept->port);
  }
  return 1;
}

SEC("cgroup/getpeername6")
int outbound_getpeername6(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_destination *kept = sk ? bpf_sk_storage_get(&original, sk, 0, 0) : 0;

  if (kept) {
    ctx->user_ip6[0] = kept->address.word[0];
    ctx->user_ip6[1] = kept->address.word[1];
    ctx->user_ip6[2] = kept->address.word[2];
    ctx->user_ip6[3] = kept->address.word[3];
    ctx->user_port = bpf_htons(kept->port);
  }
  return 1;
}

// The client's own address of a captured connection, as the listener will see it. A v4-mapped socket is AF_INET6 with a
// mapped address in the context; an AF_INET one is mapped here.
static __always_inline void read_local(struct bpf_sock_ops *ops, struct na_address *out) {
  if (ops->family == AF_INET) {
    set_mapped(out, ops->local_ip4);
    KEEP_BRANCH();
    return;
  }
  out->word[0] = ops->local_ip6[0];
  out->word[1] = ops->local_ip6[1];
  out->word[2] = ops->local_ip6[2];
  out->word[3] = ops->local_ip6[3];
}

SEC("sockops")
int outbound_established(struct bpf_sock_ops *ops) {
  struct na_destination *kept, value;
  struct na_flow flow = {};
  struct bpf_sock *sk;

  if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
    return 1;
  sk = ops->sk;
  if (!sk)
    return 1;
  kept = bpf_sk_storage_get(&original, sk, 0, 0);
  if (!kept)
    return 1;
  value = *kept;
  flow.netns_cookie = bpf_get_netns_cookie(ops);
  read_local(ops, &flow.source);
  flow.source_port = (__u16)ops->local_port;
  if (bpf_map_update_elem(&destinations, &flow, &value, BPF_ANY))
    count(NA_COUNT_NO_FLOW);
  return 1;
}
