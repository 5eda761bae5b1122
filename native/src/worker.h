/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker: one thread with its own loop, connections, pools and statistics. Nothing here is touched by another thread,
 * except counters (read), the rings (their other end) and the mailbox.
 */
#ifndef NODEAGENT_WORKER_H
#define NODEAGENT_WORKER_H

#include <pthread.h>
#include <semaphore.h>

#include "access.h"
#include "address.h"
#include "counters.h"
#include "events.h"
#include "http1.h"
#include "loop.h"
#include "netns.h"
#include "snapshot.h"
#include "stats.h"
#include "tls.h"
#include "workload.h"

typedef struct na_worker na_worker;
typedef struct na_pools na_pools;           /* upstream_pool.h */
typedef struct na_parking na_parking;       /* parking.h */
typedef struct na_hbone na_hbone;           /* hbone.h */
typedef struct na_principals na_principals; /* principals.h */
typedef struct na_neighbours na_neighbours; /* neighbours.h */
typedef struct na_jwt_cache na_jwt_cache;   /* jwt.h */
typedef struct na_callouts na_callouts;     /* channel.h */
typedef struct na_dns na_dns;               /* dns_server.h */

/* Pipes kept for splicing, per worker. */
#define NA_PIPES 16

/* HTTP/2 frames on their way out, in one piece; used by the function that fills and sends it. Four TLS records. */
#define NA_GATHER_BYTES 65536

typedef struct na_gather {
  char *bytes;
  size_t n;
} na_gather;

/* Something for a worker to do, sent by the control thread, which waits for its end. */
typedef struct na_command {
  struct na_command *next;
  void (*fn)(na_worker *worker, void *argument);
  void *argument;
  sem_t *done;
} na_command;

typedef struct na_http_request na_http_request; /* http_request.h */

struct na_worker {
  const na_config *config;
  na_snapshots *snapshots;
  uint32_t index;
  pthread_t thread;
  bool started;
  na_loop loop;
  na_watch mailbox_watch;
  _Atomic(na_command *) mailbox;
  bool stopping; /* no new connections; all are draining */
  bool stopped;  /* leave the loop */
  na_netns home; /* the thread's own network namespace */
  int spare_fd;  /* given up to accept and close when descriptors run out */

  const na_snapshot *snapshot; /* of this turn */
  uint64_t generation;         /* that parked things were tried against */
  uint64_t inbound_generation; /* that connections were last asked against */

  na_link listeners;
  na_link conns;
  na_link reporting; /* relays with bytes not in the statistics yet */
  na_link drains;
  na_link unmet; /* introductions that nobody has taken yet (neighbours.h) */
  uint64_t next_id;
  na_pools *pools;
  na_parking *parking;
  na_hbone *hbone;
  na_jwt_cache *jwts;        /* NULL until a token has come */
  na_callouts *callouts;     /* NULL until somebody was asked */
  na_dns *dns;               /* NULL until DNS is captured */
  na_principals *principals; /* the engine's */
  na_neighbours *neighbours; /* the engine's; NULL: there are none */
  na_tls_memory tls;
  na_gather gather;
  uint32_t handshakes_left; /* steps of TLS handshakes in this turn */
  int pipes[NA_PIPES][2];
  uint32_t npipes;

  na_counters counters;
  na_stats stats;
  na_access_ring access;
  na_event_ring events;
  uint64_t random[2];

  char *io;       /* the one read buffer; used only by the function that an event called */
  size_t io_size; /* config->buffer_bytes: what one direction of a connection queues at most, and a head */
  char *scratch;  /* heads on their way out */
  size_t scratch_size;
  na_h1_head *head; /* the head being looked at; used as `io` is */
  /* The request that `head` was parsed for, as long as the bytes that it points to are there; NULL: nobody's. */
  const na_http_request *head_of;
};

/* Prepare a worker, not running. */
int na_worker_init(na_worker *worker, const na_config *config, na_snapshots *snapshots, uint32_t index, int event_fd);
void na_worker_free(na_worker *worker);
int na_worker_start(na_worker *worker);
/* Make the loop begin a turn. Any thread; never blocks. */
void na_worker_wake(na_worker *worker);
/* Control thread: run fn on the worker and wait for its end; at once when the thread is not running. */
void na_worker_call(na_worker *worker, void (*fn)(na_worker *worker, void *argument), void *argument);
/* Control thread: stop as na_engine_stop says, and join. */
void na_worker_begin_stop(na_worker *worker, uint32_t drain_ms);
void na_worker_join(na_worker *worker);
/* Worker: let connections of the workload (NULL: of all) drain for at most drain_ms, then cut them. */
void na_worker_drain(na_worker *worker, na_workload *workload, uint32_t drain_ms);
/* Worker: a connection of the workload is gone. */
void na_worker_conn_gone(na_worker *worker, const na_workload *workload);

/* Worker: a tunnel is gone. */
void na_worker_tunnel_gone(na_worker *worker);

/* 64 random bits; not for secrets. */
static inline uint64_t na_random(na_worker *worker) {
  /* xoroshiro128++ */
  uint64_t a = worker->random[0], b = worker->random[1];
  uint64_t sum = a + b, result = (sum << 17 | sum >> 47) + a;
  b ^= a;
  worker->random[0] = (a << 49 | a >> 15) ^ b ^ (b << 21);
  worker->random[1] = b << 28 | b >> 36;
  return result;
}

static inline void na_worker_count(na_worker *worker, enum na_counter_id id) {
  na_count(&worker->counters, id);
}

#endif
