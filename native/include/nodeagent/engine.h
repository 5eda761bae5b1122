/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's public interface; its larger parts are in the headers that are included at the end.
 *
 * Conventions
 *  - Functions return 0 (or a count) or -errno. A builder also keeps a message: na_builder_error().
 *  - Strings are NUL-terminated UTF-8 and are copied; byte blobs come with a length and are copied.
 *  - File descriptors passed in become the engine's unless the comment says otherwise.
 *  - Addresses are 16 bytes in network order; IPv4 is IPv4-mapped (::ffff:a.b.c.d). Ports are in host order.
 *  - Times are milliseconds unless the name says otherwise. 0 in a limit or timeout means its default;
 *    NA_NEVER means none.
 *  - Thread safety: one control thread at a time calls in here (the caller holds a lock); workers never do.
 *  - These files are parsed by cffi after preprocessor lines are dropped: keep them to plain declarations.
 */
#ifndef NODEAGENT_ENGINE_H
#define NODEAGENT_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define NA_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define NA_NEVER 4294967295

typedef struct na_engine na_engine;
typedef struct na_builder na_builder;
typedef struct na_vhost na_vhost;
typedef struct na_route na_route;
typedef struct na_guards na_guards;

/* ---- engine ------------------------------------------------------------------------------------------------ */

/* Limits and defaults of one engine. Zero takes the default named beside the field. */
typedef struct na_config {
  uint32_t workers;                 /* threads; 1 */
  uint32_t max_connections;         /* per worker, downstream; 8000 (nofile / 2 at most) */
  uint32_t max_head_bytes;          /* request or response head; 61440 (431, 502) */
  uint32_t max_headers;             /* 100 */
  uint32_t max_request_line;        /* 8192 (414) */
  uint32_t buffer_bytes;            /* bytes queued per direction before reading stops; 65536 */
  uint32_t detect_timeout_ms;       /* silence after which an undeclared port is taken for server-first TCP; 100 */
  uint32_t head_timeout_ms;         /* from first byte to end of head; 10000 (408) */
  uint32_t idle_timeout_ms;         /* connection without traffic; 3600000 */
  uint32_t request_idle_timeout_ms; /* request without bytes either way; 300000 (504 or reset) */
  uint32_t pool_idle_timeout_ms;    /* unused upstream connection; 60000 */
  uint32_t pool_max_idle;           /* unused upstream connections per worker, cluster, source and endpoint; 1024 */
  uint32_t on_demand_timeout_ms;    /* how long a connection waits for its configuration; 2000 */
  uint32_t max_parked;              /* connections and requests waiting, per worker; 1024 */
  uint32_t stat_rows;               /* distinct stat keys per worker between two drains; 4096 */
  uint32_t access_records;          /* access records per worker between two drains; 2048 (dropped and counted above) */
  uint32_t access_log;              /* 1: produce access records */
  uint32_t events;                  /* pending events; 1024 */
  uint32_t hbone_max_tunnels;       /* TLS connections per worker and direction; 1024 */
  uint32_t hbone_max_handshakes;    /* of those accepted, not authenticated yet; 256 */
  uint32_t hbone_max_streams;       /* that a peer may have open in a tunnel; 200 */
  uint32_t hbone_stream_window;     /* bytes in flight to us per stream; 1048576 */
  uint32_t hbone_window;            /* the same for all streams of a tunnel; 16777216 */
  uint32_t hbone_idle_timeout_ms;   /* tunnel without streams; 300000 */
  uint32_t hbone_handshake_timeout_ms; /* of an accepted connection; 10000 */
  uint32_t
      hbone_ping_ms; /* silence after which the peer is pinged; twice that without an answer ends the tunnel; 10000 */
  uint32_t dns_max_questions;    /* waiting for name servers, per worker; 1024 (SERVFAIL) */
  uint32_t dns_socket_questions; /* of those, by one listening socket, so that a workload starves no other; 256 */
  uint32_t dns_max_streams;      /* DNS connections over TCP, per worker; 256 (closed) */
  uint32_t dns_workload_streams; /* of those, of one workload; 64 */
  uint32_t dns_timeout_ms;       /* how long a name server may take; 5000 */
  uint32_t dns_idle_timeout_ms;  /* DNS connection without a question; 10000 */
  uint32_t dns_flows; /* descriptor of the BPF map from na_flow to na_destination (nodeagent_abi.h), which says whom a
                         client of NA_LISTENER_DNS asked; stays the caller's. 0: conntrack is asked */
  uint32_t jwt_cache_tokens;     /* verified tokens that are remembered, per worker; 1024 */
  uint32_t jwt_cache_bytes;      /* of their text; 4194304 */
  uint32_t callout_max_calls;    /* questions to authorization services in progress, per worker; 1024 */
  uint32_t callout_max_channels; /* connections to authorization services, per worker; 256 */
} na_config;

