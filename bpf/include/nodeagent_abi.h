/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What BPF programs and user space both know: the layout of map keys and values, ports and counters. The one ABI
 * header; sizes are asserted. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in host order.
 * A change that is not compatible needs a new NA_BPF_ABI: pins of another version are never read.
 */
#ifndef NODEAGENT_ABI_H
#define NODEAGENT_ABI_H

#include <linux/types.h>

#define NA_BPF_ABI 4

#define NA_PORT_OUTBOUND 15001
#define NA_PORT_INBOUND  15006
#define NA_PORT_HBONE    15008
#define NA_PORT_DNS      15053

/* Where name servers listen (RFC 1035, 4.2). */
#define NA_DNS_SERVER_PORT 53

/* Ports of the agent's in a namespace that workloads share: of each kind one for each workload, by its slot. */
#define NA_SHARED_WORKLOADS     128
#define NA_PORT_SHARED_OUTBOUND 15200
#define NA_PORT_SHARED_INBOUND  15328
#define NA_PORT_SHARED_HBONE    15456

/* Workloads that are cgroups may be so deep in the hierarchy; the root is 0. */
#define NA_GROUP_LEVELS 16

/* Of a workload's own addresses this many are known. */
#define NA_OWN_ADDRESSES 16

struct na_address {
  __u32 word[4];
};

/* An address and port as an application asked for it. */
struct na_destination {
  struct na_address address;
  __u16 port;
  __u16 reserved;
  __u32 drawn; /* whose endpoint connect() drew for it before it left it to the engine: a workload, or NA_DRAWN_* */
};

/* Nobody's: it did not draw. */
#define NA_DRAWN_NONE 0
/* One that is not among those of this node which connect() may choose. */
#define NA_DRAWN_ELSEWHERE 0xffffffff

/* A captured connection as its listener sees it: the client's side. The port alone would collide between sources. */
struct na_flow {
  __u64 netns_cookie;
  struct na_address source;
  __u16 source_port;
  __u16 reserved[3];
};

/* An enrolled workload, by the cookie of its network namespace. Up to its flags it
 * stays as it is in each ABI: the next one's agent goes by them. */
struct na_workload_entry {
  __u64 agent_cgroup; /* id of the cgroup whose connections are the agent's own */
  __u32 agent_level;  /* its depth in the hierarchy */
  __u32 flags;        /* NA_WORKLOAD_* */
  /* Source of captured connections that have none of their own choice; zeros: the kernel chooses, which is loopback. */
  struct na_address source4;
  struct na_address source6;
  struct na_address own[NA_OWN_ADDRESSES]; /* zeros: unused */
  __u32 group_levels;                      /* NA_WORKLOAD_SHARED: bit N for a workload that is a cgroup of level N */
  __u32 reserved;
};

/* Being let go: new connections are left alone. */
#define NA_WORKLOAD_RELEASED 1
/* What goes to port 53 goes to the agent's NA_PORT_DNS. */
#define NA_WORKLOAD_DNS 4

/* No workload but a namespace that several share; who is one is told by cgroup (struct na_group). */
#define NA_WORKLOAD_SHARED 8
/* While the agent has no listener for it, connections pass as if there were no agent. */
#define NA_WORKLOAD_OPEN 16

/* ---- workloads that share a namespace ---- */

struct na_group_key {
  __u64 netns_cookie;
  __u64 cgroup; /* id */
};

/* A workload that is a cgroup, with all below it that is not one itself. */
struct na_group {
  __u64 owner; /* who it is, for the agent */
  __u32 slot;
  __u32 flags;               /* NA_WORKLOAD_RELEASED, NA_WORKLOAD_OPEN */
  struct na_address source4; /* as in struct na_workload_entry */
  struct na_address source6;
};

/* Whose a port of the namespace is; its key is a struct na_destination, at the unspecified address for all of them. */
struct na_shared_port {
  __u64 owner;
  __u32 listener; /* NA_SHARED_LISTENER() */
  __u32 flags;    /* NA_WORKLOAD_OPEN, NA_SHARED_PORT_* */
};

