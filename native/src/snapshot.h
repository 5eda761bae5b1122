/* SPDX-License-Identifier: Apache-2.0
 *
 * Snapshots: the configuration that workers go by, immutable and shared in parts.
 *
 * Making. The control thread makes a snapshot from the previous one (builder.c); whatever does not change is shared by
 * reference: a new endpoint makes one na_cluster and one array of cluster pointers, nothing else.
 *
 * Reading. A worker takes the current snapshot once per loop turn, na_snapshots_enter(), and uses that pointer until
 * the end of the turn, never longer. What must outlive the turn is kept by a reference of its own: a request in
 * progress holds its virtual host (na_vhost_ref, which keeps its routes) and its cluster (na_cluster_ref, which keeps
 * its endpoints). All else (destination, table, view, inbound) is looked up again next turn.
 *
 * Reclaiming. na_snapshots_enter() publishes the generation that the worker goes by. A snapshot is freed by the control
 * thread, during a later commit or na_engine_settled(), when every online worker has entered a newer generation. Nobody
 * waits: a worker that sleeps only delays the freeing, and each commit wakes the workers.
 *
 * Names and slots. A route's destination names its cluster, and a destination its route table, long before and after
 * they are replaced. So names are interned: a name gets a slot, the same in every snapshot, for as long as a snapshot
 * or a virtual host mentions it; snapshots hold an array from slot to cluster (and to table). A virtual host that
 * several snapshots share thus always leads to the current cluster: na_snapshot_cluster(snapshot, destination->slot).
 */
#ifndef NODEAGENT_SNAPSHOT_H
#define NODEAGENT_SNAPSHOT_H

#include "cluster.h"
#include "guards.h"
#include "identity.h"
#include "router.h"
#include "slots.h"
#include "table.h"

/* A weighted choice of a TCP destination. */
typedef struct na_destination_cluster {
  uint32_t slot;
  uint32_t weight;
} na_destination_cluster;

#define NA_ADDRESS_KEY 18 /* address (16) and port (2, network order) */

/* What a captured connection's original destination means. Immutable but for `used`. */
typedef struct na_destination {
  atomic_uint refs;
  atomic_uint used; /* na_mark_used */
  na_slots *table_names;
  na_slots *cluster_names;
  uint32_t tag;
  uint32_t protocol;   /* enum na_protocol */
  uint32_t table_slot; /* na_snapshot_table(); NA_NO_SLOT for TCP */
  uint64_t total_weight;
  uint8_t key[NA_ADDRESS_KEY];
  uint32_t n; /* no clusters: to the original destination */
  na_destination_cluster clusters[];
} na_destination;

/* The outbound configuration of a group of workloads. */
typedef struct na_view {
  atomic_uint refs;
  bool refuse_unknown; /* what matches no destination: refuse, else pass through */
  na_map destinations; /* by address and port */
  char name[];
} na_view;

/* A route table. */
typedef struct na_table {
  atomic_uint refs;
  na_slots *names;
  uint32_t slot;
  uint32_t tag;
  bool on_demand;
  na_domains *domains; /* never NULL */
  na_map vhosts;       /* by name */
  na_map unknown;      /* hosts without a virtual host of their own */
  uint64_t unknown_order;
  char name[];
} na_table;

/* What the ports of a workload speak, and who may come in. */
typedef struct na_inbound {
  atomic_uint refs;
  uint32_t workload;
  uint64_t generation;      /* of the snapshot that it came with */
  na_inbound_config config; /* guards by number, from 1 */
  uint32_t nguards;
  na_guards **guards; /* references; NULL: there are none at all */
  uint32_t nnames;
  na_inbound_name *names; /* owned, as their hosts are */
  uint32_t n;
  na_inbound_port ports[]; /* by port */
} na_inbound;

/* What may need configuration on demand. */
typedef struct na_hints {
  atomic_uint refs;
  uint32_t n;
  uint8_t ports[65536 / 8];
  uint8_t addresses[][16]; /* sorted */
} na_hints;

/* Slot -> cluster. */
typedef struct na_cluster_array {
  atomic_uint refs;
  uint32_t n;
  na_cluster *at[];
} na_cluster_array;

