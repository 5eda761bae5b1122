/* SPDX-License-Identifier: Apache-2.0
 *
 * A request: an object of its own, apart from the connections that carry it. It can wait (for configuration, for a
 * connection) and go on later, in whatever event that happens. The codec that received it answers through
 * na_responder; the codec that sends it upstream is http_upstream.h.
 *
 *   started -> (parked) -> routed -> connecting -> sent -> answering -> finished
 *
 * Whoever answers calls exactly one of na_request_finish() and na_request_abort() in the end.
 */
#ifndef NODEAGENT_HTTP_REQUEST_H
#define NODEAGENT_HTTP_REQUEST_H

#include "conn.h"
#include "http_body.h"

typedef struct na_upstream na_upstream; /* http_upstream.h */
typedef struct na_refusal na_refusal;   /* authz.h */
typedef struct na_tunnel na_tunnel;     /* http_tunnel.h */

/* Attempts after failed connects (Istio's default retry policy: connect-failure, 2 attempts more). */
#define NA_REQUEST_RETRIES 2
/* Body bytes kept so that a request can be sent again when a pooled connection turns out to be closed. */
#define NA_REPLAY_BYTES 16384

/* A response head on its way to the client. */
typedef struct na_response {
  uint16_t status;
  na_str reason;
  const na_header *headers;
  uint32_t nheaders;
  uint8_t body; /* enum na_body, as it comes from upstream */
  bool local;   /* made here */
  bool upgrade; /* 101 */
} na_response;

/* How the codec that received a request gives the answer and the request's body. Functions that send return 0 or
 * -errno; after an error the request is aborted by its caller. */
typedef struct na_responder {
  int (*head)(na_http_request *request, const na_response *response, char *body, size_t n, bool end);
  int (*body)(na_http_request *request, char *bytes, size_t n, bool end);
  /* Body bytes at hand, consumed by the call: forward them all. -1 with *error: invalid framing. The pointer holds
   * until the connection is read next. */
  long (*take)(na_http_request *request, const char **bytes, na_h1_error *error);
  /* The payload of the body that is at hand, without consuming it: append at most `max` bytes to `out`; *end: it is all
   * there. -EPROTO: invalid framing. */
  int (*peek)(na_http_request *request, na_buffer *out, size_t max, bool *end);
  /* Room for more body came up. */
  void (*more)(na_http_request *request);
  /* The client's stream is full: send nothing now, na_request_writable() will be called. */
  bool (*blocked)(na_http_request *request);
  /* The request is over: in order, or (aborted) with an answer that cannot be completed. Last call. */
  void (*finished)(na_http_request *request, bool aborted);
  /* The upstream has switched protocols (101): join the streams from here on. */
  void (*tunnel)(na_http_request *request);
} na_responder;

enum na_request_state {
  NA_REQUEST_STARTED,
  NA_REQUEST_PARKED,
  NA_REQUEST_CONNECTING,
  NA_REQUEST_SENT,
  NA_REQUEST_ANSWERING,
  NA_REQUEST_FINISHED,
};

/* What the access record says of a request; views into its head. */
typedef struct na_request_texts {
  na_str method;
  na_str authority;
  na_str path; /* with the query */
  na_str user_agent;
  na_str forwarded_for;
  na_str request_id;
} na_request_texts;

