// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// UDP of enrolled workloads: an address of a service means one of its endpoints, on whichever node, and who may send to
// whom is asked at connect() and at each datagram of a socket that is not connected. There is no engine behind this, so
// that what is not known is refused; the node of the sender vouches for who it is. While the agent is away what it said
// last holds.
//
// What arrives of workloads of this node is judged again, since raw and packet sockets get past sendmsg(). What arrives
// of outsiders, whom no node vouches for, is dropped at ports that services lead to where policy would not let them in.
//
// Answers pass, in either direction: policy says who may ask. Listener lookup sees those to sockets that are not
// connected, too.
//
// A socket keeps the endpoint that it was given for an address, and sees replies come from that address. Both are kept
// for a while only: a socket that was silent for long, among many, may be given another endpoint.
//
// Kernel: >= 5.17 (ingress_ifindex in sk_lookup).
#include <linux/bpf.h>

#include "arrival.h"
#include "datagram_abi.h"
#include "sock_addr.h"
#include "workloads.h"

#define IPPROTO_UDP 17

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct na_sender);
} udp_senders SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_service_key);
  __type(value, struct na_service);
} udp_services SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 262144);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_backend_key);
  __type(value, struct na_backend);
} udp_backends SEC(".maps");

// Address of a workload, of any node -> class, where something is asked of who sends to it.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 131072);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_address);
  __type(value, struct na_class);
} udp_classes SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_access_key);
  __type(value, struct na_access_entry);
} udp_access SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_outsider_key);
  __type(value, struct na_access_entry);
} udp_outsiders SEC(".maps");

// Addresses of workloads whose nodes judge what they send.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 262144);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_address);
  __type(value, __u8);
} udp_members SEC(".maps");

// Addresses of this node's workloads.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_address);
  __type(value, struct na_sender);
} udp_locals SEC(".maps");

// From whom a workload may expect an answer, since it has asked there: it is the source. When it last did.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct na_bypass_key);
  __type(value, __u64);
} udp_awaited SEC(".maps");

// Whom a workload may answer, since it was asked from there: it is the source. When it last was.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct na_bypass_key);
  __type(value, __u64);
} udp_owed SEC(".maps");

// Socket and the address that it asked for -> endpoint.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct na_peer_key);
  __type(value, struct na_destination);
} udp_endpoints SEC(".maps");

// Socket and endpoint -> the address that it asked for.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct na_peer_key);
  __type(value, struct na_destination);
} udp_asked SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, NA_UDP_COUNTERS);
  __type(key, __u32);
  __type(value, __u64);
} udp_counters SEC(".maps");

// Number of a denying policy's name -> how often. 0: no ALLOW rule matched.
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 4096);
  __type(key, __u32);
  __type(value, __u64);
} udp_denials SEC(".maps");

enum { REFUSE = -1, LEAVE = 0, TRANSLATE = 1 };

static __always_inline void count(__u32 which) {
  __u64 *value = bpf_map_lookup_elem(&udp_counters, &which);
  if (value)
    *value += 1;
}

static __always_inline int refuse(__u32 which) {
  count(which);
  return REFUSE;
}

static __always_inline void count_denial(__u32 policy) {
  __u64 *value = bpf_map_lookup_elem(&udp_denials, &policy), one = 1;
  if (value)
    __sync_fetch_and_add(value, 1);
  else
    bpf_map_update_elem(&udp_denials, &policy, &one, BPF_NOEXIST);
}

static __always_inline const struct na_access_entry *access_of(__u32 source, __u32 class, __u16 port) {
  struct na_access_key key = {source, class, port, IPPROTO_UDP, 0};
  const struct na_access_entry *found = bpf_map_lookup_elem(&udp_access, &key);

  if (found)
    return found;
  key.port = 0;
  return bpf_map_lookup_elem(&udp_access, &key);
}

// Whether it was noted of these ends that somebody asks, and not long ago.
static __always_inline int is_noted(void *map, const struct na_bypass_key *ends) {
  const __u64 *noted = bpf_map_lookup_elem(map, ends);

  return noted && bpf_ktime_get_ns() - *noted < NA_UDP_ANSWER_NS;
}

static __always_inline void note(void *map, const struct na_bypass_key *ends) {
  __u64 now = bpf_ktime_get_ns(), *noted = bpf_map_lookup_elem(map, ends);

  if (noted)
    *noted = now;
  else
    bpf_map_update_elem(map, ends, &now, BPF_ANY);
}

// Those of a datagram that a workload sends, from an address that its socket has or else will have.
static __always_inline void read_sent(struct bpf_sock_addr *ctx, const struct na_workload_entry *workload,
                                      const struct na_destination *to, struct na_bypass_key *ends) {
  const struct bpf_sock *sk = ctx->sk;

  if (sk->family == AF_INET) {
    set_mapped(&ends->source, sk->src_ip4);
    KEEP_BRANCH();
  } else {
    ends->source = (struct na_address){{sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]}};
  }
  if (is_any(&ends->source))
    ends->source = is_mapped(&to->address) ? workload->source4 : workload->source6;
  ends->destination = to->address;
  ends->source_port = (__u16)sk->src_port;
  ends->destination_port = to->port;
  ends->reserved = 0;
}

