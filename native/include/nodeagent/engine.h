/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine's public interface: the only header that the cffi binding reads.
 *
 * Conventions
 *  - Functions return 0 (or a count) or -errno. A builder also keeps a message: na_builder_error().
 *  - Strings are NUL-terminated UTF-8 and are copied; byte blobs come with a length and are copied.
 *  - File descriptors passed in become the engine's unless the comment says otherwise.
 *  - Addresses are 16 bytes in network order; IPv4 is IPv4-mapped (::ffff:a.b.c.d). Ports are in host order.
 *  - Times are milliseconds unless the name says otherwise. 0 in a limit or timeout means its default;
 *    NA_NEVER means none.
 *  - Thread safety: one control thread at a time calls in here (the caller holds a lock); workers never do.
 *  - This file is parsed by cffi after preprocessor lines are dropped: keep it to plain declarations.
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

/* ---- snapshots ---------------------------------------------------------------------------------------------- */

/* Changes to the current snapshot. Objects that are not named stay, shared, not copied. `tag` fields are the
 * caller's numbers: they come back in statistics, access records, events and usage. An object named twice is
 * replaced; the mutable state behind its name (balancer cursor, active requests, pools) survives replacement. */
NA_API int na_builder_new(na_engine *engine, na_builder **out);
/* Publish: all changes take effect at once on each worker, at its next loop turn; waiting connections and requests
 * are tried again. Frees the builder, also on error. -EINVAL (with nothing published) if a route or destination
 * names a cluster or route table that is not there; the message is in na_engine_error(). */
NA_API int na_builder_commit(na_builder *builder);
NA_API void na_builder_abort(na_builder *builder);
/* Why the last call on the builder failed, for people; never NULL. */
NA_API const char *na_builder_error(const na_builder *builder);
NA_API const char *na_engine_error(const na_engine *engine);
/* The number of commits in force on every worker: a commit has taken effect when this reaches its count. */
NA_API uint64_t na_engine_settled(na_engine *engine);
NA_API uint64_t na_engine_committed(na_engine *engine);

enum na_lb { NA_LB_ROUND_ROBIN = 0, NA_LB_RANDOM = 1, NA_LB_LEAST_REQUEST = 2 };

enum na_cluster_kind {
  NA_CLUSTER_ENDPOINTS = 0,    /* balanced over its endpoints */
  NA_CLUSTER_ORIGINAL_DST = 1, /* to where the connection was going */
  NA_CLUSTER_BLACKHOLE = 2,    /* refuse */
};

typedef struct na_cluster_config {
  uint32_t tag;
  uint32_t kind;                        /* enum na_cluster_kind */
  uint32_t lb;                          /* enum na_lb */
  uint32_t connect_timeout_ms;          /* 10000 */
  uint32_t idle_timeout_ms;             /* pooled connection; engine default */
  uint32_t max_connections;             /* per cluster, all workers; NA_NEVER */
  uint32_t max_requests;                /* active; NA_NEVER */
  uint32_t max_pending;                 /* waiting for a connection; NA_NEVER */
  uint32_t max_requests_per_connection; /* NA_NEVER */
} na_cluster_config;

typedef struct na_endpoint {
  uint8_t address[16];
  uint16_t port;
  uint8_t healthy;  /* 0: used only when no endpoint of the cluster is healthy (panic) */
  uint8_t priority; /* 0 first */
  uint32_t weight;  /* 1.. */
  uint32_t tag;
} na_endpoint;

/* Add or replace a cluster; its endpoints stay. */
NA_API int na_builder_cluster(na_builder *b, const char *name, const na_cluster_config *config);
/* Replace the endpoints of a cluster of this snapshot. */
NA_API int na_builder_endpoints(na_builder *b, const char *cluster, const na_endpoint *endpoints, size_t n);

#define NA_MAX_AUTHORITY 259 /* a host name (RFC 1035 2.3.4) and a port */

enum na_tunnel_kind {
  NA_TUNNEL_HBONE = 0, /* HBONE: a tunnel to `address`, in it CONNECT to the endpoint's address and port */
  NA_TUNNEL_MTLS = 1,  /* none: Istio's mTLS to the endpoint itself, as between sidecars; of the rest only `identities`
                        * counts */
};

