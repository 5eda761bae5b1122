// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Outbound capture: connect() of an enrolled workload goes to the agent's listener on the workload's own loopback. The
// destination that was asked for is kept in the socket, shown to the application by getpeername(), and told to the
// agent by getsockopt(SO_ORIGINAL_DST), as conntrack would tell it of a redirected connection.
//
// The programs are attached to the root of the cgroup hierarchy, so that no process can leave them; workloads are known
// by the cookie of their network namespace, those that share one by their cgroup (groups.h), and the agent by its
// cgroup: a process can choose neither.
//
// A connection to a workload of this node that needs no engine goes there at once (bypass.h), and is followed to its
// end (follow.h).
//
// Here is also the part of inbound capture that concerns the agent's connections to applications, which it makes in the
// name of their clients (stand_in.h).
//
// Kernel: >= 5.17 (netns cookies here since 5.14; inbound.bpf.c needs more).
#include <linux/bpf.h>

#include "address.h"
#include "bypass.h"
#include "counters.h"
#include "fail_open.h"
#include "follow.h"
#include "groups.h"
#include "stand_in.h"
#include "workloads.h"

#define SOL_IP           0
#define SOL_IPV6         41
#define SO_MARK          36
#define SO_ORIGINAL_DST  80 /* linux/netfilter_ipv4.h; the same number for IPv6 */
#define LOOPBACK_IFINDEX 1

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// The destination that the application asked for; lives and dies with the socket.
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct na_original);
} original SEC(".maps");

// Client side of a captured connection -> destination; from the SYN until the agent has asked. LRU: an entry lost under
// pressure makes the agent refuse that connection, never pass it.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct na_flow);
  __type(value, struct na_destination);
} destinations SEC(".maps");

enum verdict { REFUSE = -1, LEAVE = 0, CAPTURE = 1, REDIRECT = 2 };

// Which of the agent's ports a captured connect() goes to.
static __always_inline __u16 listener_port(const struct bpf_sock_addr *ctx, const struct na_workload_entry *workload) {
  if (workload->flags & NA_WORKLOAD_DNS && ctx->user_port == bpf_htons(NA_DNS_SERVER_PORT))
    return NA_PORT_DNS;
  return NA_PORT_OUTBOUND;
}

// How a captured connect() gets to the agent.
struct way {
  const struct na_address *source4; // of struct na_workload_entry or struct na_group
  const struct na_address *source6;
  __u32 flags;
  __u16 port;
};

// The way of the current task; 0: it is no workload's, in a namespace that several share.
static __always_inline int find_way(struct bpf_sock_addr *ctx, const struct na_workload_entry *workload,
                                    struct way *out) {
  const struct na_group *group;

  if (!(workload->flags & NA_WORKLOAD_SHARED)) {
    *out = (struct way){&workload->source4, &workload->source6, workload->flags, listener_port(ctx, workload)};
    return 1;
  }
  group = find_group(workload, bpf_get_netns_cookie(ctx));
  if (!group)
    return 0;
  *out = (struct way){&group->source4, &group->source6, group->flags, outbound_port(group)};
  return 1;
}

// A socket that is bound to a device would not reach the agent. Where a namespace is a workload's own, routing leads it
// there instead, and the binding stays.
static __always_inline int unbind_from_device(struct bpf_sock_addr *ctx) {
  char lo[] = "lo";

  if (!ctx->sk->bound_dev_if)
    return 0;
  return bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, lo, sizeof(lo));
}

static __always_inline int stays_here(const struct na_workload_entry *workload, const struct na_address *to) {
  return is_loopback(to) || is_any(to) || is_own(workload, to);
}

// A connection that is not left alone: past the engine, or to the agent's listener on the loopback address of the
// family.
static __always_inline enum verdict redirect(struct bpf_sock_addr *ctx, const struct na_address *from,
                                             const struct na_workload_entry *workload, const struct way *way,
                                             struct na_original *kept, struct na_destination *to) {
  const struct na_address loopback = {{0, 0, 0, bpf_htonl(1)}};
  enum bypass bypass = BYPASS_ENGINE;

  if (way->port == NA_PORT_OUTBOUND)
    bypass = try_bypass(ctx, from, workload, kept, to);
  if (bypass == BYPASS_ALLOWED)
    return REDIRECT;
  if (bypass == BYPASS_DENIED)
    return REFUSE;
  if (is_mapped(&to->address))
    set_mapped(&to->address, bpf_htonl(0x7f000001));
  else
    to->address = loopback;
  to->port = way->port;
  count(NA_COUNT_CAPTURED);
  return CAPTURE;
}

