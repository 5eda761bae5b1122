/* SPDX-License-Identifier: Apache-2.0
 *
 * Clusters: where requests go. A cluster has three parts with three lifetimes:
 *
 *   na_cluster        configuration under a name; immutable; replaced by a commit
 *   na_hosts          its endpoints, arranged for picking; immutable; replaced by a commit
 *   na_cluster_state  what happens now: active requests, balancer cursors; shared by all successors of a name
 *
 * Whoever keeps a cluster over a loop turn holds a reference (na_cluster_ref). The reference keeps the endpoints and
 * the state alive, so an na_host stays valid as long as the reference to the cluster that it was picked from. All
 * functions here may be called by any worker at any time, except those that say "control thread".
 */
#ifndef NODEAGENT_CLUSTER_H
#define NODEAGENT_CLUSTER_H

#include <stdatomic.h>
#include <stdbool.h>

#include <nodeagent/engine.h>
#include <nodeagent/flows.h>

#include "slots.h"

#define NA_CACHE_LINE 64

/* Node-wide limits of a cluster, counted over all workers. */
enum na_limit { NA_LIMIT_CONNECTIONS, NA_LIMIT_REQUESTS, NA_LIMIT_PENDING, NA_LIMIT_COUNT };

/* What is known of one address:port of one cluster. It survives a replacement of the endpoints that keeps the address,
 * so a pointer to it identifies the endpoint over snapshots (of equal pointers only while a reference is held). */
typedef struct na_host_state {
  atomic_uint refs;
  atomic_uint active; /* requests and TCP connections now on it, all workers */
  atomic_uint local;  /* the workload of this node that connect() may reach there past the engine; 0: none */
  uint8_t address[16];
  uint16_t port;
} na_host_state;

na_host_state *na_host_state_ref(na_host_state *state);
void na_host_state_unref(na_host_state *state);

/* A tunnel by which endpoints are reached. */
typedef struct na_via {
  uint8_t address[16]; /* zeros: the endpoint's own */
  uint16_t port;
  bool mtls;        /* no tunnel: TLS to the endpoint itself */
  uint64_t hash;    /* of all of it; never 0 */
  char *identities; /* whom the peer may be; separated by spaces */
  char *authority;  /* what to ask the peer for; NULL: the endpoint's address and port */
  char *inner;      /* whom the peer of a second tunnel, inside the first one, may be; NULL: there is none */
  char *network;    /* what that peer is told; or NULL */
} na_via;

/* One endpoint of one version of a cluster. */
typedef struct na_host {
  na_endpoint endpoint;
  na_host_state *state;
  const na_via *via; /* NULL: directly */
} na_host;

/* The next position of round robin for one worker; on its own cache line, written by that worker alone. */
typedef struct na_cursor {
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t position;
} na_cursor;

/* The mutable part. */
typedef struct na_cluster_state {
  atomic_uint refs;
  atomic_uint used; /* na_mark_used */
  uint32_t workers;
  _Alignas(NA_CACHE_LINE) atomic_uint in_use[NA_LIMIT_COUNT]; /* by enum na_limit */
  _Atomic uint64_t overflows[NA_LIMIT_COUNT];                 /* refusals since the start */
  na_cursor cursors[];                                        /* one per worker */
} na_cluster_state;

/* A set of hosts that one pick chooses among, by weight. Weights are divided by their greatest common divisor. */
typedef struct na_host_group {
  const na_host **hosts;
  uint64_t *upto;  /* running sums of the weights; NULL when all weights are equal */
  uint64_t total;  /* sum of the weights */
  uint64_t stride; /* coprime to total, near total/phi: spreads heavy hosts evenly over a round; 1 for equal weights */
  uint32_t n;
} na_host_group;

/* One priority: who is picked there, and how often it is chosen. */
typedef struct na_priority {
  na_host_group group; /* its healthy hosts; in panic all of them */
  uint32_t upto;       /* running sum of shares, of 100 in all; a share is zero when lower priorities suffice */
  bool panic;
} na_priority;

/* The endpoints of a cluster, arranged for picking. */
typedef struct na_hosts {
  atomic_uint refs;
  uint32_t n;
  uint32_t npriorities;
  na_host *hosts; /* as configured, sorted by address and port */
  na_priority *priorities;
  uint32_t nvias;
  na_via *vias;
} na_hosts;

typedef struct na_cluster {
  atomic_uint refs;
  uint32_t slot;            /* its place in every snapshot: na_snapshot_cluster() */
  na_cluster_config config; /* defaults filled in */
  na_hosts *hosts;          /* never NULL; empty at first */
  na_cluster_state *state;
  na_slots *names; /* where the slot is held */
  char name[];
} na_cluster;

na_cluster *na_cluster_ref(na_cluster *cluster);
void na_cluster_unref(na_cluster *cluster);