/* How endpoints are reached, authenticated on both sides. */
typedef struct na_tunnel_config {
  uint32_t kind;          /* enum na_tunnel_kind */
  uint8_t address[16];    /* of a waypoint or gateway; zeros: the endpoint's own */
  uint32_t port;          /* 15008 */
  const char *identities; /* SPIFFE IDs, one of which the peer must have; separated by single spaces */
  const char *authority;  /* `host:port` to CONNECT to instead; NULL or "" */
  const char *inner;      /* double HBONE, through the gateway of another network: within the CONNECT there is another
                           * tunnel, whose peer must have one of these identities, and CONNECT to the same; NULL or "" */
  const char *network;    /* with `inner`: the name of our own network, which its peer is told; NULL or "" */
} na_tunnel_config;

/* As na_builder_endpoints; endpoint i goes through tunnels[via[i] - 1], or directly if via[i] is 0. The same address
 * and port may be there several times by different tunnels. */
NA_API int na_builder_tunnelled_endpoints(na_builder *b, const char *cluster, const na_endpoint *endpoints, size_t n,
                                          const uint32_t *via, const na_tunnel_config *tunnels, size_t m);
NA_API int na_builder_cluster_remove(na_builder *b, const char *name);

/* -- route tables: named sets of virtual hosts -- */

enum na_match_kind {
  NA_MATCH_EXACT = 0,
  NA_MATCH_PREFIX = 1,
  NA_MATCH_REGEX = 2,       /* RE2, full match */
  NA_MATCH_PRESENT = 3,     /* headers and query parameters */
  NA_MATCH_SUFFIX = 4,      /* headers and query parameters */
  NA_MATCH_CONTAINS = 5,    /* headers and query parameters */
  NA_MATCH_PATH_PREFIX = 6, /* paths: by whole segments (Gateway API) */
};

/* Flags of a matcher. */
#define NA_MATCH_IGNORE_CASE      1
#define NA_MATCH_INVERT           2
#define NA_MATCH_MISSING_AS_EMPTY 4

enum na_header_side { NA_REQUEST = 0, NA_RESPONSE = 1 };
enum na_header_op { NA_HEADER_SET = 0, NA_HEADER_ADD = 1, NA_HEADER_REMOVE = 2, NA_HEADER_ADD_IF_ABSENT = 3 };

/* Values of headers to set and add may have Envoy's command operators, such as %REQ(x-user)%; %% is a percent sign.
 * -EINVAL for one that is not known (header_format.c lists them). A header whose value comes out empty is left as it
 * is. */

/* A virtual host under construction; na_builder_vhost() takes it, na_vhost_free() drops it. */
NA_API int na_vhost_new(const char *name, uint32_t tag, na_vhost **out);
NA_API void na_vhost_free(na_vhost *vhost);
/* A domain as Envoy has it: exact, `*.suffix`, `prefix.*` or `*`; a port may be part of it. Compared without case.
 * One domain belongs to one virtual host of a table (-EEXIST at na_builder_vhost). */
NA_API int na_vhost_domain(na_vhost *vhost, const char *domain);
NA_API int na_vhost_header(na_vhost *vhost, enum na_header_side side, enum na_header_op op, const char *name,
                           const char *value);
/* Say upstream in x-envoy-attempt-count which attempt this is, from 1. */
NA_API void na_vhost_attempt_count(na_vhost *vhost);
/* Append a route; the first one that matches wins. Owned by the virtual host. */
NA_API na_route *na_vhost_route(na_vhost *vhost, const char *name, uint32_t tag);
/* Match on the path (without query). Without this call every path matches. -EINVAL: bad regex; the message is in
 * na_vhost_error(). */
NA_API int na_route_path(na_route *route, enum na_match_kind kind, const char *value, uint32_t flags);
/* Match on a header or pseudo-header (:method :scheme :authority :path); of several values of one header any, and none
 * with NA_MATCH_INVERT. All must match. */