// Decide on a connect() from a socket's own address. After CAPTURE and REDIRECT `to` is where it goes, and the socket
// remembers what was asked for.
static __always_inline enum verdict decide(struct bpf_sock_addr *ctx, const struct na_address *from,
                                           struct na_destination *to, const struct na_workload_entry *workload,
                                           struct way *way) {
  struct bpf_sock *sk = ctx->sk;
  struct na_original *kept;

  if (ctx->protocol != IPPROTO_TCP)
    return LEAVE;
  if (bpf_get_current_ancestor_cgroup_id(workload->agent_level) == workload->agent_cgroup)
    return LEAVE;
  if (stays_here(workload, &to->address) || !find_way(ctx, workload, way) || way->flags & NA_WORKLOAD_RELEASED ||
      passes_without_agent(ctx, way->flags, way->port)) {
    bpf_sk_storage_delete(&original, sk); // of an earlier connect() on the same socket
    return LEAVE;
  }
  if (workload->flags & NA_WORKLOAD_SHARED && unbind_from_device(ctx))
    return REFUSE;
  kept = bpf_sk_storage_get(&original, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!kept) {
    count(NA_COUNT_NO_STORAGE);
    return REFUSE;
  }
  kept->asked.address = to->address;
  kept->asked.port = to->port;
  kept->asked.drawn = NA_DRAWN_NONE;
  kept->life = 0;
  return redirect(ctx, from, workload, way, kept, to);
}

// Give a socket without source the workload's address, so that getsockname() tells what it would without capture. It
// may fail, for an address that is gone: the kernel then takes the loopback address.
static __always_inline void choose_source4(struct bpf_sock_addr *ctx, const struct na_address *from,
                                           const struct na_address *address) {
  struct sockaddr_in {
    __u16 family, port;
    __u32 address;
    __u64 zero;
  } source = {AF_INET, 0, address->word[3], 0};

  if (source.address && is_any(from) && !ctx->sk->src_port)
    bpf_bind(ctx, (void *)&source, sizeof(source));
}

static __always_inline void choose_source6(struct bpf_sock_addr *ctx, const struct na_address *from,
                                           const struct na_address *address) {
  struct sockaddr_in6 {
    __u16 family, port;
    __u32 flow;
    struct na_address address;
    __u32 scope;
  } source = {AF_INET6, 0, 0, *address, 0};

  if (!is_zero(address) && is_any(from) && !ctx->sk->src_port)
    bpf_bind(ctx, (void *)&source, sizeof(source));
}

SEC("cgroup/connect4")
int outbound_connect4(struct bpf_sock_addr *ctx) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);
  struct na_destination to = {.port = bpf_ntohs((__u16)ctx->user_port)};
  struct bpf_sock *sk = ctx->sk;
  struct na_address from;
  enum verdict verdict;
  struct way way;

  if (!workload || !sk)
    return 1;
  set_mapped(&from, sk->src_ip4);
  set_mapped(&to.address, ctx->user_ip4);
  verdict = decide(ctx, &from, &to, workload, &way);
  if (verdict == CAPTURE)
    choose_source4(ctx, &from, way.source4);
  else if (verdict != REDIRECT)
    return verdict == LEAVE;
  ctx->user_ip4 = to.address.word[3];
  ctx->user_port = bpf_htons(to.port);
  return 1;
}

static __always_inline void write_ip6(struct bpf_sock_addr *ctx, const struct na_address *address, __u16 port) {
  ctx->user_ip6[0] = address->word[0];
  ctx->user_ip6[1] = address->word[1];
  ctx->user_ip6[2] = address->word[2];
  ctx->user_ip6[3] = address->word[3];
  ctx->user_port = bpf_htons(port);
}

SEC("cgroup/connect6")
int outbound_connect6(struct bpf_sock_addr *ctx) {
  struct na_destination to = {.address = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}},
                              .port = bpf_ntohs((__u16)ctx->user_port)};
  __u64 cookie = bpf_get_netns_cookie(ctx);
  struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);
  struct bpf_sock *sk = ctx->sk;
  struct na_address from;
  enum verdict verdict;
  struct way way;

  if (!workload || !sk)
    return 1;
  from = (struct na_address){{sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]}};
  verdict = decide(ctx, &from, &to, workload, &way);
  if (verdict == CAPTURE)
    choose_source6(ctx, &from, is_mapped(&to.address) ? way.source4 : way.source6);
  else if (verdict != REDIRECT)
    return verdict == LEAVE;
  write_ip6(ctx, &to.address, to.port);
  return 1;
}