/* Choose an endpoint as the cluster's policy says; NULL when there is none (flag UH). `random` is 64 fresh random bits;
 * `worker` the caller's index. Priorities as Envoy: the share of a priority is its healthy part x 1.4, the rest spills
 * to the next; below 50 % healthy, with no other priority to make up for it, health is ignored (panic).
 * Only for NA_CLUSTER_ENDPOINTS; NULL for other kinds. O(log endpoints). */
const na_host *na_cluster_pick(const na_cluster *cluster, uint64_t random, uint32_t worker);
/* As above for another attempt: avoids the n endpoints tried already where the priority has others (a few selections
 * by policy, as Envoy's previous_hosts predicate; then any other). `tried` are states, so they may come from an earlier
 * version of the cluster. */
const na_host *na_cluster_pick_other(const na_cluster *cluster, uint64_t random, uint32_t worker,
                                     const na_host_state *const *tried, uint32_t n);
/* As above, of the endpoints that connect() drew for a captured connection: those of a workload (na_host_state.local),
 * or with NA_DRAWN_ELSEWHERE those of none. NULL if there are none, or all of them were tried. O(endpoints) at worst.
 */
const na_host *na_cluster_pick_drawn(const na_cluster *cluster, uint64_t random, uint32_t worker, uint32_t drawn,
                                     const na_host_state *const *tried, uint32_t n);
/* Whether to make another attempt after the last one failed with `error`. Not where policy has refused
 * (-EKEYREJECTED), and where nobody answered in time (-ETIMEDOUT) only if there is an endpoint not tried yet: the same
 * one would be waited for as long again. Other arguments as above. */
bool na_cluster_is_worth_another(const na_cluster *cluster, uint64_t random, const na_host_state *const *tried,
                                 uint32_t n, int error);

/* Count one more against a limit; false (and counted in overflows) when the limit is reached: answer with flag UO.
 * Each success is undone by one na_cluster_release on any version of the cluster of the same name. */
bool na_cluster_acquire(const na_cluster *cluster, enum na_limit limit);
void na_cluster_release(const na_cluster *cluster, enum na_limit limit);
/* Count a request or TCP connection on an endpoint, from the pick until its end: what least-request goes by. */
void na_host_acquire(const na_host *host);
void na_host_release(const na_host *host);

/* Note that something was used since the last na_engine_usage; cheap when it was noted already. */
static inline void na_mark_used(atomic_uint *used) {
  if (!atomic_load_explicit(used, memory_order_relaxed))
    atomic_store_explicit(used, 1, memory_order_relaxed);
}

/* -- control thread -- */

/* Everything that a new cluster needs to know. */
typedef struct na_cluster_args {
  const char *name;
  const na_cluster_config *config;
  uint32_t slot; /* a held slot of names: the cluster takes it over on success */
  na_slots *names;
  uint32_t workers;
  uint64_t seed;              /* of the balancers' first positions */
  const na_cluster *previous; /* of the same name: gives the state, and the hosts when `hosts` is NULL; or NULL */
  na_hosts *hosts;            /* a reference is taken; or NULL */
} na_cluster_args;

/* A cluster with one reference. -ENOMEM, -EINVAL for a configuration out of range. */
int na_cluster_create(const na_cluster_args *args, na_cluster **out);
/* Endpoints as the builder gets them. */
typedef struct na_hosts_args {
  const na_endpoint *endpoints;
  size_t n;
  const uint32_t *via; /* per endpoint: 1 + index of its tunnel, or 0; NULL: all directly */
  const na_tunnel_config *tunnels;
  size_t ntunnels;
} na_hosts_args;

/* Arrange endpoints for picking, taking over the states of the `previous` ones (or NULL). -EINVAL: a weight or port of
 * 0, or an address and port twice. -ENOMEM. */
int na_hosts_create(const na_endpoint *endpoints, size_t n, const na_hosts *previous, na_hosts **out);
/* The same with tunnels; one address may be there several times, by different ones. Also -EINVAL: an index beyond the
 * tunnels, or a tunnel whose peer may be nobody. */
int na_hosts_create_via(const na_hosts_args *args, const na_hosts *previous, na_hosts **out);
/* The endpoint of that address and port which is reached by that tunnel (na_via.hash; 0: directly), or NULL.
 * O(log endpoints); any thread. */
const na_host *na_hosts_find(const na_hosts *hosts, const uint8_t address[16], uint16_t port, uint64_t via);
/* <0, 0 or >0: as it is sorted before, at, or behind a place. */
int na_local_endpoint_compare(const na_local_endpoint *local, const uint8_t address[16], uint16_t port);
/* Set na_host_state.local of all of them; what is not among the `n`, which are sorted, is 0. Control thread. */
void na_hosts_note_local(const na_hosts *hosts, const na_local_endpoint *local, size_t n);
na_hosts *na_hosts_ref(na_hosts *hosts);
void na_hosts_unref(na_hosts *hosts);

#endif