NA_API int na_route_match_header(na_route *route, enum na_match_kind kind, const char *name, const char *value,
                                 uint32_t flags);
NA_API int na_route_match_query(na_route *route, enum na_match_kind kind, const char *name, const char *value,
                                uint32_t flags);
/* Action: forward. Returns the index of the destination (for na_route_destination_header) or -errno. Several calls
 * split by weight; weights need not sum to 100; 0 gets nothing. */
NA_API int na_route_forward(na_route *route, const char *cluster, uint32_t weight);
NA_API int na_route_destination_header(na_route *route, int destination, enum na_header_side side, enum na_header_op op,
                                       const char *name, const char *value);
/* Action: redirect. NULL fields stay as requested; port 0 likewise. Exactly one of path (whole path, query kept) and
 * prefix (replaces the matched prefix) may be given. */
NA_API int na_route_redirect(na_route *route, uint32_t code, const char *scheme, const char *authority, uint32_t port,
                             const char *path, const char *prefix, int strip_query);
/* Action: answer at once. */
NA_API int na_route_respond(na_route *route, uint32_t status, const uint8_t *body, size_t n);
/* Before forwarding: replace the matched prefix (or the whole path of an exact match); or substitute by regex
 * (RE2, \1 groups); replace the authority. */
NA_API int na_route_rewrite_prefix(na_route *route, const char *replacement);
NA_API int na_route_rewrite_regex(na_route *route, const char *regex, const char *substitution);
NA_API int na_route_rewrite_authority(na_route *route, const char *authority);
/* From the end of the request to the end of the response; NA_NEVER (default): none. Over it: 504, flag UT. */
NA_API int na_route_timeout(na_route *route, uint32_t ms);
NA_API int na_route_header(na_route *route, enum na_header_side side, enum na_header_op op, const char *name,
                           const char *value);
NA_API const char *na_vhost_error(const na_vhost *vhost);

/* Create the table if it is not there. on_demand: a Host that matches no virtual host but `*` raises NA_EVENT_HOST
 * and waits, unless na_builder_host_unknown has said that there is none. */
NA_API int na_builder_table(na_builder *b, const char *table, uint32_t tag, int on_demand);
NA_API int na_builder_table_remove(na_builder *b, const char *table);
/* Add the virtual host to the table, or replace the one of its name. Takes the virtual host, also on error. */
NA_API int na_builder_vhost(na_builder *b, const char *table, na_vhost *vhost);
NA_API int na_builder_vhost_remove(na_builder *b, const char *table, const char *name);
/* This host has no virtual host of its own: requests for it take `*` with no waiting. unknown 0 takes it back. */
NA_API int na_builder_host_unknown(na_builder *b, const char *table, const char *host, int unknown);

/* -- destinations: what a captured connection's original destination means, per view -- */

enum na_protocol {
  NA_PROTOCOL_TCP = 0,
  NA_PROTOCOL_HTTP = 1,   /* not HTTP/1: 400; HTTP/2 is forwarded by connection to the TCP clusters, with a counter */
  NA_PROTOCOL_DETECT = 2, /* HTTP/1 by its first bytes, else TCP */
  NA_PROTOCOL_REFUSE = 3, /* inbound only: as before the first na_builder_inbound (HTTP 503 with flag NC, else reset) */
};

typedef struct na_destination_config {
  uint32_t tag;
  uint32_t protocol; /* enum na_protocol */
  const char *table; /* route table for HTTP; NULL for TCP */
} na_destination_config;

/* The view is created with its first mention. Default: what matches no destination passes through (0) or is
 * refused (1). */
NA_API int na_builder_view(na_builder *b, const char *view, int refuse_unknown);
NA_API int na_builder_view_remove(na_builder *b, const char *view);
/* Add or replace the meaning of address:port; address NULL: any address with that port (an exact one wins).
 * clusters/weights: n weighted clusters for TCP, none means original destination. */
NA_API int na_builder_destination(na_builder *b, const char *view, const uint8_t *address, uint16_t port,
                                  const na_destination_config *config, const char *const *clusters,
                                  const uint32_t *weights, size_t n);