/* Create a stopped engine. Fills in defaults; -EINVAL for limits out of range. */
NA_API int na_engine_new(const na_config *config, na_engine **out);
/* Start the workers. */
NA_API int na_engine_start(na_engine *engine);
/* Close listeners, let requests in progress end for at most drain_ms (idle connections are closed at once,
 * keep-alive responses carry Connection: close), then cut what is left and join the workers. */
NA_API int na_engine_stop(na_engine *engine, uint32_t drain_ms);
/* Free a stopped engine. */
NA_API void na_engine_free(na_engine *engine);
/* The package version compiled in; compared at import with the Python package's. */
NA_API const char *na_version(void);

/* ---- workloads and listeners -------------------------------------------------------------------------------- */

enum na_listener_kind {
  NA_LISTENER_OUTBOUND = 0, /* captured connects; the destination is the original one (SO_ORIGINAL_DST) */
  NA_LISTENER_INBOUND = 1,  /* captured connections to the workload; original destination as above */
  NA_LISTENER_PLAIN = 2,    /* an explicit proxy: destination = the address that was connected to */
  NA_LISTENER_HBONE = 3,    /* mutual TLS 1.3 with HTTP/2 CONNECT to ports of the workload (Istio's port 15008) */
  NA_LISTENER_DNS = 4,      /* captured DNS, by datagrams or connections as the socket is (dns.h) */
};

/* Register a workload: a network namespace whose sockets the engine opens. `id` is the caller's, unique and not 0.
 * netns_fd is duplicated; -1 means the engine's own namespace. `view` names the outbound configuration that it
 * uses; `addresses` are n of its own addresses (16 bytes each). -EEXIST if the id is in use. */
NA_API int na_workload_add(na_engine *engine, uint32_t id, int netns_fd, const char *view, const uint8_t *addresses,
                           size_t n);
/* Hand over a bound and listening non-blocking socket for one worker (index below config.workers). Listeners of one
 * address on several workers are descriptors of one socket, or share it by SO_REUSEPORT. The socket is closed by the
 * engine, also on error. */
NA_API int na_workload_listen(na_engine *engine, uint32_t id, enum na_listener_kind kind, uint32_t worker, int fd);
/* Close its listeners, drain its connections as na_engine_stop does, then drop the namespace. Returns at once.
 * The id may be used again once na_workload_gone() says so. */
NA_API int na_workload_remove(na_engine *engine, uint32_t id, uint32_t drain_ms);
/* Before na_workload_listen: its namespace and addresses are those of other workloads, too, and only the ports (n) are
 * its own. Tunnels lead to no others, its application is connected to from the namespace's own address, not the
 * client's, and other workloads of the engine reach it as those of other nodes do. -ENOENT for an unknown workload. */
NA_API int na_workload_share(na_engine *engine, uint32_t id, const uint16_t *ports, size_t n);
/* 1 when nothing of the id is left, 0 while connections drain. */
NA_API int na_workload_gone(na_engine *engine, uint32_t id);

/* ---- identities --------------------------------------------------------------------------------------------- */

/* Who workloads are, and whom they trust. While no identity of a name is there, its workloads' NA_LISTENER_HBONE refuse
 * and what they send to a tunnelled endpoint fails (flag UF): nothing falls back to plaintext.
 *
 * These calls publish, as na_builder_commit does: not between na_builder_new and its commit. Connections go on with the
 * certificate that they began with; tunnels that were made with an older one take no new streams, nor do kept HTTP
 * connections in them take more requests. */

/* Add or replace an identity. `chain_pem` is leaf first, `bundle_pem` the trust anchors; `trust_domains` (n) are those
 * whose members may connect to it, none: the certificate's own. -EINVAL or -EKEYEXPIRED with the reason in
 * na_engine_error(); what was in force then stays. */
NA_API int na_identity_set(na_engine *engine, const char *name, const char *chain_pem, const char *key_pem,
                           const char *bundle_pem, const char *const *trust_domains, size_t n);
