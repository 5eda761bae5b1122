/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Layout of the maps of datagram.bpf.c, beside those of nodeagent_abi.h: services and endpoints are laid out as there,
 * in view 0 (what is sent by UDP is the same for all).
 */
#ifndef NODEAGENT_DATAGRAM_ABI_H
#define NODEAGENT_DATAGRAM_ABI_H

#include "nodeagent_abi.h"

/* Who a workload's datagrams come from, by the cookie of its namespace. Absent: its policy is not known yet, and it
 * reaches nobody who has one. */
struct na_sender {
  __u32 workload; /* source of na_access_key; never 0 */
  __u32 reserved;
};

/* Workloads of which the same is asked are a class, the destination of na_access_key. An address without one may be
 * sent anything. In na_access_key port 0 stands for those that have no entry, source 0 for outsiders. Of those
 * NA_ACCESS_ENGINE means that it depends on where they come from: struct na_outsider_key. */
struct na_class {
  __u32 id; /* never 0 */
  __u32 reserved;
};

/* What is said to outsiders of a class, at a port, where it depends on where they come from: by the longest prefix. Key
 * of a trie. */
struct na_outsider_key {
  __u32 bits; /* of what follows: NA_OUTSIDER_BITS and those of the address */
  __u32 class;
  __u16 port;
  __u16 reserved;
  struct na_address address;
};

#define NA_OUTSIDER_BITS 64

/* A socket and an address that it deals with. */
struct na_peer_key {
  __u64 socket_cookie;
  struct na_address address;
  __u16 port;
  __u16 reserved[3];
};

enum na_udp_counter {
  NA_UDP_ALLOWED = 0,     /* connects, and datagrams of sockets that are not connected */
  NA_UDP_DENIED = 1,      /* by policy: EPERM */
  NA_UDP_UNKNOWN = 2,     /* EPERM, since what the policy says to this sender is not known here */
  NA_UDP_NO_ENDPOINT = 3, /* EPERM: the service has none */
  NA_UDP_OUTSIDER = 4,    /* dropped on arrival: of nobody whose node judges what it sends */
  NA_UDP_PAST = 5,        /* dropped on arrival: of a workload of this node that may not send it, past sendmsg() */
  NA_UDP_COUNTERS = 6,
};

/* So long after a datagram the other way is an answer, as for conntrack's streams. */
#define NA_UDP_ANSWER_NS 180000000000ULL

_Static_assert(sizeof(struct na_peer_key) == 32, "ABI");
_Static_assert(sizeof(struct na_outsider_key) == 28, "ABI");

#endif