NA_API int na_builder_destination_remove(na_builder *b, const char *view, const uint8_t *address, uint16_t port);
/* What may need configuration on demand: n virtual addresses (16 bytes each) and m ports on which HTTP services of
 * the mesh exist. A destination that is in neither passes through with no event. Replaces the previous set. */
NA_API int na_builder_hints(na_builder *b, const uint8_t *addresses, size_t n, const uint16_t *ports, size_t m);
/* Whether somebody answers needs; 1 until said otherwise. With 0 nobody waits: what has no configuration takes default
 * routing at once. Its need is raised all the same. */
NA_API int na_builder_answered(na_builder *b, int answered);

/* -- guards: who may do what -- */

/* Guards are stages, asked in order; the first refusal ends it. One list is asked of each connection that is taken for
 * TCP, the other of each HTTP request. */
enum na_guarded { NA_GUARDED_CONNECTION = 0, NA_GUARDED_REQUEST = 1 };

/* What a check on a text looks at. */
enum na_attribute {
  NA_ATTRIBUTE_PRINCIPAL = 0,       /* the peer's SPIFFE ID, with its scheme */
  NA_ATTRIBUTE_NAMESPACE = 1,       /* of it */
  NA_ATTRIBUTE_SERVICE_ACCOUNT = 2, /* of it, as `namespace/name` */
  NA_ATTRIBUTE_TRUST_DOMAIN = 3,    /* of it */
  NA_ATTRIBUTE_HEADER = 4, /* by name, of several values any; also :method :authority :path :scheme. The authority is
                              compared without case (CVE-2021-39155) */
  NA_ATTRIBUTE_PATH = 5,   /* normalised, without query */
  NA_ATTRIBUTE_SNI = 6,
  NA_ATTRIBUTE_METADATA = 7, /* what earlier stages found out, by name; of several values, any */
};

/* Whose address a check looks at. */
enum na_place {
  NA_PLACE_PEER = 0,        /* the connection's (through a tunnel: the tunnel's) */
  NA_PLACE_CLIENT = 1,      /* no hops are trusted: as NA_PLACE_PEER */
  NA_PLACE_DESTINATION = 2, /* where the connection was going */
};

enum na_rule_action {
  NA_RULE_ALLOW = 0, /* what no policy matches is refused */
  NA_RULE_DENY = 1,  /* what a policy matches is refused */
  NA_RULE_LOG = 2,   /* nothing is refused, matches are counted and marked */
};

/* Of na_check_text only, besides enum na_match_kind: an Envoy URI template (`*`, `**`, `{name}`, `{name=**}`), and
 * Istio's `{*}` and `{**}`. */
#define NA_MATCH_TEMPLATE 7

/* Guards under construction. The calls return 0, -EINVAL or -E2BIG with the reason in na_guards_error(), -EBUSY once
 * a builder has taken them, or -ENOMEM. */
NA_API int na_guards_new(na_guards **out);
/* Give the reference back. */
NA_API void na_guards_free(na_guards *guards);
NA_API const char *na_guards_error(const na_guards *guards);
/* How slashes in paths are read before requests are judged and forwarded, besides Envoy's normalize_path: flags. */
#define NA_SLASHES_MERGE  1 /* several in a row are one (merge_slashes) */
#define NA_SLASHES_DECODE 2 /* `%2F` and `%5C` are slashes (path_with_escaped_slashes_action UNESCAPE_AND_FORWARD) */
#define NA_SLASHES_REJECT 4 /* paths with those are refused (REJECT_REQUEST) */

NA_API int na_guards_slashes(na_guards *guards, uint32_t flags);
/* Append a stage of rules; its policies follow. `shadow`: the outcome is counted only, and known to later stages as
 * metadata `envoy.filters.http.rbac\x1f<prefix>shadow_effective_policy_id` and `\x1f<prefix>shadow_engine_result`. */
NA_API int na_guards_rules(na_guards *guards, enum na_guarded guarded, enum na_rule_action action, int shadow,
                           const char *prefix);
