/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections within the node that have passed the engine (bpf/include/bypass.h), followed by what programs tell of
 * them, so that statistics and access records are what they were if the engine had carried them: they come out of
 * na_engine_drain_stats(), na_engine_drain_access(), na_engine_usage() and na_engine_connections() with the engine's
 * own.
 *
 * Programs know numbers; what these stand for is asked of the caller (na_flow_question), and remembered.
 */
#ifndef NODEAGENT_FLOWS_H
#define NODEAGENT_FLOWS_H

#include <nodeagent/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Policies of one connection that are counted. */
#define NA_FLOW_POLICIES 8

typedef struct na_flows na_flows;

/* Zero takes the default named beside the field. */
typedef struct na_flows_config {
  uint32_t life;           /* of this agent (struct na_life); not 0 */
  uint32_t max_flows;      /* followed at once; 65536. Beyond, a connection is told of when it has ended */
  uint32_t stat_rows;      /* as in na_config */
  uint32_t access_records; /* as in na_config */
  uint32_t access_log;     /* 1: produce access records */
} na_flows_config;

/* Follow the connections that a ring buffer (`events`; the descriptor stays the caller's) tells of. One for an engine,
 * from the thread that calls the engine; freed before it. -EEXIST if the engine has one, -EINVAL. */
NA_API int na_flows_new(na_engine *engine, int ring_fd, const na_flows_config *config, na_flows **out);
NA_API void na_flows_free(na_flows *flows);
/* Readable when many events wait: fewer are told of by nothing but na_flows_read(). */
NA_API int na_flows_fd(const na_flows *flows);

/* An endpoint of a cluster that connect() may reach past the engine, and the workload that is there. */
typedef struct na_local_endpoint {
  uint8_t address[16];
  uint16_t port;
  uint16_t reserved;
  uint32_t workload;
} na_local_endpoint;

/* Say which ones a cluster has (n, by address and port), in place of what was said before; nothing is said of those
 * that come later. A captured connection then goes to the endpoint that connect() drew for it, or to another one if
 * that fails. -ENOENT: there is no such cluster; -EINVAL: they are not sorted, or one is there twice. */
NA_API int na_cluster_local(na_engine *engine, const char *cluster, const na_local_endpoint *local, size_t n);

/* What one would know of a connection: struct na_bypass_key and struct na_bypass without the ports that differ between
 * a client's connections. */
typedef struct na_flow_question {
  uint8_t source[16];
  uint8_t destination[16];
  uint8_t asked[16];
  uint64_t netns_cookie; /* of the client */
  uint32_t life;         /* under which the three numbers below were given out */
  uint32_t source_workload;
  uint32_t destination_workload;
  uint32_t service;
  uint32_t denied; /* 1: it was, at connect() */
  uint32_t policy; /* denied: na_access_entry.policy */
  uint16_t destination_port;
  uint16_t asked_port;
  uint32_t reserved;
} na_flow_question;

/* The answer. A workload that is not there any more is 0: nothing is told in its name. */
typedef struct na_flow_names {
  uint32_t source;      /* the engine's number of the client's workload */
  uint32_t destination; /* the same of the server's */
  uint32_t asked_tag;   /* of the destination (na_destination_config) */
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t inbound_tag;         /* of the inbound port */
  const char *source_principal; /* SPIFFE IDs; "" for both: the connection is plaintext to the mesh */
  const char *destination_principal;
  const char *const *policies; /* that allow it, n_policies */
  size_t n_policies;
  const char *policy; /* that denies it; "": none, or no rule allows it */
  const char *detail; /* why it is denied (%CONNECTION_TERMINATION_DETAILS%); "" else */
} na_flow_names;

enum na_flows_step {
  NA_FLOWS_DONE = 0,    /* nothing waits */
  NA_FLOWS_MORE = 1,    /* `max` events were read, and more may wait */
  NA_FLOWS_UNNAMED = 2, /* `question` has to be answered first: na_flows_name(), then again */
};

/* Read up to `max` events. */
NA_API int na_flows_read(na_flows *flows, uint32_t max, na_flow_question *question);
/* Answer the last question; what has more than NA_FLOW_POLICIES policies is counted for as many. */
NA_API int na_flows_name(na_flows *flows, const na_flow_names *names);
/* Ask anew from now on: configuration has changed. */
NA_API void na_flows_forget_names(na_flows *flows);

/* Follow a connection of an earlier life, by its key and value in the map `bypassed`: what it has carried until the
 * next sample is not counted (the earlier agent has). Said again, one whose names had no cluster is asked for once
 * more. NA_FLOWS_DONE or NA_FLOWS_UNNAMED. */
NA_API int na_flows_adopt(na_flows *flows, const void *key, const void *value, na_flow_question *question);

/* What the client's socket of a connection has carried until now; payload. */
typedef struct na_flow_sample {
  uint64_t socket_cookie;
  uint64_t sent;
  uint64_t received;
  uint32_t srtt_us;
  uint32_t retransmits;
} na_flow_sample;

/* Clients' namespaces of followed connections, by their cookies, each once; returns how many. */
NA_API size_t na_flows_namespaces(const na_flows *flows, uint64_t *cookies, size_t max);
/* Count what live connections have carried since the last time. `looked_at` are the namespaces in which the samples are
 * all that live; connections there that two rounds in a row have missed are gone without a word, and end here. */
NA_API void na_flows_round(na_flows *flows, const na_flow_sample *samples, size_t n, const uint64_t *looked_at,
                           size_t n_namespaces);
/* A connection was, or is about to be, ended because policy does not allow it any more: `detail` is what its record
 * will say. Nothing happens if it is not followed. */
NA_API void na_flows_revoked(na_flows *flows, uint64_t socket_cookie, const char *detail);

/* Counters and gauges, as those of the engine. */
NA_API const na_counter_info *na_flows_counter_info(size_t index);
NA_API uint64_t na_flows_counter(const na_flows *flows, size_t index);

#ifdef __cplusplus
}
#endif

#endif
