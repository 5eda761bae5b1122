/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections of the engine's own, to services that it asks something: authorization services. They are opened in the
 * namespace of the workload that is concerned, directly or through the endpoint's tunnel, and kept for a while. What is
 * spoken over them is grpc.c or http_call.c.
 */
#ifndef NODEAGENT_CHANNEL_H
#define NODEAGENT_CHANNEL_H

#include "address.h"
#include "cluster.h"
#include "worker.h"

/* Without use. */
#define NA_CHANNEL_IDLE_MS 60000
/* Of an answer, all in all. */
#define NA_MAX_CALL_ANSWER 262144

typedef struct na_channel na_channel;

/* What is spoken over it. */
typedef struct na_channel_kind {
  /* It is connected. */
  void (*connected)(na_channel *channel);
  /* Bytes may be read, or sent again. */
  void (*ready)(na_channel *channel);
  /* It is ending: tell whoever uses it. It is freed afterwards. */
  void (*failed)(na_channel *channel, int error);
  /* Whether somebody uses it. */
  bool (*in_use)(const na_channel *channel);
  void (*free)(na_channel *channel);
} na_channel_kind;

/* Embedded first in what a kind makes of it. */
struct na_channel {
  na_stream io;
  const na_channel_kind *kind;
  na_worker *worker;
  na_workload *workload; /* reference */
  na_cluster *cluster;   /* reference */
  na_address remote;
  uint64_t via;
  na_link link; /* worker->callouts */
  union {
    na_timer timer; /* of being idle */
    na_grave grave;
  };
  bool dead;
};

typedef struct na_channel_target {
  na_worker *worker;
  na_workload *workload;
  na_cluster *cluster;
  const na_host *host;
  const na_address *client; /* on whose behalf */
} na_channel_target;

/* All channels of a worker, and the calls over them. */
typedef struct na_callouts {
  na_link channels;
  uint32_t nchannels;
  uint32_t ncalls; /* in progress */
} na_callouts;

/* Begin to connect a zeroed channel. -errno: it is the caller's to free. */
int na_channel_open(na_channel *channel, const na_channel_kind *kind, const na_channel_target *target);
/* One that leads to the target already and may be used again, for which `fits` is true; or NULL. */
na_channel *na_channel_find(const na_channel_target *target, const na_channel_kind *kind,
                            bool (*fits)(const na_channel *channel));
/* Nobody uses it for now. It may be closed at once. */
void na_channel_rest(na_channel *channel);
/* End it: kind->failed, then, at the end of the turn, kind->free. */
void na_channel_close(na_channel *channel, int error);
/* The workload (NULL: each one) is going: end what is not in use; the rest ends with its last call. */
void na_channels_drain(na_worker *worker, const na_workload *workload);

/* The worker's; NULL for want of memory. */
na_callouts *na_callouts_of(na_worker *worker);
/* End all. */
void na_callouts_free(na_worker *worker);

#endif
