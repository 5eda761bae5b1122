// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// TCP connections past connect(): refuses SYNs that leave a workload's network namespace, attached to the output hook
// there, but those of sockets on their way to where connect() has let them go (outbound.bpf.c). Takes the place of the
// ruleset's chain for that, which knows the agent's sockets only, and so would refuse connections past the engine
// (bypass.h).
//
// Kernel: >= 6.4 (netfilter links), with BTF.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

#include "address.h"
#include "counters.h"
#include "kernel_types.h"

#define NFPROTO_IPV4     2
#define SOCK_RAW         3
#define LOOPBACK_IFINDEX 1

#define NF_DROP   0
#define NF_ACCEPT 1

#define IPPROTO_HOPOPTS  0
#define IPPROTO_TCP      6
#define IPPROTO_ROUTING  43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH       51
#define IPPROTO_DSTOPTS  60
#define MAX_EXTENSIONS   8

#define IP_OFFSET 0x1fff
#define TCP_FLAGS 13 /* offset in the header */
#define TCP_FIN   0x01
#define TCP_SYN   0x02
#define TCP_RST   0x04
#define TCP_ACK   0x10

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// What the program is called with.
struct bpf_nf_ctx {
  const struct nf_hook_state *state;
  struct sk_buff *skb;
};

// A packet from its network header on, as far as it lies in one piece.
struct packet {
  const unsigned char *data;
  __u32 size;
};

enum transport { NO_TCP, TCP, UNREADABLE };

// `size` bytes at an offset; 0 if they are there.
static __always_inline int read_at(const struct packet *packet, __u32 offset, void *out, __u32 size) {
  if (offset > packet->size || packet->size - offset < size)
    return -1;
  return bpf_probe_read_kernel(out, size, packet->data + offset) ? -1 : 0;
}

static __always_inline enum transport find_tcp4(const struct packet *packet, __u32 *offset) {
  __u8 header[20];

  if (read_at(packet, 0, header, sizeof(header)))
    return UNREADABLE;
  if (header[9] != IPPROTO_TCP)
    return NO_TCP;
  if ((header[6] << 8 | header[7]) & IP_OFFSET)
    return UNREADABLE;
  *offset = (header[0] & 15) * 4;
  return TCP;
}

static __always_inline enum transport find_tcp6(const struct packet *packet, __u32 *offset) {
  __u8 next, extension[4];

  if (read_at(packet, 6, &next, 1))
    return UNREADABLE;
  *offset = 40;
  for (int i = 0; i < MAX_EXTENSIONS; i++) {
    if (next == IPPROTO_TCP)
      return TCP;
    if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT && next != IPPROTO_AH &&
        next != IPPROTO_DSTOPTS)
      return NO_TCP;
    if (read_at(packet, *offset, extension, sizeof(extension)))
      return UNREADABLE;
    if (next == IPPROTO_FRAGMENT) {
      if ((extension[2] << 8 | extension[3]) & ~7)
        return extension[0] == IPPROTO_TCP ? UNREADABLE : NO_TCP;
      *offset += 8;
    } else {
      *offset += next == IPPROTO_AH ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
    }
    next = extension[0];
  }
  return UNREADABLE;
}

// Whether the packet begins a connection, or may for all that can be read.
static __always_inline int is_syn(const struct packet *packet, int v4) {
  __u32 offset = 0;
  enum transport found = v4 ? find_tcp4(packet, &offset) : find_tcp6(packet, &offset);
  __u8 flags;

  if (found != TCP)
    return found == UNREADABLE;
  if (read_at(packet, offset + TCP_FLAGS, &flags, 1))
    return 1;
  return (flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

// Whether a packet goes where its socket has connected to: options of IP may lead it elsewhere.
static __always_inline int goes_as_connected(const struct sock *sk, const struct packet *packet, int v4) {
  struct na_address to, wanted;

  if (v4)
    return !read_at(packet, 16, &to, 4) && to.word[0] == sk->__sk_common.skc_daddr;
  if (read_at(packet, 24, &to, sizeof(to)) || bpf_core_read(&wanted, sizeof(wanted), &sk->__sk_common.skc_v6_daddr))
    return 0;
  return same_address(&to, &wanted);
}

// Whether a socket is one that sends no beginnings, or not by itself. (Of those halfway accepted, or nearly gone, the
// kernel keeps too little to have a type.)
static __always_inline int is_known(const struct sock *sk, const struct packet *packet, int v4) {
  __u8 state = sk->__sk_common.skc_state;

  if (state == BPF_TCP_NEW_SYN_RECV || state == BPF_TCP_TIME_WAIT)
    return 1;
  if (state == BPF_TCP_SYN_SENT)
    return goes_as_connected(sk, packet, v4);
  return sk->sk_type != SOCK_RAW;
}

SEC("netfilter")
int refuse_past(struct bpf_nf_ctx *ctx) {
  const struct nf_hook_state *state = ctx->state;
  const struct sk_buff *skb = ctx->skb;
  const struct net_device *out = state->out;
  const struct sock *sk = skb->sk;
  int v4 = state->pf == NFPROTO_IPV4;
  struct packet packet = {skb->data, skb->len - skb->data_len};

  if ((out && out->ifindex == LOOPBACK_IFINDEX) || (sk && is_known(sk, &packet, v4)) || !is_syn(&packet, v4))
    return NF_ACCEPT;
  count(NA_COUNT_RAW);
  return NF_DROP;
}