/* Append a policy to the stage that was begun last. Its check follows, in prefix order. */
NA_API int na_guards_policy(na_guards *guards, const char *name);
/* An expression in prefix order. What is asked about and is not there (a header of a TCP connection, the principal of a
 * plaintext peer) makes a check false. */
NA_API int na_check_always(na_guards *guards);
/* The next n checks: all of them, or (any) one. */
NA_API int na_check_all(na_guards *guards, uint32_t n);
NA_API int na_check_any(na_guards *guards, uint32_t n);
NA_API int na_check_not(na_guards *guards);
/* `kind`: enum na_match_kind or NA_MATCH_TEMPLATE; `name` of a header or of metadata, else NULL; `flags`: NA_MATCH_*.
 */
NA_API int na_check_text(na_guards *guards, enum na_attribute attribute, uint32_t kind, const char *name,
                         const char *value, uint32_t flags);
/* `prefix` is of 128 bits. */
NA_API int na_check_address(na_guards *guards, enum na_place place, const uint8_t *address, uint32_t prefix);
/* The destination's port is low..high. */
NA_API int na_check_port(na_guards *guards, uint32_t low, uint32_t high);

/* -- guards: tokens (Envoy's jwt_authn) -- */

/* Where a token may be. */
enum na_token_place_kind { NA_TOKEN_HEADER = 0, NA_TOKEN_PARAM = 1, NA_TOKEN_COOKIE = 2 };

/* An issuer of tokens. NULL texts are empty. */
typedef struct na_provider_config {
  const char *name;
  const char *issuer;         /* `iss`; empty: any */
  const char *payload_header; /* for the payload as it is in the token; empty: none */
  const char *metadata_key;   /* the payload becomes metadata `envoy.filters.http.jwt_authn\x1f<key>`; empty: not */
  uint32_t clock_skew_s;
  uint8_t pad_payload; /* 1: with the padding of base64 */
  uint8_t forward;     /* 1: leave the token in the request; cookies stay in any case */
  uint16_t reserved;
} na_provider_config;

/* Append a stage for requests: tokens are verified and needed. pass_preflight: CORS preflight requests need none.
 * Providers and rules follow. */
NA_API int na_guards_tokens(na_guards *guards, int pass_preflight);
/* Append an issuer to that stage. Headers of payloads and claims are taken away from each request first. */
NA_API int na_guards_provider(na_guards *guards, const na_provider_config *config);
/* What the last issuer has: an audience that will do (none: any), a key, a place of tokens (none: `Authorization:
 * Bearer` and the parameter `access_token`), a claim (nested ones with dots) for a header, a claim whose words become a
 * list in the metadata.
 * The key is a SubjectPublicKeyInfo in DER; `kid` and `algorithm` (`RS256`) may be empty: any. -EINVAL for a key that
 * cannot be used; the issuer then goes without. With no keys at all its tokens are invalid. */
NA_API int na_provider_audience(na_guards *guards, const char *audience);
NA_API int na_provider_key(na_guards *guards, const char *kid, const char *algorithm, const uint8_t *der, size_t n);
NA_API int na_provider_place(na_guards *guards, enum na_token_place_kind kind, const char *name, const char *prefix);
NA_API int na_provider_claim_header(na_guards *guards, const char *claim, const char *header);
NA_API int na_provider_split_claim(na_guards *guards, const char *claim);
/* Append a rule: what requests of a path need. The first one that matches holds. kind: enum na_match_kind, path NULL:
 * any. The need follows, in prefix order; without one nothing is needed. */
NA_API int na_guards_token_rule(na_guards *guards, uint32_t kind, const char *path, uint32_t flags);
/* A valid token of the provider, for one of the n audiences (none: the provider's own). */
NA_API int na_need_token(na_guards *guards, const char *provider, const char *const *audiences, size_t n);
/* The next n needs: one, or all of them. */
NA_API int na_need_any(na_guards *guards, uint32_t n);
NA_API int na_need_all(na_guards *guards, uint32_t n);
/* No token, or good ones; within na_need_any only of the providers named there. failed: bad ones will do, too. */
NA_API int na_need_nothing(na_guards *guards, int failed);