/* One of the agent's own ports, at which its listener is bound and nobody may call. */
#define NA_SHARED_PORT_CLOSED 1

enum na_shared_listener {
  NA_SHARED_LISTENER_OUTBOUND = 0,
  NA_SHARED_LISTENER_INBOUND = 1,
  NA_SHARED_LISTENER_HBONE = 2,
};

/* Key of a workload's listener in the map of them. */
#define NA_SHARED_LISTENER(kind, slot) ((kind)*NA_SHARED_WORKLOADS + (slot))

/* ---- listeners of a workload that has its namespace for itself ---- */

/* Keys of the map of listeners: the outbound one, and the inbound one of each device by its index. */
#define NA_LISTENER_KEY_OUTBOUND 0
#define NA_LISTENER_KEY_HBONE    0x80000000u
#define NA_LISTENER_KEY_DNS4     0x80000001u
#define NA_LISTENER_KEY_DNS6     0x80000002u

/* Further ports that are the agent's there; those that are not are applications'. */
#define NA_GUARD_HBONE 1u
#define NA_GUARD_DNS   2u

/* ---- connections within the node that need no engine (bypass.h) ---- */

/* What connect() decides by belongs to one life of an agent: it begins with empty maps, and what it does not find goes
 * to the engine. Connections outlive agents, with the number of the one that they began under. */
struct na_life {
  __u32 number; /* random; 0: no bypass */
  __u32 reserved;
};

/* A workload as a client, by the cookie of its namespace. Absent: all it asks for goes to the engine. */
struct na_source {
  __u32 workload; /* the engine's number of it; never 0 */
  __u32 view;     /* whose services it sees; never 0 */
};

/* An address that means a service, or a workload of this node, in a view. */
struct na_service_key {
  struct na_address address;
  __u32 view;
  __u16 port;
  __u8 protocol; /* IPPROTO_* */
  __u8 reserved;
};

/* One of the slots is drawn. Those of endpoints that connect() may not choose are empty, which leads to the engine. */
struct na_service {
  __u32 id; /* another one for each set of endpoints */
  __u32 slots;
};

struct na_backend_key {
  __u32 service;
  __u32 slot;
};

/* An endpoint on this node. */
struct na_backend {
  struct na_address address;
  __u32 workload; /* the engine's number */
  __u16 port;
  __u16 reserved;
};

/* Who may connect to a port. Source 0: whoever has no entry of its own. */
struct na_access_key {
  __u32 source;
  __u32 destination;
  __u16 port;
  __u8 protocol;
  __u8 reserved;
};

enum na_access {
  NA_ACCESS_ENGINE = 0, /* cannot be said here; as without an entry */
  NA_ACCESS_ALLOW = 1,
  NA_ACCESS_DENY = 2,
};

struct na_access_entry {
  __u32 access; /* enum na_access */
  __u32 policy; /* number of the deciding policy's name; 0: none */
};

/* The exact ends of a connection, the client's first. As the key of `bypassed` it stays as it is in each ABI. */
struct na_bypass_key {
  struct na_address source;
  struct na_address destination;
  __u16 source_port;
  __u16 destination_port;
  __u32 reserved;
};

/* A connection that connect() has let past the engine; from its SYN to the end of the client's socket. */
struct na_bypass {
  struct na_destination asked; /* what the application asked for */
  __u64 netns_cookie;          /* of the client */
  __u64 socket_cookie;         /* of the client's socket (SO_COOKIE) */
  __u64 started_ns;            /* CLOCK_MONOTONIC */
  __u32 life;                  /* na_life.number */
  __u32 source;                /* workloads */
  __u32 destination;
  __u32 service;
  __u32 arrived; /* 1: let through where the destination is; who is at its address may be somebody else */
  __u32 reserved;
};

