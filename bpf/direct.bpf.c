// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Acceleration `direct`: what one pod of this node sends to another one over TCP is put into the receiver's queue at
// once, past the network stack. Only for workloads that have opted in, and only between two of them: applications
// notice that their sockets are in a SOCKHASH, redirected or not (ARCHITECTURE.md says by what).
//
// direct_sockops takes the ends of such connections in, direct_send decides for each message, direct_sweep lets go of
// what is withdrawn. A message goes by TCP whenever it is not certain that the other way keeps order and bounds:
//
// - Order. The receiver gives its application what was redirected before what came by TCP. So redirecting is right only
//   when the peer has read all that went by TCP: write_seq here is copied_seq there. That also holds for what was sent
//   before both ends were taken in (TCP Fast Open, TCP_DEFER_ACCEPT, a fast client).
// - Bounds. What waits at the receiver counts towards its sk_rmem_alloc (Linux 6.13), and what the kernel takes for
// each
//   message is added here; over the limit a message goes by TCP, whose window then stops the sender.
//
// A socket that is found in a SOCKHASH by an sk_msg program cannot be released again, so the peer's address is kept and
// its memory read, which cannot fault. The socket's cookie, which is never used again, tells whether it is still the
// same one. The redirection takes the peer from its slot of an array, and is given up if another one has that by now.
//
// Calls are what a message costs here: of helpers, and of the kernel's functions below them (a look-up in a hash map
// takes 40 ns). So what each message needs is in the sender's storage, or at a place in an array that is noted there.
//
// Kernel: >= 6.13.
#include <linux/bpf.h>

#include "kernel_types.h"

#include <bpf/bpf_core_read.h>

#include "address.h"
#include "direct_abi.h"
#include "redirected.h"

#define AF_INET              2
#define SOCK_RCVBUF_LOCK     2 /* linux/net.h */
#define SK_USER_DATA_PTRMASK (~7UL)
#define SLOTS                131072

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Network namespace cookie -> workload that has opted in. Written by the agent.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct na_direct_workload);
} direct_workloads SEC(".maps");

// Address of a workload that has opted in -> its cookie. An address that two of them have is in it for neither.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 16384);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_address);
  __type(value, __u64);
} direct_addresses SEC(".maps");

// Where a socket finds its peer, once.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_direct_key);
  __type(value, struct na_direct_socket);
} direct_flows SEC(".maps");

// Socket cookie -> socket. What is in it has direct_send run. Sockets leave it when they are closed.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 65536);
  __type(key, __u64);
  __type(value, __u64);
} direct_sockets SEC(".maps");

// The same sockets, to redirect to. Twice as many slots as sockets: a free one is found soon.
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, SLOTS);
  __type(key, __u32);
  __type(value, __u64);
} direct_slots SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct na_direct_end);
} direct_ends SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct na_direct_settings);
} direct_settings SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, NA_DIRECT_COUNTERS);
  __type(key, __u32);
  __type(value, __u64);
} direct_counters SEC(".maps");

// Read memory of the kernel as a type of its own; a fault gives zeros (Linux 6.2).
void *bpf_rdonly_cast(const void *memory, __u32 type) __ksym;
// The context as the kernel has it (Linux 6.2).
void *bpf_cast_to_kern_ctx(void *context) __ksym;

static __always_inline void count(__u32 which, __u64 n) {
  __u64 *value = bpf_map_lookup_elem(&direct_counters, &which);
  if (value)
    *value += n;
}

static __always_inline const struct na_direct_settings *settings(void) {
  __u32 first = 0;
  return bpf_map_lookup_elem(&direct_settings, &first);
}

static __always_inline const struct sock *sock_of(const struct tcp_sock *tcp) {
  return &tcp->inet_conn.icsk_inet.sk;
}

// -- ends ------------------------------------------------------------------------------------------------------------

// A socket belongs for good to the cgroup that its creator was in.
static __always_inline int is_agents(const struct tcp_sock *tcp, const struct na_direct_workload *workload) {
  const struct cgroup *group = sock_of(tcp)->sk_cgrp_data.cgroup, *ancestor = 0;
  __u32 level = workload->agent_level;

  if (!group || level > (__u32)group->level)
    return 0;
  if (bpf_core_read(&ancestor, sizeof(ancestor), &group->ancestors[level]))
    return 0;
  return BPF_CORE_READ(ancestor, kn, id) == workload->agent_cgroup;
}

// Word by word: of two reads of the context the compiler would make one of 8 bytes, which the verifier refuses.
#define READ_ADDRESS(out, from)                                                                                        \
  do {                                                                                                                 \
    for (int i = 0; i < 4; i++)                                                                                        \
      (out)->word[i] = ((const volatile __u32 *)(from))[i];                                                            \
  } while (0)