/* -ENOENT if there is none of the name. */
NA_API int na_identity_remove(na_engine *engine, const char *name);
/* The identity by which a workload speaks and is spoken to; it need not be there yet. It is said once: -EEXIST for
 * another name, -ENOENT for an unknown workload. */
NA_API int na_workload_identity(na_engine *engine, uint32_t id, const char *name);

#define NA_MAX_BAGGAGE 1024

/* What a workload tells tunnel peers about itself: a W3C baggage value (`k8s.namespace.name=a,service.name=b`) of at
 * most NA_MAX_BAGGAGE bytes of visible ASCII. Once, too. */
NA_API int na_workload_baggage(na_engine *engine, uint32_t id, const char *baggage);

/* ---- events: what workers ask of the control thread --------------------------------------------------------- */

enum na_event_kind {
  NA_EVENT_DESTINATION = 1, /* a connection to address:port waits; the view has no meaning for it */
  NA_EVENT_HOST = 2,        /* a request for `host` waits; table `tag` has no virtual host for it */
};

typedef struct na_event {
  uint32_t kind;
  uint32_t workload;
  uint32_t tag; /* of the table */
  uint16_t port;
  uint8_t address[16];
  char view[256];
  char host[256];
} na_event;

/* Readable when events wait. */
NA_API int na_engine_event_fd(na_engine *engine);
/* Take up to max events; returns how many. Each need is raised once per second at most while it lasts. */
NA_API int na_engine_events(na_engine *engine, na_event *out, size_t max);
/* Tags of destinations, virtual hosts and clusters used since the last call (each once). Returns how many; more
 * calls get the rest. */
NA_API int na_engine_usage(na_engine *engine, uint32_t *tags, size_t max);

/* ---- pure evaluators: the data path's own code, callable with no packet ------------------------------------- */

/* Which route a request takes, as the data path decides it; writes names into route and cluster (weighted
 * destinations: the first). `headers` is name\0value\0 pairs, n bytes in all. Returns 0, -ENOENT no virtual host or
 * route, -EINVAL. */
NA_API int na_engine_explain_route(na_engine *engine, const char *table, const char *method, const char *authority,
                                   const char *path, const char *headers, size_t n, char *route, size_t route_size,
                                   char *cluster, size_t cluster_size);

/* Who would like to do what. */
typedef struct na_access_question {
  uint32_t workload;
  uint16_t port; /* that the connection goes to */
  uint16_t source_port;
  uint8_t source[16];
  uint8_t destination[16];
  const char *principal; /* SPIFFE ID of the peer; NULL: plaintext */
  const char *method;    /* NULL: a connection that is taken for TCP */
  const char *authority;
  const char *path;
  const char *headers; /* name\0value\0 pairs, headers_n bytes in all */
  size_t headers_n;
} na_access_question;

/* What the guards of a workload's port say, by the data path's own code. Writes lines of words between tabs, at most
 * `size` bytes with the NUL:
 *   protocol  tcp|http|detect|refuse
 *   guards    every|connection|request    whose stages follow
 *   stage     [shadow ]allow|deny|log     or what a stage of another kind says of itself
 *   policy    NAME    matched|not matched
 *   tokens    what is found out about the request's tokens (`OK`, `Jwt is expired`)
 *   callout   CLUSTER would be asked|not asked      nobody is asked: it counts as allowed
 *   verdict   allowed|denied  [STATUS  DETAIL]
 * Returns the length; -ENOENT: the workload's inbound configuration is not in force; -EINVAL: no such request can be;
 * -ENOSPC. */
NA_API int na_engine_explain_access(na_engine *engine, const na_access_question *question, char *out, size_t size);
/* Parse one HTTP/1 head with the data path's parser: bytes consumed, 0 incomplete, -status (400, 414, 431 ...) when
 * refused, with the reason in `why`. When accepted, `why` tells how it was read, in lines: method, path and query,
 * authority ("-" for empty), minor version, body (none, length, chunked), its length and keep-alive (0 or 1) with
 * spaces between; then each header as "name: value". For tests and for explaining refusals. */
NA_API int na_http1_check_request(const char *bytes, size_t n, char *why, size_t why_size);

#ifdef __cplusplus
}
#endif

#include <nodeagent/configuration.h>
#include <nodeagent/dns.h>
#include <nodeagent/inbound.h>
#include <nodeagent/telemetry.h>

#endif
