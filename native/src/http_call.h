/* SPDX-License-Identifier: Apache-2.0
 *
 * A request of the engine's own over HTTP/1.1, and its whole answer. One at a time on a connection, which is kept.
 */
#ifndef NODEAGENT_HTTP_CALL_H
#define NODEAGENT_HTTP_CALL_H

#include "channel.h"
#include "http_body.h"

typedef struct na_http_channel na_http_channel;
typedef struct na_http_call na_http_call;

/* A call; the caller's memory, zeroed. */
struct na_http_call {
  /* The answer, with error 0; or -errno: -ESTALE when a connection that had been kept was closed before it gave any:
   * start again, fresh. Once, from an event of its own; the call is over then. */
  void (*done)(na_http_call *call, int error, const na_h1_head *head, na_str body);
  na_http_channel *channel; /* NULL: not in progress */
  const char *request;      /* head and body; the caller's until the end */
  size_t n;
  bool is_head; /* its method is HEAD */
};

/* Begin; fresh: over a new connection. -errno: it did not come about, and `done` is not called. */
int na_http_call_start(na_http_call *call, const na_channel_target *target, bool fresh);
/* Give it up; `done` is not called any more. Harmless when it is not in progress. */
void na_http_call_cancel(na_http_call *call);

#endif