SEC("cgroup/getpeername4")
int outbound_getpeername4(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_original *kept = sk ? bpf_sk_storage_get(&original, sk, 0, 0) : 0;

  struct na_address peer;

  set_mapped(&peer, ctx->user_ip4);
  if (kept && is_mapped(&kept->asked.address)) {
    ctx->user_ip4 = kept->asked.address.word[3];
    ctx->user_port = bpf_htons(kept->asked.port);
  } else if (!kept && is_unknown_client(ctx, &peer)) {
    ctx->user_ip4 = 0;
    ctx->user_port = 0;
  }
  return 1;
}

SEC("cgroup/getpeername6")
int outbound_getpeername6(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_original *kept = sk ? bpf_sk_storage_get(&original, sk, 0, 0) : 0;

  struct na_address peer = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}, none = {};

  if (kept)
    write_ip6(ctx, &kept->asked.address, kept->asked.port);
  else if (is_unknown_client(ctx, &peer))
    write_ip6(ctx, &none, 0);
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

// Before the SYN leaves: with TCP Fast Open the other side may be accepted before this side is established.
static __always_inline void publish_destination(struct bpf_sock_ops *ops, const struct na_original *kept) {
  struct na_destination value = kept->asked;
  struct na_flow flow = {};

  flow.netns_cookie = bpf_get_netns_cookie(ops);
  read_local(ops, &flow.source);
  flow.source_port = (__u16)ops->local_port;
  if (bpf_map_update_elem(&destinations, &flow, &value, BPF_ANY))
    count(NA_COUNT_NO_FLOW);
}

static __always_inline void begin(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  struct na_original *kept = bpf_sk_storage_get(&original, sk, 0, 0);
  __u64 cookie = bpf_get_netns_cookie(ops);
  struct na_workload_entry *workload;

  if (!kept) {
    announce_client(ops, sk);
    return;
  }
  if (!kept->life) {
    publish_destination(ops, kept);
    return;
  }
  workload = bpf_map_lookup_elem(&workloads, &cookie);
  if (workload)
    begin_flow(ops, kept, workload);
}

static __always_inline void follow(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  struct na_original *kept = bpf_sk_storage_get(&original, sk, 0, 0);

  if (!kept)
    retract_client(ops, sk);
  else if (kept->life)
    follow_flow(ops, sk, kept);
}

SEC("sockops")
int outbound_sockops(struct bpf_sock_ops *ops) {
  struct bpf_sock *sk = ops->sk;

  if (!sk)
    return 1;
  if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
    begin(ops, sk);
  else if (ops->op == BPF_SOCK_OPS_STATE_CB)
    follow(ops, sk);
  else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    take_client(ops, sk, &original);
  return 1;
}

// The client's side of an accepted connection.
static __always_inline void read_peer(const struct bpf_sock *sk, struct na_address *out) {
  if (sk->family == AF_INET) {
    set_mapped(out, sk->dst_ip4);
    KEEP_BRANCH();
    return;
  }
  out->word[0] = sk->dst_ip6[0];
  out->word[1] = sk->dst_ip6[1];
  out->word[2] = sk->dst_ip6[2];
  out->word[3] = sk->dst_ip6[3];
}

static __always_inline void read_here(const struct bpf_sock *sk, struct na_destination *out) {
  if (sk->family == AF_INET) {
    set_mapped(&out->address, sk->src_ip4);
    KEEP_BRANCH();
  } else {
    out->address.word[0] = sk->src_ip6[0];
    out->address.word[1] = sk->src_ip6[1];
    out->address.word[2] = sk->src_ip6[2];
    out->address.word[3] = sk->src_ip6[3];
  }
  out->port = (__u16)sk->src_port;
}

static __always_inline int is_redirected(__u32 port) {
  return port == NA_PORT_OUTBOUND || port == NA_PORT_DNS || is_shared_outbound(port);
}

// Where an accepted connection was going. A steered one has its destination for its own address; a redirected one is
// looked up, and forgotten with that. 0 or -1: nobody captured it.
static __always_inline int find_destination(struct bpf_sockopt *ctx, const struct bpf_sock *sk,
                                            struct na_destination *out) {
  struct na_destination *kept;
  struct na_flow flow = {};

  read_here(sk, out);
  // 0: the client has reset the connection, and the socket has no port any more. Its destination must not stay either.
  if (out->port && !is_redirected(out->port))
    return out->port == NA_PORT_INBOUND ? -1 : 0;
  flow.netns_cookie = bpf_get_netns_cookie(ctx);
  read_peer(sk, &flow.source);
  flow.source_port = bpf_ntohs(sk->dst_port);
  kept = bpf_map_lookup_elem(&destinations, &flow);
  if (!kept) // an application's own port may be in that range
    return is_shared_outbound(out->port) ? 0 : -1;
  *out = *kept;
  bpf_map_delete_elem(&destinations, &flow);
  return 0;
}

