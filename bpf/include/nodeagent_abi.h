/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What BPF programs and user space both know: the layout of map keys and values, ports and counters. The one ABI
 * header; sizes are asserted on both sides. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are
 * in host order.
 */
#ifndef NODEAGENT_ABI_H
#define NODEAGENT_ABI_H

#include <linux/types.h>

#define NA_PORT_OUTBOUND 15001
#define NA_PORT_INBOUND  15006
#define NA_PORT_HBONE    15008
#define NA_PORT_DNS      15053

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

/* A connection of the agent's own: never captured again. */
struct na_tuple {
  struct na_address local;
  struct na_address remote;
  __u16 local_port;
  __u16 remote_port;
  __u32 reserved;
};

/* An enrolled workload. */
struct na_workload_entry {
  __u32 id;
  __u32 flags;
};

/* Indexes of the per-CPU counters. */
enum na_bpf_counter {
  NA_COUNT_CAPTURED = 0,    /* connects redirected to the outbound listener */
  NA_COUNT_NO_STORAGE = 1,  /* connects refused: no memory for the original destination */
  NA_COUNT_NO_FLOW = 2,     /* established flows whose destination could not be kept */
  NA_COUNT_STEERED = 3,     /* inbound connections given to the listener */
  NA_COUNT_NO_LISTENER = 4, /* inbound connections dropped: the agent is not there */
  NA_COUNTERS = 5,
};

_Static_assert(sizeof(struct na_destination) == 24, "ABI");
_Static_assert(sizeof(struct na_flow) == 32, "ABI");
_Static_assert(sizeof(struct na_tuple) == 40, "ABI");
_Static_assert(sizeof(struct na_workload_entry) == 8, "ABI");

#endif
