/* SPDX-License-Identifier: Apache-2.0
 *
 * Unary calls of gRPC services (github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), without compression. Calls to
 * one endpoint share a connection.
 */
#ifndef NODEAGENT_GRPC_H
#define NODEAGENT_GRPC_H

#include "channel.h"

typedef struct na_grpc na_grpc;
typedef struct na_grpc_call na_grpc_call;

/* A call; the caller's memory, zeroed. */
struct na_grpc_call {
  /* The answer; error 0 or -errno (-EPROTO: another status than OK). Once, from an event of its own; the call is over
   * then. */
  void (*done)(na_grpc_call *call, int error, na_str message);
  na_grpc *grpc; /* NULL: not in progress */
  na_link link;  /* of its connection */
  int32_t stream;
  char *request; /* framed; owned */
  size_t request_n;
  size_t sent;
  na_buffer answer; /* framed */
  uint16_t http_status;
  int grpc_status; /* -1: none came */
  int error;       /* how it ended */
  bool is_grpc;    /* its content type */
  bool submitted;
};

typedef struct na_grpc_args {
  na_channel_target target;
  const char *path; /* `/package.Service/Method` */
  na_str authority;
  const na_header *metadata;
  uint32_t nmetadata;
  uint32_t timeout_ms; /* what the service is told; the caller's timer is its own */
  na_str message;
} na_grpc_args;

/* Begin. -errno: it did not come about, and `done` is not called. */
int na_grpc_start(na_grpc_call *call, const na_grpc_args *args);
/* Give it up; `done` is not called any more. Harmless when it is not in progress. timed_out: there was no answer in
 * time: the connection gets no more calls, as it may lead nowhere. */
void na_grpc_cancel(na_grpc_call *call, bool timed_out);

#endif