// The connection as the peer's end will name itself; 0 if it does not lead from one opted-in workload to another.
static __always_inline int read_peer_key(struct bpf_sock_ops *ops, __u64 cookie, __u32 flags,
                                         struct na_direct_key *out) {
  const __u64 *owner;

  if (ops->family == AF_INET) {
    set_mapped(&out->local, ops->remote_ip4);
    KEEP_BRANCH();
    set_mapped(&out->remote, ops->local_ip4);
    KEEP_BRANCH();
  } else {
    READ_ADDRESS(&out->local, ops->remote_ip6);
    READ_ADDRESS(&out->remote, ops->local_ip6);
  }
  owner = bpf_map_lookup_elem(&direct_addresses, &out->local);
  // Of somebody else, or the workload to itself.
  if (!owner || (*owner == cookie && !(flags & NA_DIRECT_WITHIN)))
    return 0;
  out->netns_cookie = *owner;
  owner = bpf_map_lookup_elem(&direct_addresses, &out->remote);
  if (!owner || *owner != cookie)
    return 0;
  out->local_port = bpf_ntohl(ops->remote_port);
  out->remote_port = ops->local_port;
  return 1;
}

static __always_inline struct na_direct_key turned(const struct na_direct_key *key, __u64 cookie) {
  return (struct na_direct_key){cookie, key->remote, key->local, key->remote_port, key->local_port, 0};
}

static __always_inline int claim_slot(struct bpf_sock_ops *ops, struct na_direct_socket *own) {
  for (__u32 i = 0; i < NA_PROBED; i++) {
    __u32 slot = ((__u32)own->cookie + i) % SLOTS;

    if (!bpf_sock_map_update(ops, &direct_slots, &slot, BPF_NOEXIST)) {
      own->slot = slot;
      return 1;
    }
  }
  return 0;
}

// Whoever has not found the socket yet will not.
static __always_inline void forget_flow(const struct na_direct_end *end) {
  struct na_direct_key key = turned(&end->peer_key, end->netns_cookie);
  const struct na_direct_socket *found = bpf_map_lookup_elem(&direct_flows, &key);

  if (found && found->cookie == end->own.cookie) // a later connection may have the same addresses and ports
    bpf_map_delete_elem(&direct_flows, &key);
}

static __always_inline void leave_slot(struct na_direct_end *end) {
  __u32 slot = end->own.slot;

  bpf_map_delete_elem(&direct_slots, &slot);
  end->own.slot = SLOTS; // it will be another's
}

static __always_inline void leave_cell(const struct na_direct_end *end) {
  __u32 index = end->own.cell;
  struct na_redirected *cell = bpf_map_lookup_elem(&redirected, &index);

  if (cell && cell->cookie == end->own.cookie) // if outbound.bpf.c, attached before, has not told of it
    release_redirected(cell);
}

static __always_inline int insert(struct bpf_sock_ops *ops, struct na_direct_end *end) {
  struct na_direct_key key = turned(&end->peer_key, end->netns_cookie);
  struct na_direct_socket own = end->own;
  __u64 cookie = own.cookie;

  if (end->is_client && !claim_redirected(cookie, &own.cell))
    return 0;
  end->own = own;
  if (bpf_sock_hash_update(ops, &direct_sockets, &cookie, BPF_NOEXIST))
    return 0;
  if (!claim_slot(ops, &own)) {
    bpf_map_delete_elem(&direct_sockets, &cookie);
    return 0;
  }
  end->own = own;
  // Last, for who finds it may redirect to the socket.
  if (bpf_map_update_elem(&direct_flows, &key, &own, BPF_ANY)) {
    leave_slot(end);
    bpf_map_delete_elem(&direct_sockets, &cookie);
    return 0;
  }
  // Other programs may want events of this socket, too.
  bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | REDIRECTED_CB_FLAG);
  return 1;
}

static __always_inline void join(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  __u64 cookie = bpf_get_netns_cookie(ops);
  const struct na_direct_workload *workload = bpf_map_lookup_elem(&direct_workloads, &cookie);
  const struct na_direct_settings *set = settings();
  struct na_direct_key peer_key = {};
  struct na_direct_end *end;
  struct tcp_sock *tcp;

  if (!workload || !set || !read_peer_key(ops, cookie, set->flags, &peer_key))
    return;
  tcp = bpf_skc_to_tcp_sock(sk);
  // With a protocol above TCP it may be the subflow of an MPTCP connection.
  if (!tcp || tcp->inet_conn.icsk_ulp_ops || is_agents(tcp, workload))
    return;
  end = bpf_sk_storage_get(&direct_ends, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!end) {
    count(NA_DIRECT_NOT_JOINED, 1);
    return;
  }
  __builtin_memset(end, 0, sizeof(*end)); // it may be of an earlier connection of the socket
  end->peer_key = peer_key;
  end->netns_cookie = cookie;
  end->generation = set->generation;
  end->is_client = ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
  end->own = (struct na_direct_socket){(__u64)tcp, bpf_get_socket_cookie(ops), tcp->snd_una, tcp->rcv_nxt, SLOTS, 0};
  if (insert(ops, end)) {
    count(NA_DIRECT_JOINED, 1);
    return;
  }
  count(NA_DIRECT_NOT_JOINED, 1);
  leave_cell(end);
  bpf_sk_storage_delete(&direct_ends, sk);
}