/* -- guards: asking somebody else (Envoy's ext_authz, v3) -- */

typedef struct na_callout_config {
  const char *cluster;      /* whom to ask; while it is not there, there is no answer */
  const char *authority;    /* gRPC: `:authority` of the call; NULL or empty: the cluster's name */
  const char *path_prefix;  /* HTTP: before the request's path */
  uint32_t timeout_ms;      /* 200 */
  uint32_t status_on_error; /* without an answer; 403 */
  uint32_t body_bytes;      /* of the body that are sent along; 0 none, 1 MiB at most */
  uint8_t grpc;             /* 0: HTTP */
  uint8_t fail_open;        /* 1: without an answer it passes */
  uint8_t body_partial;     /* 1: of a longer body, as much as fits; else 413 */
  uint8_t body_raw;         /* 1: as bytes; else as text */
  uint8_t mark_open;        /* 1: what passes without an answer has x-envoy-auth-failure-mode-allowed: true */
} na_callout_config;

/* Names of headers, without case. */
enum na_callout_names {
  NA_CALLOUT_SEND = 0,           /* gRPC: what is told; none: all. HTTP: besides method, path, Host and Authorization */
  NA_CALLOUT_HIDE = 1,           /* never told */
  NA_CALLOUT_KEEP = 2,           /* HTTP: of an allowing answer, for the request, in place of what it has */
  NA_CALLOUT_KEEP_APPEND = 3,    /* HTTP: the same, behind what it has, if it has it */
  NA_CALLOUT_ANSWER = 4,         /* HTTP: of a refusing answer, for the client; none: all */
  NA_CALLOUT_ANSWER_ALLOWED = 5, /* HTTP: of an allowing answer, for the client */
  NA_CALLOUT_TO_METADATA = 6,    /* HTTP: of an allowing answer, metadata `envoy.filters.http.ext_authz` by name */
};

enum na_callout_headers {
  NA_CALLOUT_EXTRA = 0,    /* HTTP: sent in any case */
  NA_CALLOUT_METADATA = 1, /* gRPC: initial metadata */
};

/* Append a stage; what follows is its. Connections are asked about by gRPC only. */
NA_API int na_guards_callout(na_guards *guards, enum na_guarded guarded, const na_callout_config *config);
/* Ask only if the check holds that follows in prefix order. */
NA_API int na_callout_when(na_guards *guards);
/* kind: enum na_match_kind. */
NA_API int na_callout_name(na_guards *guards, enum na_callout_names which, uint32_t kind, const char *value);
NA_API int na_callout_header(na_guards *guards, enum na_callout_headers which, const char *name, const char *value);

/* -- inbound: what the ports of a workload speak -- */

typedef struct na_inbound_port {
  uint16_t port;
  uint16_t protocol; /* enum na_protocol */
  uint32_t tag;
  uint32_t guards; /* na_builder_guarded_inbound: the number of its guards, from 1; 0 none */
} na_inbound_port;

/* Put the inbound configuration of a workload in force. Before the first call: HTTP is answered 503 (flag NC), other
 * connections are reset, on every port. `fallback` is the protocol of ports that are not listed. */
NA_API int na_builder_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                              uint32_t fallback);

/* A port of a service that the workload serves: tunnel peers may ask for it by the service's name. */
typedef struct na_inbound_name {
  const char *host;
  uint16_t port;
  uint16_t target; /* the workload's */
} na_inbound_name;

enum na_application_tunnel {
  NA_APPLICATION_TUNNEL_NONE = 0,
  NA_APPLICATION_TUNNEL_PROXY = 1, /* PROXY protocol version 2, with the client's SPIFFE ID in TLV 0xD0 */
};

/* The rest of a workload's inbound configuration. Guards by number as in na_inbound_port. */
typedef struct na_inbound_config {
  uint32_t fallback;        /* enum na_protocol of ports that are not listed */
  uint32_t fallback_guards; /* theirs */
  uint32_t every; /* asked of each connection to any port, before the port's own; of these guards, what is asked of
                     connections */
  const na_inbound_name *names; /* n_names of them; copied */
  uint32_t n_names;
  uint32_t tunnel;      /* enum na_application_tunnel: how the application hears of what came through a tunnel. It may
                           then be asked for any address: it is a proxy. The port takes TCP, whatever is declared */
  uint32_t tunnel_port; /* of the application; 0: the port that was asked for */
} na_inbound_config;