// LEAVE: it may be sent.
static __always_inline int judge(__u64 cookie, const struct na_bypass_key *ends) {
  const struct na_class *class = bpf_map_lookup_elem(&udp_classes, &ends->destination);
  const struct na_access_entry *access;
  const struct na_sender *sender;

  if (!class)
    return LEAVE;
  sender = bpf_map_lookup_elem(&udp_senders, &cookie);
  access = sender ? access_of(sender->workload, class->id, ends->destination_port) : 0;
  if ((access && access->access == NA_ACCESS_ALLOW) || is_noted(&udp_owed, ends))
    return LEAVE;
  if (!access || access->access == NA_ACCESS_ENGINE)
    return refuse(NA_UDP_UNKNOWN);
  count_denial(access->policy);
  return refuse(NA_UDP_DENIED);
}

// Whether it depends on policy who asks whom.
static __always_inline int is_judged(const struct na_bypass_key *ends) {
  return bpf_map_lookup_elem(&udp_classes, &ends->source) || bpf_map_lookup_elem(&udp_classes, &ends->destination);
}

// Have the answer known as one, if this is none. A connected socket, which may have no port yet, gets nothing else.
static __always_inline void await_answer(const struct na_bypass_key *ends) {
  if (ends->source_port && is_judged(ends) && !is_noted(&udp_owed, ends))
    note(&udp_awaited, ends);
}

// The endpoint of a service for this socket: the one that it has already, else any. 0: there is none. The agent takes
// endpoints that are no more out of udp_endpoints.
static __always_inline int choose_endpoint(struct bpf_sock_addr *ctx, const struct na_service *service,
                                           const struct na_destination *asked, struct na_destination *to) {
  struct na_peer_key key = {bpf_get_socket_cookie(ctx), asked->address, asked->port, {0}};
  struct na_destination *kept = bpf_map_lookup_elem(&udp_endpoints, &key);
  struct na_backend_key slot = {service->id, 0};
  const struct na_backend *backend;

  if (kept) {
    *to = *kept;
    return 1;
  }
  if (!service->slots)
    return 0;
  slot.slot = bpf_get_prandom_u32() % service->slots;
  backend = bpf_map_lookup_elem(&udp_backends, &slot);
  if (!backend)
    return 0;
  to->address = backend->address;
  to->port = backend->port;
  bpf_map_update_elem(&udp_endpoints, &key, to, BPF_ANY);
  key.address = to->address;
  key.port = to->port;
  bpf_map_update_elem(&udp_asked, &key, asked, BPF_ANY);
  return 1;
}

// What becomes of a datagram, or a connect(), of an enrolled workload: `to` is where it goes instead of `asked`.
static __always_inline int decide(struct bpf_sock_addr *ctx, const struct na_destination *asked,
                                  struct na_destination *to) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  struct na_workload_entry *workload = bpf_map_lookup_elem(&workloads, &cookie);
  struct na_service_key key = {asked->address, 0, asked->port, IPPROTO_UDP, 0};
  const struct na_service *service;
  struct na_bypass_key ends;

  if (!workload || workload->flags & (NA_WORKLOAD_RELEASED | NA_WORKLOAD_SHARED))
    return LEAVE;
  if (workload->flags & NA_WORKLOAD_DNS && asked->port == NA_DNS_SERVER_PORT)
    return LEAVE;
  if (is_loopback(&asked->address) || is_any(&asked->address) || is_of_link(&asked->address) ||
      is_link_local4(&asked->address) || is_own(workload, &asked->address))
    return LEAVE;
  if (bpf_get_current_ancestor_cgroup_id(workload->agent_level) == workload->agent_cgroup)
    return LEAVE;
  *to = *asked;
  service = bpf_map_lookup_elem(&udp_services, &key);
  if (service && !choose_endpoint(ctx, service, asked, to))
    return refuse(NA_UDP_NO_ENDPOINT);
  read_sent(ctx, workload, to, &ends);
  if (!is_own(workload, &to->address) && judge(cookie, &ends) == REFUSE)
    return REFUSE;
  count(NA_UDP_ALLOWED);
  await_answer(&ends);
  return service ? TRANSLATE : LEAVE;
}

static __always_inline int send4(struct bpf_sock_addr *ctx) {
  struct na_destination asked = {}, to = {};
  struct bpf_sock *sk = ctx->sk;
  int verdict;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  read_user4(ctx, &asked);
  verdict = decide(ctx, &asked, &to);
  if (verdict == TRANSLATE) {
    if (!is_mapped(&to.address)) // a service's addresses of IPv4 have endpoints of IPv4
      return 0;
    write_user4(ctx, &to);
  }
  return verdict != REFUSE;
}

static __always_inline int send6(struct bpf_sock_addr *ctx) {
  struct na_destination asked = {}, to = {};
  struct bpf_sock *sk = ctx->sk;
  int verdict;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  read_user6(ctx, &asked);
  verdict = decide(ctx, &asked, &to);
  if (verdict == TRANSLATE) {
    write_user6(ctx, &to);
  }
  return verdict != REFUSE;
}