// A socket that was closed is in no map any more. Its slot may have become another's while the connection ended.
static __always_inline int is_closed(const struct sock *sk) {
  return (sk->__sk_common.skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_DEAD)) & 1;
}

// The connection has ended. The socket stays in the SOCKHASH until it is closed: what waits there is still to be read.
static __always_inline void leave(struct bpf_sock_ops *ops, struct bpf_sock *sk) {
  struct na_direct_end *end = bpf_sk_storage_get(&direct_ends, sk, 0, 0);
  struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
  __u64 cookie;

  if (!end)
    return;
  cookie = end->own.cookie;
  forget_flow(end);
  leave_cell(end);
  if (tcp && !is_closed(sock_of(tcp))) {
    leave_slot(end);
    // Ended by nobody's error, and not in order: connect() to AF_UNSPEC. The socket's next connection is another one.
    if (!sock_of(tcp)->sk_err && (ops->args[0] == BPF_TCP_ESTABLISHED || ops->args[0] == BPF_TCP_CLOSE_WAIT))
      bpf_map_delete_elem(&direct_sockets, &cookie);
  }
  bpf_sk_storage_delete(&direct_ends, sk);
}

SEC("sockops")
int direct_sockops(struct bpf_sock_ops *ops) {
  struct bpf_sock *sk = ops->sk;

  if (!sk)
    return 1;
  if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    join(ops, sk);
  else if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[1] == BPF_TCP_CLOSE)
    leave(ops, sk);
  return 1;
}

// -- messages --------------------------------------------------------------------------------------------------------

// Find the peer's socket, and see that it is the other end of this very connection.
static __always_inline int find_peer(struct na_direct_end *end) {
  struct na_direct_key key = end->peer_key;
  const struct na_direct_socket *found = bpf_map_lookup_elem(&direct_flows, &key);

  if (!found || found->first_sent != end->own.first_received || found->first_received != end->own.first_sent)
    return 0;
  end->peer = *found;
  return 1;
}

static __always_inline int is_opted_in(const struct na_direct_end *end) {
  __u64 own = end->netns_cookie, peer = end->peer_key.netns_cookie;

  return bpf_map_lookup_elem(&direct_workloads, &own) && bpf_map_lookup_elem(&direct_workloads, &peer);
}

// How many messages may wait at a receiver with so many unread bytes; never fewer than there are.
static __always_inline __u32 unread_messages(struct na_direct_sent *sent, __u32 unread) {
  if ((__s32)(sent->bytes - unread - sent->next_bytes) >= 0) {
    sent->mark_messages = sent->next_messages;
    sent->next_bytes = sent->bytes;
    sent->next_messages = sent->messages;
  }
  return sent->messages - sent->mark_messages;
}

// Whether the receiver's bound allows for a message more. A buffer that the application has chosen is kept to.
static __always_inline int has_room(const struct sock *sk, struct na_direct_sent *sent, __u32 size, __u32 limit) {
  __u32 unread = sk->sk_backlog.rmem_alloc.counter, chosen = sk->sk_rcvbuf;
  __u64 messages = unread_messages(sent, unread) + 1;

  if ((BPF_CORE_READ_BITFIELD(sk, sk_userlocks) & SOCK_RCVBUF_LOCK) && chosen < limit)
    limit = chosen;
  if (unread + messages * NA_DIRECT_MESSAGE_COST + size > limit)
    return 0;
  sent->bytes += size;
  sent->messages++;
  return 1;
}

// NA_DIRECT_REDIRECTED, or why a message goes by TCP.
static __always_inline __u32 judge(const struct tcp_sock *me, struct na_direct_end *end, __u32 size, __u32 limit) {
  const struct tcp_sock *peer =
      bpf_rdonly_cast((const void *)end->peer.address, bpf_core_type_id_kernel(struct tcp_sock));
  const struct sock *sk = sock_of(peer);

  if (sk->__sk_common.skc_state != BPF_TCP_ESTABLISHED || (__u64)sk->__sk_common.skc_cookie.counter != end->peer.cookie)
    return NA_DIRECT_PASS_CLOSING;
  if (me->write_seq != peer->copied_seq)
    return NA_DIRECT_PASS_UNREAD;
  if (me->inet_conn.icsk_ulp_ops || peer->inet_conn.icsk_ulp_ops)
    return NA_DIRECT_PASS_PROTOCOL;
  if (sk->sk_rcvlowat > 1)
    return NA_DIRECT_PASS_LOWAT;
  // Redirecting could fail then, and the application would be told so; TCP waits.
  if (*sk->__sk_common.skc_prot->memory_pressure)
    return NA_DIRECT_PASS_PRESSURE;
  return has_room(sk, &end->sent, size, limit) ? NA_DIRECT_REDIRECTED : NA_DIRECT_PASS_FULL;
}