/* As na_builder_inbound, with guards: m of them, of which the builder takes references. They cannot be changed any
 * more. Open connections that may not be under them are reset. */
NA_API int na_builder_guarded_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                                      const na_inbound_config *config, na_guards *const *guards, size_t m);
/* Take it out of force again. The engine does so itself for a workload that is gone. */
NA_API int na_builder_inbound_remove(na_builder *b, uint32_t workload);

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

/* ---- telemetry ---------------------------------------------------------------------------------------------- */

/* Response flags as Envoy names them; a set of bits. */
enum na_flag {
  NA_FLAG_UH = 1,        /* no healthy upstream */
  NA_FLAG_UF = 2,        /* upstream connection failure */
  NA_FLAG_UO = 4,        /* upstream overflow (limits) */
  NA_FLAG_NR = 8,        /* no route */
  NA_FLAG_URX = 16,      /* retries exhausted */
  NA_FLAG_DC = 32,       /* downstream closed */
  NA_FLAG_UC = 64,       /* upstream closed */
  NA_FLAG_UT = 128,      /* upstream timeout */
  NA_FLAG_LR = 256,      /* local reset */
  NA_FLAG_IH = 512,      /* invalid headers */
  NA_FLAG_DPE = 1024,    /* downstream protocol error */
  NA_FLAG_UPE = 2048,    /* upstream protocol error */
  NA_FLAG_NC = 4096,     /* no cluster, or configuration not in force */
  NA_FLAG_SI = 8192,     /* stream idle timeout */
  NA_FLAG_DT = 16384,    /* duration timeout */
  NA_FLAG_OM = 32768,    /* overload */
  NA_FLAG_NFCF = 65536,  /* no filter chain, connection refused */
  NA_FLAG_UAEX = 131072, /* not authorized */
};

enum na_stat_kind {
  NA_STAT_HTTP = 1,       /* a finished request */
  NA_STAT_TCP_OPENED = 2, /* an opened TCP connection */
  NA_STAT_TCP_CLOSED = 3, /* a closed one, with flags */
  NA_STAT_TCP_BYTES = 4,  /* bytes since the last report of a connection: received in bytes_in, sent in bytes_out */
  NA_STAT_POLICY = 5, /* a decision of rules: cluster_tag is the policy (na_engine_policy), flags an enum na_outcome;
                         of workload, protocol and count the rest */
};

/* What a policy decided. */
enum na_outcome {
  NA_OUTCOME_ALLOWED = 0,
  NA_OUTCOME_DENIED = 1,
  NA_OUTCOME_SHADOW_ALLOWED = 2, /* dry run */
  NA_OUTCOME_SHADOW_DENIED = 3,
  NA_OUTCOME_LOGGED = 4, /* matched rules that only log */
};

#define NA_DURATION_BUCKETS 20
#define NA_SIZE_BUCKETS     16

/* One aggregate. Key: kind .. peer; values: the rest. */
typedef struct na_stat_row {
  uint32_t kind;
  uint32_t workload;     /* the local workload; the reporter's side is `inbound` */
  uint32_t cluster_tag;  /* outbound: chosen cluster; inbound: tag of the inbound port */
  uint32_t endpoint_tag; /* outbound: chosen endpoint; 0 if none */
  uint32_t flags;
  uint16_t status;     /* HTTP status; 0 none */
  uint8_t inbound;     /* 0: reporter source, 1: destination */
  uint8_t protocol;    /* 0 tcp, 1 http/1, 2 grpc, 3 http/2 forwarded by connection */
  uint8_t peer[16];    /* inbound: client address; outbound: address connected to */
  uint32_t principal;  /* the peer's authenticated identity: na_engine_principal(); 0 none */
  uint32_t mutual_tls; /* 1: connection_security_policy mutual_tls */
  uint64_t count;
  uint64_t bytes_in;         /* from the downstream */
  uint64_t bytes_out;        /* to the downstream */
  uint64_t duration_us;      /* sum */
  uint64_t duration[20];     /* per bucket, not cumulative: <= 0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000
                                60000 300000 600000 1800000 3600000 ms, above */
  uint64_t request_size[16]; /* bodies per bucket: <= 0, then 4^1 .. 4^14 bytes, above */
  uint64_t response_size[16];
} na_stat_row;