// After the address, where conntrack's answer ends: whose endpoint connect() drew. Returns the size of the answer.
static __always_inline int write_drawn(struct bpf_sockopt *ctx, int at, __u32 drawn) {
  __u32 *out = ctx->optval + at;

  if (drawn == NA_DRAWN_NONE || (void *)(out + 1) > ctx->optval_end)
    return at;
  *out = drawn;
  return at + (int)sizeof(*out);
}

static __always_inline int write_sockaddr4(struct bpf_sockopt *ctx, const struct na_destination *to) {
  struct sockaddr {
    __u16 family, port;
    __u32 address;
    __u64 zero;
  } *out = ctx->optval;

  if ((void *)(out + 1) > ctx->optval_end)
    return 0;
  *out = (struct sockaddr){AF_INET, bpf_htons(to->port), to->address.word[3], 0};
  return write_drawn(ctx, sizeof(*out), to->drawn);
}

static __always_inline int write_sockaddr6(struct bpf_sockopt *ctx, const struct na_destination *to) {
  struct sockaddr {
    __u16 family, port;
    __u32 flow;
    struct na_address address;
    __u32 scope;
  } *out = ctx->optval;

  if ((void *)(out + 1) > ctx->optval_end)
    return 0;
  *out = (struct sockaddr){AF_INET6, bpf_htons(to->port), 0, to->address, 0};
  return write_drawn(ctx, sizeof(*out), to->drawn);
}

// Attached to the agent's cgroup only. Where it has no answer, the kernel's stays: conntrack's, or an error.
SEC("cgroup/getsockopt")
int agent_getsockopt(struct bpf_sockopt *ctx) {
  struct bpf_sock *sk = ctx->sk;
  struct na_destination to = {};
  int size = 0;

  if (ctx->optname != SO_ORIGINAL_DST || (ctx->level != SOL_IP && ctx->level != SOL_IPV6) || !sk)
    return 1;
  if (find_destination(ctx, sk, &to))
    return 1;
  if (ctx->level == SOL_IP && is_mapped(&to.address))
    size = write_sockaddr4(ctx, &to);
  else if (ctx->level == SOL_IPV6 && !is_mapped(&to.address))
    size = write_sockaddr6(ctx, &to);
  if (!size)
    return 1;
  asm volatile("" : "+r"(ctx));
  ctx->optlen = size;
  asm volatile("" : "+r"(ctx));
  ctx->retval = 0;
  return 1;
}

// Bindings of the agent's to clients' addresses. Attached to its cgroup only, as what follows.
SEC("cgroup/bind4")
int agent_bind4(struct bpf_sock_addr *ctx) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  const struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);
  struct na_address address;

  if (!workload || workload->flags & NA_WORKLOAD_SHARED)
    return 1;
  set_mapped(&address, ctx->user_ip4);
  if (!bind_for_client(ctx, &address, workload))
    return 0;
  ctx->user_ip4 = address.word[3];
  return 1;
}

SEC("cgroup/bind6")
int agent_bind6(struct bpf_sock_addr *ctx) {
  struct na_address address = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  __u64 cookie = bpf_get_netns_cookie(ctx);
  const struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);

  if (!workload || workload->flags & NA_WORKLOAD_SHARED)
    return 1;
  if (!bind_for_client(ctx, &address, workload))
    return 0;
  write_ip6(ctx, &address, bpf_ntohs((__u16)ctx->user_port));
  return 1;
}

// The agent finds what it has bound to.
SEC("cgroup/getsockname4")
int agent_getsockname4(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  const struct na_destination *client = sk ? bpf_sk_storage_get(&clients, sk, 0, 0) : 0;

  if (client)
    ctx->user_ip4 = client->address.word[3];
  return 1;
}

SEC("cgroup/getsockname6")
int agent_getsockname6(struct bpf_sock_addr *ctx) {
  struct bpf_sock *sk = ctx->sk;
  const struct na_destination *client = sk ? bpf_sk_storage_get(&clients, sk, 0, 0) : 0;

  if (client)
    write_ip6(ctx, &client->address, bpf_ntohs((__u16)ctx->user_port));
  return 1;
}
