/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What the acceleration `direct` and user space both know, beside nodeagent_abi.h; the same conventions. Its maps are
 * its own and have a version of their own: a change that is not compatible needs a new NA_DIRECT_ABI.
 */
#ifndef NODEAGENT_DIRECT_ABI_H
#define NODEAGENT_DIRECT_ABI_H

#include "nodeagent_abi.h"

#define NA_DIRECT_ABI 2

/* A workload that has opted in, by the cookie of its network namespace. */
struct na_direct_workload {
  __u64 agent_cgroup; /* id of the cgroup whose sockets are the agent's own */
  __u32 agent_level;  /* its depth in the hierarchy */
  __u32 reserved;
};

/* One end of a connection, as its own namespace sees it. */
struct na_direct_key {
  __u64 netns_cookie;
  struct na_address local;
  struct na_address remote;
  __u16 local_port;
  __u16 remote_port;
  __u32 reserved;
};

/* A socket that is ready. Its first sequence numbers are the two that its peer must have the other way round: 64 bits
 * that nobody else knows say that two sockets are the ends of one connection. */
struct na_direct_socket {
  __u64 address; /* of its struct tcp_sock */
  __u64 cookie;  /* of the socket; never used again while the machine runs */
  __u32 first_sent;
  __u32 first_received;
  __u32 slot; /* where it is redirected to */
  __u32 cell; /* of a client: where the connection's bytes are counted */
};

/* What a message takes in the kernel beside its bytes (struct sk_msg, as kmalloc() rounds it up). */
#define NA_DIRECT_MESSAGE_COST 1024

/* What was redirected to the peer, and how much of that may wait there unread. The kernel accounts for bytes only, so
 * messages are counted here: all since a mark, which moves on once the peer has read what was sent before `next`. */
struct na_direct_sent {
  __u32 bytes;
  __u32 messages;
  __u32 next_bytes;
  __u32 next_messages;
  __u32 mark_messages;
  __u32 reserved;
};

/* What a socket knows of its peer; lives and dies with the socket. First what each message needs: a cache line. */
struct na_direct_end {
  struct na_direct_socket peer; /* a cookie of 0: not found yet */
  struct na_direct_sent sent;
  __u32 generation; /* of the settings, when both workloads were last seen to be opted in */
  __u32 is_client;  /* it has connected */
  struct na_direct_key peer_key;
  struct na_direct_socket own;
  __u64 netns_cookie;
};

/* Bytes of a connection that went past TCP, as its client sees it. The cell of a connection is one of the NA_PROBED
 * that follow the one which the cookie of the client's socket leads to. */
struct na_redirected {
  __u64 cookie; /* 0: nobody's */
  __u64 sent;
  __u64 received;
};

#define NA_REDIRECTED_CELLS 32768 /* a power of two */

/* How many places are tried for a socket. */
#define NA_PROBED 8

struct na_direct_settings {
  __u32 limit;      /* bytes that may wait at a receiver beside TCP's own queue */
  __u32 generation; /* counts what is withdrawn */
  __u32 flags;      /* NA_DIRECT_* */
  __u32 reserved;
};

/* Connections within a namespace are taken in, too: for probes, which have one of their own. */
#define NA_DIRECT_WITHIN 1

/* What direct_sweep tells of a socket. */
struct na_direct_row {
  __u64 cookie;
  __u32 queued; /* bytes that wait at the socket, TCP's included */
  __u32 withdrawn;
};

/* Indexes of the per-CPU counters. */
enum na_direct_counter {
  NA_DIRECT_JOINED = 0,          /* sockets that became an end */
  NA_DIRECT_NOT_JOINED = 1,      /* sockets that did not: a map is full, or another program has them in its own */
  NA_DIRECT_REDIRECTED = 2,      /* messages given to the peer at once */
  NA_DIRECT_BYTES = 3,           /* their bytes */
  NA_DIRECT_PASS_UNPAIRED = 4,   /* messages that went by TCP: the peer is not an end (yet) */
  NA_DIRECT_PASS_UNREAD = 5,     /* - the peer has not read all that went by TCP */
  NA_DIRECT_PASS_FULL = 6,       /* - the limit */
  NA_DIRECT_PASS_CLOSING = 7,    /* - the peer is not (or no longer) established */
  NA_DIRECT_PASS_LOWAT = 8,      /* - the peer waits for more than a byte (SO_RCVLOWAT) */
  NA_DIRECT_PASS_PROTOCOL = 9,   /* - one of them has a protocol above TCP in the kernel, such as TLS */
  NA_DIRECT_PASS_PRESSURE = 10,  /* - the kernel is short of memory for TCP */
  NA_DIRECT_PASS_WITHDRAWN = 11, /* - one of the workloads is opted in no more */
  NA_DIRECT_REFUSED = 12,        /* messages that nobody got: the peer had gone, and its slot was another's already */
  NA_DIRECT_COUNTERS = 13,
};

_Static_assert(sizeof(struct na_direct_workload) == 16, "ABI");
_Static_assert(sizeof(struct na_direct_key) == 48, "ABI");
_Static_assert(sizeof(struct na_direct_socket) == 32, "ABI");
_Static_assert(sizeof(struct na_direct_end) == 152, "ABI");
_Static_assert(sizeof(struct na_redirected) == 24, "ABI");
_Static_assert(sizeof(struct na_direct_row) == 16, "ABI");

#endif