/* Take and reset the rows gathered since the last call; returns how many were written (call again while it returns
 * max). Rows of several workers are not merged. */
NA_API int na_engine_drain_stats(na_engine *engine, na_stat_row *rows, size_t max);

/* The SPIFFE ID of a principal; "" for 0. Valid for the life of the engine. */
NA_API const char *na_engine_principal(na_engine *engine, uint32_t id);

/* The name of a policy; "" for 0: ALLOW rules of which none matched. Valid for the life of the engine. */
NA_API const char *na_engine_policy(na_engine *engine, uint32_t id);

/* One finished request or TCP connection. Strings are cut to their field. */
typedef struct na_access_record {
  uint64_t start_us; /* wall clock, since the epoch */
  uint64_t duration_us;
  uint64_t upstream_us; /* until the first byte of the response; 0 none */
  uint64_t bytes_in;    /* request body or bytes from the client */
  uint64_t bytes_out;
  uint32_t workload;
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t route_tag;
  uint32_t flags;
  uint16_t status;
  uint8_t inbound;
  uint8_t protocol; /* as in na_stat_row */
  uint8_t http_minor;
  uint8_t reserved[3];
  uint8_t downstream_remote[16];
  uint8_t downstream_local[16]; /* the original destination */
  uint8_t upstream_remote[16];
  uint8_t upstream_local[16];
  uint16_t downstream_remote_port;
  uint16_t downstream_local_port;
  uint16_t upstream_remote_port;
  uint16_t upstream_local_port;
  char method[24];
  char authority[128];
  char path[256]; /* as received, before rewriting */
  char user_agent[128];
  char forwarded_for[64];
  char request_id[48];
  char route[96];
  char cluster[160];
  char detail[192]; /* %RESPONSE_CODE_DETAILS%, %CONNECTION_TERMINATION_DETAILS%, as Envoy words them */
  char upstream_failure[160];
  uint32_t principal; /* as in na_stat_row */
  uint32_t mutual_tls;
  char peer_baggage[256]; /* what the peer of a tunnel says about itself, as sent */
  char traceparent[64];   /* of a tunnel's stream (W3C Trace Context) */
} na_access_record;

NA_API int na_engine_drain_access(na_engine *engine, na_access_record *records, size_t max);

/* Engine-wide counters and gauges, by index: name (Prometheus-style, without prefix), help, value. */
NA_API size_t na_engine_counters(void);
NA_API const char *na_engine_counter_name(size_t index);
NA_API const char *na_engine_counter_help(size_t index);
NA_API int na_engine_counter_is_gauge(size_t index);
NA_API uint64_t na_engine_counter(na_engine *engine, size_t index);

/* A live downstream connection, for people. */
typedef struct na_connection_info {
  uint64_t id;
  uint64_t age_ms;
  uint64_t bytes_in;
  uint64_t bytes_out;
  uint32_t workload;
  uint32_t worker;
  uint8_t inbound;
  uint8_t protocol;
  uint8_t state; /* 0 detecting, 1 waiting for configuration, 2 idle, 3 active, 4 tcp, 5 closing */
  uint8_t reserved;
  uint16_t remote_port;
  uint16_t local_port;
  uint8_t remote[16];
  uint8_t local[16]; /* the original destination */
  char cluster[160];
  uint32_t principal; /* of the client, when it came through a tunnel: na_engine_principal() */
  uint32_t reserved2;
} na_connection_info;

/* List up to max connections, all workers; returns how many (a bounded, consistent look at each worker). */
NA_API int na_engine_connections(na_engine *engine, na_connection_info *out, size_t max);

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

#endif
