/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Of the kernel's own structures the members that programs read. Where they are is found when a program is loaded
 * (CO-RE); names are the kernel's.
 */
#ifndef NODEAGENT_BPF_KERNEL_TYPES_H
#define NODEAGENT_BPF_KERNEL_TYPES_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
  __u64 id;
};

struct cgroup {
  int level;
  struct kernfs_node *kn;
  struct cgroup *ancestors[];
};

struct sock_cgroup_data {
  struct cgroup *cgroup;
};

typedef struct {
  int counter;
} atomic_t;

typedef struct {
  __s64 counter;
} atomic64_t;

struct proto {
  unsigned long *memory_pressure;
};

enum sock_flags { SOCK_DEAD = 0, SOCK_DONE = 1 };

struct in6_addr {};

struct sock_common {
  __u32 skc_daddr;
  struct in6_addr skc_v6_daddr;
  volatile unsigned char skc_state;
  unsigned char skc_ipv6only : 1;
  unsigned long skc_flags;
  struct proto *skc_prot;
  atomic64_t skc_cookie;
};

struct sock {
  struct sock_common __sk_common;
  struct {
    atomic_t rmem_alloc;
  } sk_backlog;
  int sk_err;
  __u16 sk_type;
  int sk_rcvbuf;
  int sk_rcvlowat;
  unsigned char sk_userlocks : 4;
  void *sk_user_data;
  struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
  struct sock sk;
};

struct tcp_ulp_ops;

struct inet_connection_sock {
  struct inet_sock icsk_inet;
  const struct tcp_ulp_ops *icsk_ulp_ops;
};

struct tcp_sock {
  struct inet_connection_sock inet_conn;
  __u32 write_seq;
  __u32 copied_seq;
  __u32 snd_una;
  __u32 rcv_nxt;
};

struct sk_buff {
  struct sock *sk;
  unsigned int len;
  unsigned int data_len;
  unsigned char *data;
};

struct net_device {
  int ifindex;
};

struct nf_hook_state {
  __u8 pf;
  struct net_device *out;
};

struct list_head {
  struct list_head *next, *prev;
};

struct sk_psock {
  struct list_head ingress_msg;
};

struct sk_msg {
  struct sock *sk_redir;
};

struct seq_file;

struct bpf_iter_meta {
  struct seq_file *seq;
};

struct bpf_iter__sockmap {
  struct bpf_iter_meta *meta;
  void *key;
  struct sock *sk;
};

#pragma clang attribute pop

#endif