static __always_inline void count_bytes(const struct na_direct_end *end, __u32 size) {
  const struct na_direct_socket *client = end->is_client ? &end->own : &end->peer;
  __u32 index = client->cell;
  struct na_redirected *past = bpf_map_lookup_elem(&redirected, &index);

  count(NA_DIRECT_BYTES, size);
  if (!past || past->cookie != client->cookie)
    return;
  if (end->is_client) // each counter has one socket that adds to it, which is locked
    past->sent += size;
  else
    past->received += size;
}

static __always_inline __u32 decide(const struct sk_msg_md *msg, struct bpf_sock *sk, struct na_direct_end *end) {
  const struct na_direct_settings *set = settings();

  if (!set)
    return NA_DIRECT_PASS_WITHDRAWN;
  if (end->generation != set->generation) {
    if (!is_opted_in(end))
      return NA_DIRECT_PASS_WITHDRAWN;
    end->generation = set->generation;
    end->peer.cookie = 0; // its socket may have been let go of meanwhile
  }
  if (!end->peer.cookie && !find_peer(end))
    return NA_DIRECT_PASS_UNPAIRED;
  // What has an end is a TCP socket.
  return judge(bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock)), end, msg->size, set->limit);
}

// Redirect to the peer's slot. What has the slot stays there for as long as this program runs, whatever it is.
static __always_inline __u32 redirect(struct sk_msg_md *msg, const struct na_direct_end *end) {
  const struct sk_msg *redirected_to = bpf_cast_to_kern_ctx(msg);

  // A socket that was closed meanwhile is not found, and the message goes by TCP.
  if (bpf_msg_redirect_map(msg, &direct_slots, end->peer.slot, BPF_F_INGRESS) != SK_PASS)
    return NA_DIRECT_PASS_CLOSING;
  if ((__u64)redirected_to->sk_redir->__sk_common.skc_cookie.counter != end->peer.cookie)
    return NA_DIRECT_REFUSED;
  count_bytes(end, msg->size);
  return NA_DIRECT_REDIRECTED;
}

SEC("sk_msg")
int direct_send(struct sk_msg_md *msg) {
  struct bpf_sock *sk = msg->sk;
  struct na_direct_end *end;
  __u32 verdict;

  if (!sk)
    return SK_PASS;
  end = bpf_sk_storage_get(&direct_ends, sk, 0, 0);
  if (!end) // the connection is none any more
    return SK_PASS;
  verdict = decide(msg, sk, end);
  if (verdict == NA_DIRECT_REDIRECTED)
    verdict = redirect(msg, end);
  count(verdict, 1);
  return verdict == NA_DIRECT_REFUSED ? SK_DROP : SK_PASS;
}

// -- withdrawal ------------------------------------------------------------------------------------------------------

static __always_inline int has_unread(const struct sock *sk) {
  __u64 data = (__u64)sk->sk_user_data & SK_USER_DATA_PTRMASK;
  const struct sk_psock *psock = bpf_rdonly_cast((const void *)data, bpf_core_type_id_kernel(struct sk_psock));

  return data && (const void *)psock->ingress_msg.next != (const void *)&psock->ingress_msg;
}

// Run over all sockets: one whose workload or peer is opted in no more, or whose connection has ended, becomes a plain
// one again as soon as nothing waits at it beside TCP's queue, which would be lost. The others are told of.
SEC("iter/sockmap")
int direct_sweep(struct bpf_iter__sockmap *ctx) {
  const __u64 *key = ctx->key;
  struct sock *sk = ctx->sk;
  struct na_direct_end *end;
  struct na_direct_row row = {};

  if (!key || !sk)
    return 0;
  end = bpf_sk_storage_get(&direct_ends, sk, 0, 0);
  row.cookie = *key;
  row.queued = sk->sk_backlog.rmem_alloc.counter;
  row.withdrawn = !end || !is_opted_in(end);
  if (row.withdrawn && !has_unread(sk)) {
    if (end) {
      forget_flow(end);
      leave_slot(end);
    }
    bpf_map_delete_elem(&direct_sockets, &row.cookie);
  } else {
    bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
  }
  return 0;
}