/* Slot -> table. */
typedef struct na_table_array {
  atomic_uint refs;
  uint32_t n;
  na_table *at[];
} na_table_array;

/* A shared map of views (by name), inbound configurations (by workload), identities (by name) or DNS names. */
typedef struct na_shared_map {
  atomic_uint refs;
  na_map map;
} na_shared_map;

typedef struct na_snapshot {
  uint64_t generation; /* 1 is the empty one; each commit adds 1 */
  na_cluster_array *clusters;
  na_table_array *tables;
  na_shared_map *views;
  na_shared_map *inbounds;
  na_shared_map *identities;
  na_shared_map *dns; /* of na_dns_name */
  na_hints *hints;
  bool unanswered;                  /* nobody answers needs: do not wait */
  uint64_t inbound_generation;      /* of the last change of any inbound configuration */
  struct na_snapshot *next_retired; /* the registry's */
} na_snapshot;

/* ---- lookups by workers: no allocation, no lock ------------------------------------------------------------- */

/* The view of that name, or NULL. */
const na_view *na_snapshot_view(const na_snapshot *snapshot, const char *name);
/* The meaning of address:port: exact, else that port of any address, else NULL. Mark it: na_mark_used(&d->used). */
na_destination *na_view_destination(const na_view *view, const uint8_t address[16], uint16_t port);
/* Whether address:port may get a meaning on demand: a virtual address, or a port of HTTP services. */
bool na_snapshot_hinted(const na_snapshot *snapshot, const uint8_t address[16], uint16_t port);
/* The cluster of a slot (route destinations and TCP destinations), or NULL when it is gone (flag NC). */
na_cluster *na_snapshot_cluster(const na_snapshot *snapshot, uint32_t slot);
/* Choose a cluster of a TCP destination by weight; *passthrough tells "to the original destination". NULL otherwise
 * means that the cluster is gone. */
na_cluster *na_snapshot_pick_cluster(const na_snapshot *snapshot, const na_destination *destination, uint64_t random,
                                     bool *passthrough);
/* The route table of a destination's table_slot, or NULL. */
const na_table *na_snapshot_table(const na_snapshot *snapshot, uint32_t slot);
/* The inbound configuration of a workload; NULL: not in force. */
const na_inbound *na_snapshot_inbound(const na_snapshot *snapshot, uint32_t workload);
/* The same for one port; NULL also where the port is refused (NA_PROTOCOL_REFUSE). */
const na_inbound *na_snapshot_inbound_port(const na_snapshot *snapshot, uint32_t workload, uint16_t port);
/* The identity of that name as it is now, or NULL. What outlives the turn takes a reference: na_identity_ref(). */
na_identity *na_snapshot_identity(const na_snapshot *snapshot, const char *name);
/* What a port speaks, and its tag (0 when it takes the fallback). */
enum na_protocol na_inbound_protocol(const na_inbound *inbound, uint16_t port, uint32_t *tag);
/* The first stage of what is asked of connections, or requests, at a port; NULL: nothing. *guards is whose it is. */
const na_stage *na_inbound_stages(const na_inbound *inbound, uint16_t port, enum na_guarded guarded,
                                  na_guards **guards);
/* How slashes in paths are read there: NA_SLASHES_*. */
uint8_t na_inbound_slashes(const na_inbound *inbound, uint16_t port);
/* The same of what is asked of each connection to any port first. */
const na_stage *na_inbound_every(const na_inbound *inbound);
/* The workload's port for a port of one of its services; 0: it has none of the name. */
uint16_t na_inbound_target(const na_inbound *inbound, na_str host, uint16_t port);

/* The host of an authority as events and unknown hosts have it: lower case, without port. NUL-terminated and cut to
 * size; returns its length. */
size_t na_host_of(na_str authority, char *out, size_t size);
/* Whether the table is known to have no virtual host of its own for this host (na_host_of). */
bool na_table_host_unknown(const na_table *table, const char *host, size_t n);
/* The whole decision for a request: its virtual host, or NULL for none (404, flag NR). *wait tells that the table is on
 * demand and this host's virtual host has not been asked for: raise NA_EVENT_HOST with the host (na_host_of) and park;
 * when the wait is over without it, the returned one (`*`, or NULL) is what to use. */