SEC("cgroup/connect4")
int datagram_connect4(struct bpf_sock_addr *ctx) {
  return send4(ctx);
}

SEC("cgroup/connect6")
int datagram_connect6(struct bpf_sock_addr *ctx) {
  return send6(ctx);
}

SEC("cgroup/sendmsg4")
int datagram_sendmsg4(struct bpf_sock_addr *ctx) {
  return send4(ctx);
}

SEC("cgroup/sendmsg6")
int datagram_sendmsg6(struct bpf_sock_addr *ctx) {
  return send6(ctx);
}

// What a socket asked for when it was given this endpoint.
static __always_inline const struct na_destination *asked_for(struct bpf_sock_addr *ctx,
                                                              const struct na_address *from) {
  struct na_peer_key key = {bpf_get_socket_cookie(ctx), *from, bpf_ntohs((__u16)ctx->user_port), {0}};

  return bpf_map_lookup_elem(&udp_asked, &key);
}

static __always_inline int disguise4(struct bpf_sock_addr *ctx) {
  const struct na_destination *asked;
  struct bpf_sock *sk = ctx->sk;
  struct na_address from;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  set_mapped(&from, ctx->user_ip4);
  asked = asked_for(ctx, &from);
  if (asked && is_mapped(&asked->address)) {
    write_user4(ctx, asked);
  }
  return 1;
}

static __always_inline int disguise6(struct bpf_sock_addr *ctx) {
  struct na_address from = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  const struct na_destination *asked;
  struct bpf_sock *sk = ctx->sk;

  if (!sk || sk->protocol != IPPROTO_UDP)
    return 1;
  asked = asked_for(ctx, &from);
  if (asked) {
    write_user6(ctx, asked);
  }
  return 1;
}

SEC("cgroup/recvmsg4")
int datagram_recvmsg4(struct bpf_sock_addr *ctx) {
  return disguise4(ctx);
}

SEC("cgroup/recvmsg6")
int datagram_recvmsg6(struct bpf_sock_addr *ctx) {
  return disguise6(ctx);
}

SEC("cgroup/getpeername4")
int datagram_getpeername4(struct bpf_sock_addr *ctx) {
  return disguise4(ctx);
}

SEC("cgroup/getpeername6")
int datagram_getpeername6(struct bpf_sock_addr *ctx) {
  return disguise6(ctx);
}

// What is said to an outsider that comes from there.
static __always_inline const struct na_access_entry *by_address(__u32 class, __u16 port,
                                                                const struct na_address *remote) {
  struct na_outsider_key key = {NA_OUTSIDER_BITS + 128, class, port, 0, *remote};

  return bpf_map_lookup_elem(&udp_outsiders, &key);
}

// Whether policy lets a datagram in; else what is to be counted.
static __always_inline int is_let_in(const struct na_address *local, __u16 port, const struct na_address *remote,
                                     __u32 *counter, __u32 *policy) {
  const struct na_class *class = bpf_map_lookup_elem(&udp_classes, local);
  struct na_access_key key = {0, 0, port, IPPROTO_UDP, 0};
  const struct na_access_entry *access;
  const struct na_sender *sender;

  if (!class)
    return 1;
  sender = bpf_map_lookup_elem(&udp_locals, remote);
  if (sender) {
    access = access_of(sender->workload, class->id, port);
    *counter = NA_UDP_PAST;
    *policy = access ? access->policy : 0;
    return access && access->access == NA_ACCESS_ALLOW;
  }
  if (bpf_map_lookup_elem(&udp_members, remote))
    return 1;
  key.destination = class->id;
  access = bpf_map_lookup_elem(&udp_access, &key);
  *counter = NA_UDP_OUTSIDER;
  if (!access)
    return 1;
  if (access->access == NA_ACCESS_ENGINE)
    access = by_address(class->id, port, remote);
  *policy = access ? access->policy : 0;
  return access && access->access == NA_ACCESS_ALLOW;
}

// In each namespace of a workload, for datagrams that are not a connected socket's. To one that is dropped the kernel
// answers that the port is unreachable.
SEC("sk_lookup")
int datagram_lookup(struct bpf_sk_lookup *ctx) {
  __u32 counter = 0, policy = 0;
  struct na_bypass_key ends;

  if (ctx->protocol != IPPROTO_UDP || ctx->ingress_ifindex == LOOPBACK_IFINDEX)
    return SK_PASS;
  read_addresses(ctx, &ends.source, &ends.destination);
  if (is_within(&ends.source, &ends.destination))
    return SK_PASS;
  ends.source_port = (__u16)ctx->local_port;
  ends.destination_port = bpf_ntohs((__u16)ctx->remote_port);
  ends.reserved = 0;
  if (!is_judged(&ends) || is_noted(&udp_awaited, &ends))
    return SK_PASS;
  if (is_let_in(&ends.source, ends.source_port, &ends.destination, &counter, &policy)) {
    note(&udp_owed, &ends);
    return SK_PASS;
  }
  count(counter);
  count_denial(policy);
  return SK_DROP;
}