struct na_http_request {
  na_worker *worker;
  na_conn *conn;
  const na_responder *responder;
  na_upstream *upstream;
  na_tunnel *tunnel;     /* after a 101 */
  na_vhost *vhost;       /* reference; owns route and destination */
  const na_route *route; /* NULL: inbound, or none matched */
  const na_route_destination *destination;
  na_cluster *cluster; /* reference; NULL: the original destination */
  const na_host *host; /* of the cluster */
  const na_host_state *tried[NA_REQUEST_RETRIES + 1];
  na_waiter waiter;
  na_timer timer;         /* the route's timeout */
  na_address remote;      /* where it goes */
  na_address local;       /* our end of that connection */
  struct na_authz *authz; /* what its guards keep, or NULL; authz.h */
  na_buffer replay;       /* body bytes sent so far, while it can be sent again */
  uint64_t start_us;
  uint64_t sent_us;  /* the request was sent completely */
  uint64_t first_us; /* the response began */
  uint64_t last_ms;  /* bytes moved last */
  uint64_t bytes_in;
  uint64_t bytes_out;
  const char *detail; /* response code details, static */
  char *failure;      /* of the upstream */
  uint32_t timeout_ms;
  uint32_t flags; /* enum na_flag */
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t route_tag;
  uint32_t principal; /* of the upstream's tunnel */
  uint32_t audit;     /* as in na_access_record */
  uint32_t head_bytes;
  na_request_texts texts; /* only when there are access records */
  uint16_t status;
  uint8_t state; /* enum na_request_state */
  uint8_t ntried;
  bool counted : 1;    /* against the cluster's requests */
  bool body_sent : 1;  /* to its end */
  bool replayable : 1; /* head and `replay` are all that was sent */
  bool replayed : 1;
  bool invited : 1; /* the client was told to continue; no second time */
  bool is_head : 1;
  bool idempotent : 1;
  bool upgrade : 1;
  bool grpc : 1;
  bool mutual_tls : 1; /* the upstream is tunnelled */
  bool http10 : 1;
  char generated_id[37]; /* x-request-id, when the client sent none */
  char head[];           /* as received: parsed anew when it is needed after its event */
};

/* Begin: `head` was parsed from the bytes at `raw`. May finish before it returns. */
void na_request_start(na_conn *conn, const na_responder *responder, const na_h1_head *head, const char *raw);
/* A request that could not even be parsed: answered with the status. */
void na_request_refuse(na_conn *conn, const na_responder *responder, uint16_t status, uint32_t flags,
                       const char *detail, const char *body);
/* The request's head, in worker->head: parsed anew unless it is there still. */
const na_h1_head *na_request_head(na_http_request *request);
/* The same, for those that edit it (head_edits.h). */
na_h1_head *na_request_own_head(na_http_request *request);
/* Its guards let it pass: go on. */
void na_request_guarded(na_http_request *request);
/* Refuse it as its guards say. */
void na_request_deny(na_http_request *request, const na_refusal *refusal);

/* Find an endpoint and a connection to it: the first time, after a failed connect, or to send it again. */
void na_request_connect(na_http_request *request, bool fresh);
/* Answer from here. text: the body, or NULL. Replaces whatever was going on upstream. */
void na_request_reply(na_http_request *request, uint16_t status, uint32_t flags, const char *detail, const char *text);
/* The response was passed on to its end. */
void na_request_finish(na_http_request *request);
/* It cannot be completed: the client sees its connection or stream reset. */
void na_request_abort(na_http_request *request, uint32_t flags, const char *detail);

/* The whole request body was sent upstream: the route's timeout begins. */
void na_request_body_sent(na_http_request *request);
/* The responder can take bytes again. */
void na_request_writable(na_http_request *request);
/* Whether its upstream takes body bytes now. */
bool na_request_takes_body(const na_http_request *request);
/* More of the body can be taken from the responder. */
void na_request_pump(na_http_request *request);
/* No connection came about; nothing was sent. */
void na_request_connect_failed(na_http_request *request, int error);
/* The upstream went away before the response began. stale: it was a pooled connection that had died. */
void na_request_upstream_lost(na_http_request *request, bool stale);

/* http_reply.c: make the answers. */
void na_reply_redirect(na_http_request *request);
void na_reply_direct(na_http_request *request);
void na_reply_text(na_http_request *request, uint16_t status, const char *text);
void na_reply_refusal(na_http_request *request, const na_refusal *refusal);

#endif