na_vhost *na_table_vhost(const na_table *table, na_str authority, bool *wait);

/* ---- the registry: embedded in na_engine -------------------------------------------------------------------- */

#define NA_MAX_WORKERS 64
#define NA_ERROR_SIZE  512

/* The generation that one worker goes by; on its own cache line. UINT64_MAX: offline. */
typedef struct na_seen {
  _Alignas(NA_CACHE_LINE) _Atomic uint64_t generation;
} na_seen;

typedef struct na_snapshots {
  _Alignas(NA_CACHE_LINE) _Atomic(na_snapshot *) current; /* never NULL between init and free */
  na_seen seen[NA_MAX_WORKERS];
  uint32_t workers;
  uint64_t seed;           /* where balancers start */
  na_slots *cluster_names; /* control thread, but for the reference counts of slots */
  na_slots *table_names;
  na_names *policies;   /* the engine's; or NULL */
  na_snapshot *retired; /* oldest first */
  na_snapshot *last_retired;
  void (*wake)(void *context); /* make every worker begin a loop turn soon; or NULL */
  void *context;
  uint64_t unknown_evicted; /* unknown hosts forgotten because a table was full of them */
  char error[NA_ERROR_SIZE];
} na_snapshots;

/* The registry of an engine. Implemented by engine.c. */
na_snapshots *na_engine_snapshots(na_engine *engine);

/* Begin with an empty snapshot and all workers offline. `wake` is called after each publication, on the control thread,
 * and must not block. */
int na_snapshots_init(na_snapshots *registry, uint32_t workers, void (*wake)(void *context), void *context);
/* Free all snapshots. All workers are offline and all references to virtual hosts and clusters given back. */
void na_snapshots_free(na_snapshots *registry);

/* Control thread, before a worker's thread is started and after it was joined. */
void na_snapshots_online(na_snapshots *registry, uint32_t worker);
void na_snapshots_offline(na_snapshots *registry, uint32_t worker);

/* Worker: the snapshot for this loop turn. Call first thing after epoll_wait returns; every pointer got from an earlier
 * snapshot is dead now. A change of ->generation means that a commit happened: try parked things again. */
static inline const na_snapshot *na_snapshots_enter(na_snapshots *registry, uint32_t worker) {
  na_snapshot *snapshot = atomic_load_explicit(&registry->current, memory_order_acquire);
  /* Release: whatever this worker read of older snapshots happened before the control thread may free them. */
  atomic_store_explicit(&registry->seen[worker].generation, snapshot->generation, memory_order_release);
  return snapshot;
}

/* Control thread: the snapshot in force; its cluster and its table of a name, or NULL. */
const na_snapshot *na_snapshots_current(const na_snapshots *registry);
na_cluster *na_snapshots_cluster(const na_snapshots *registry, const char *name);
const na_table *na_snapshots_table(const na_snapshots *registry, const char *name);
/* Control thread: make a snapshot current, retire the one before, wake the workers, free what nobody can see. */
void na_snapshots_publish(na_snapshots *registry, na_snapshot *snapshot);
/* Commits so far, and those in force on every online worker. The latter also frees old snapshots. */
uint64_t na_snapshots_committed(const na_snapshots *registry);
uint64_t na_snapshots_settled(na_snapshots *registry);
/* Take marks of use: see na_engine_usage. */
size_t na_snapshots_usage(na_snapshots *registry, uint32_t *tags, size_t max);
/* Set the text of na_engine_error(). */
void na_snapshots_error(na_snapshots *registry, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As na_builder_new, without an engine. */
int na_snapshots_builder(na_snapshots *registry, na_builder **out);
/* Publish an identity (a reference is taken over, also on error), or with NULL its removal. -ESTALE never happens to
 * it: it begins and commits at once. */
int na_snapshots_set_identity(na_snapshots *registry, const char *name, na_identity *identity);
/* Take a workload's inbound configuration out of force, so that a later workload of the same id starts without. Call it
 * when the last connection of a removed workload is gone. */
int na_snapshots_drop_inbound(na_snapshots *registry, uint32_t workload);

#endif