/* What a socket keeps of its connect(); that of an application, of the client in whose name the agent has connected. */
struct na_original {
  struct na_destination asked; /* what getpeername() tells */
  __u32 life;                  /* 0: the connection goes to the engine, or is over; else as in na_bypass */
  __u32 source;
  __u32 destination;
  __u32 service;
};

/* Which workload a namespace is, for listener lookup there: an address may have passed to it from another one. */
struct na_here {
  __u32 life;
  __u32 workload;
};

enum na_bypass_event_kind {
  NA_BYPASS_DENIED = 1, /* connect() failed with EPERM; the ends are as far as they were known */
  NA_BYPASS_OPENED = 2,
  NA_BYPASS_FAILED = 3, /* not established: refused, or without an answer */
  NA_BYPASS_CLOSED = 4,
};

/* How a connection ended, as the client's socket saw it. */
enum na_bypass_end {
  NA_BYPASS_END_CLIENT = 0, /* the client closed first */
  NA_BYPASS_END_SERVER = 1,
  NA_BYPASS_END_RESET = 2, /* by a reset of either side, a timeout, or revocation */
};

/* What the ring buffer tells. */
struct na_bypass_event {
  struct na_bypass_key ends;
  struct na_bypass flow;
  __u64 at_ns;
  __u64 sent; /* by the client; payload */
  __u64 received;
  __u32 kind;        /* enum na_bypass_event_kind */
  __u32 end;         /* enum na_bypass_end */
  __u32 policy;      /* DENIED: na_access_entry.policy */
  __u32 srtt_us;     /* smoothed round trip time */
  __u32 retransmits; /* segments */
  __u32 error;       /* FAILED, CLOSED: errno of the socket; 0: none */
};

/* Indexes of the per-CPU counters. */
enum na_bpf_counter {
  NA_COUNT_CAPTURED = 0,    /* connects redirected to the outbound listener */
  NA_COUNT_NO_STORAGE = 1,  /* connects refused: no memory for the original destination */
  NA_COUNT_NO_FLOW = 2,     /* flows whose destination could not be kept: the agent refuses them */
  NA_COUNT_STEERED = 3,     /* inbound connections given to the listener */
  NA_COUNT_NO_LISTENER = 4, /* inbound connections refused: no listener of the agent's */
  NA_COUNT_BYPASSED = 5,    /* connects sent to a workload of this node, past the engine */
  NA_COUNT_DENIED = 6,      /* connects refused by policy */
  NA_COUNT_NO_BYPASS = 7,   /* connections past the engine without room among the flows: the engine gets them */
  NA_COUNT_NO_EVENT = 8,    /* events without room in the ring buffer: missing in metrics and access log */
  NA_COUNT_RAW = 9,         /* connections refused that no connect() has let go */
  NA_COUNT_WITHDRAWN = 10,  /* connections past the engine refused where they arrive: not allowed any more */
  NA_COUNT_ASTRAY = 11,     /* connections past the engine ended: not with the workload that they were for */
  NA_COUNT_NO_CLIENT = 12,  /* connections of clients whose address an application could not be told */
  NA_COUNTERS = 13,
};

_Static_assert(sizeof(struct na_destination) == 24, "ABI");
_Static_assert(sizeof(struct na_flow) == 32, "ABI");
_Static_assert(sizeof(struct na_workload_entry) == 312, "ABI");
_Static_assert(sizeof(struct na_group_key) == 16, "ABI");
_Static_assert(sizeof(struct na_group) == 48, "ABI");
_Static_assert(sizeof(struct na_shared_port) == 16, "ABI");
_Static_assert(sizeof(struct na_service_key) == 24, "ABI");
_Static_assert(sizeof(struct na_backend) == 24, "ABI");
_Static_assert(sizeof(struct na_access_key) == 12, "ABI");
_Static_assert(sizeof(struct na_bypass_key) == 40, "ABI");
_Static_assert(sizeof(struct na_bypass) == 72, "ABI");
_Static_assert(sizeof(struct na_bypass_event) == 160, "ABI");
_Static_assert(sizeof(struct na_original) == 40, "ABI");

#endif
