/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engine is to do with what workloads send: clusters, route tables and destinations, changed by a builder.
 *
 * Part of the engine's interface: include <nodeagent/engine.h>, which tells its conventions.
 */
#ifndef NODEAGENT_CONFIGURATION_H
#define NODEAGENT_CONFIGURATION_H

#ifndef NODEAGENT_ENGINE_H
#error "include <nodeagent/engine.h>"
#endif

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif

#endif
