/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What BPF programs and user space both know: the layout of map keys and values, ports and counters. The one ABI
 * header; sizes are asserted. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in host order.
 * A change that is not compatible needs a new NA_BPF_ABI: pins of another version are never read.
 */
#ifndef NODEAGENT_ABI_H
#define NODEAGENT_ABI_H

#include <linux/types.h>

#define NA_BPF_ABI 1

#define NA_PORT_OUTBOUND 15001
#define NA_PORT_INBOUND  15006
#define NA_PORT_HBONE    15008

/* Mark of the agent's connections to applications in the name of their clients: leads the answers back. */
#define NA_RETURN_MARK 0x6e61

/* Of a workload's own addresses this many are known. */
#define NA_OWN_ADDRESSES 16

struct na_address {
  __u32 word[4];
};

/* An address and port as an application asked for it. */
struct na_destination {
  struct na_address address;
  __u16 port;
  __u16 reserved[3];
};

/* A captured connection as its listener sees it: the client's side. The port alone would collide between sources. */
struct na_flow {
  __u64 netns_cookie;
  struct na_address source;
  __u16 source_port;
  __u16 reserved[3];
};

/* An enrolled workload, by the cookie of its network namespace. */
struct na_workload_entry {
  __u64 agent_cgroup; /* id of the cgroup whose connections are the agent's own */
  __u32 agent_level;  /* its depth in the hierarchy */
  __u32 flags;        /* NA_WORKLOAD_* */
  /* Source of captured connections that have none of their own choice; zeros: the kernel chooses, which is loopback. */
  struct na_address source4;
  struct na_address source6;
  struct na_address own[NA_OWN_ADDRESSES]; /* zeros: unused */
};

/* Being let go: new connections are left alone. */
#define NA_WORKLOAD_RELEASED 1

/* Keys of the map of listeners: the outbound one, and the inbound one of each device by its index. */
#define NA_LISTENER_KEY_OUTBOUND 0

/* Indexes of the per-CPU counters. */
enum na_bpf_counter {
  NA_COUNT_CAPTURED = 0,    /* connects redirected to the outbound listener */
  NA_COUNT_NO_STORAGE = 1,  /* connects refused: no memory for the original destination */
  NA_COUNT_NO_FLOW = 2,     /* flows whose destination could not be kept: the agent refuses them */
  NA_COUNT_STEERED = 3,     /* inbound connections given to the listener */
  NA_COUNT_NO_LISTENER = 4, /* inbound connections refused: no listener of the agent's */
  NA_COUNTERS = 5,
};

_Static_assert(sizeof(struct na_destination) == 24, "ABI");
_Static_assert(sizeof(struct na_flow) == 32, "ABI");
_Static_assert(sizeof(struct na_workload_entry) == 304, "ABI");

#endif
