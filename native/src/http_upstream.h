/* SPDX-License-Identifier: Apache-2.0
 *
 * The upstream side of HTTP/1: a connection that carries one request at a time, and goes back to its pool between them.
 */
#ifndef NODEAGENT_HTTP_UPSTREAM_H
#define NODEAGENT_HTTP_UPSTREAM_H

#include "http_request.h"
#include "upstream_pool.h"

struct na_upstream {
  na_stream stream;
  na_worker *worker;
  na_pool *pool;
  na_link idle; /* pool->idle, when unused */
  union {
    na_timer timer; /* connecting: its timeout; idle: the end of its stay in the pool, checked lazily */
    na_grave grave;
  };
  na_cluster *cluster; /* reference, for its limits; NULL: none */
  na_http_request *request;
  na_input in;
  na_h1_body body; /* of the response */
  na_address local;
  uint64_t idle_deadline_ms;
  uint64_t sent;        /* bytes handed to the kernel or kept for it, ever */
  uint64_t sent_before; /* of that, before this request */
  uint32_t scanned;
  uint32_t requests;
  bool reused : 1;
  bool counted : 1;    /* against the cluster's connections */
  bool pending : 1;    /* against the cluster's pending requests */
  bool head_done : 1;  /* the response's head was passed on */
  bool keep_alive : 1; /* the upstream allows another request */
  bool dead : 1;
};

/* Get a connection for request->remote: from the pool (unless fresh) or new. Sends the request as soon as it can. */
void na_upstream_assign(na_http_request *request, bool fresh);
/* The connection is there: send the request's head, and what of its body is at hand. */
void na_upstream_send(na_upstream *upstream);
/* Send what can be taken of the request's body. */
void na_upstream_pump(na_upstream *upstream);
/* Read the response and pass it on, as far as the client takes it. */
void na_upstream_respond(na_upstream *upstream);
/* The request is over (upstream->request is about to go): back to the pool, or closed. */
void na_upstream_release(na_upstream *upstream);
/* Go on reading at the end of this turn: the client has room. */
void na_upstream_resume(na_upstream *upstream);
/* Close, whatever it does; its request must be detached or not care any more. */
void na_upstream_close(na_upstream *upstream);

#endif
