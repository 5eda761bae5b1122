/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual hosts and routes: built once through the public na_vhost_* and na_route_* calls (router_build.c), then
 * immutable and shared; matching (router_match.c) allocates nothing. Transport-neutral: a request is an na_request.
 */
#ifndef NODEAGENT_ROUTER_H
#define NODEAGENT_ROUTER_H

#include <stdatomic.h>

#include <nodeagent/engine.h>

#include "header_format.h"
#include "http1.h"
#include "matcher.h"

typedef struct na_slots na_slots; /* slots.h: interned names */

typedef struct na_header_mutation {
  uint8_t op; /* enum na_header_op */
  char *name;
  char *value;
  uint32_t name_n;
  uint32_t value_n;
  na_format *format; /* of a value with command operators; else NULL */
} na_header_mutation;

typedef struct na_mutations {
  na_header_mutation *items;
  uint32_t n;
} na_mutations;

typedef struct na_route_destination {
  char *cluster;
  uint32_t weight;
  uint32_t slot;             /* for the snapshot: where it keeps the cluster; set by its owner */
  na_mutations mutations[2]; /* by enum na_header_side */
} na_route_destination;

enum na_action { NA_ACTION_NONE, NA_ACTION_FORWARD, NA_ACTION_REDIRECT, NA_ACTION_RESPOND };

struct na_route {
  char *name;
  uint32_t tag;
  na_vhost *vhost;
  bool has_path;
  na_matcher path;
  na_matcher *headers;
  uint32_t nheaders;
  na_matcher *queries;
  uint32_t nqueries;
  uint8_t action; /* enum na_action */
  na_route_destination *destinations;
  uint32_t ndestinations;
  uint64_t total_weight;
  struct {
    uint16_t code;
    char *scheme;
    char *authority;
    uint32_t port;
    char *path;
    char *prefix;
    bool strip_query;
  } redirect;
  struct {
    uint16_t status;
    char *body;
    uint32_t n;
  } respond;
  char *rewrite_prefix;
  na_regex *rewrite_regex;
  char *rewrite_substitution;
  char *rewrite_authority;
  uint32_t timeout_ms;
  na_mutations mutations[2];
  na_route *next;
};

struct na_vhost {
  char *name;
  uint32_t tag;
  int refs;       /* atomic; the snapshot and requests in progress share it */
  char **domains; /* lower case */
  uint32_t ndomains;
  bool attempt_count;
  na_mutations mutations[2];
  na_route *routes; /* in order */
  na_route *last;
  uint32_t nroutes;
  atomic_uint used; /* na_mark_used (cluster.h) */
  na_slots *slots;  /* where the slots of its destinations are held; NULL before a builder has taken it */
  char error[256];
};

na_vhost *na_vhost_ref(na_vhost *vhost);
void na_vhost_unref(na_vhost *vhost);

/* domain -> virtual host, immutable; as Envoy searches: exact, longest `*suffix`, longest `prefix*`, `*`. A request's
 * host matches with and without its port. */
typedef struct na_domains na_domains;
/* Build over n virtual hosts (references are taken). -EEXIST with the domain in error when two claim one. */
int na_domains_new(na_vhost *const *vhosts, uint32_t n, na_domains **out, char *error, size_t error_size);
/* Another reference; na_domains_free gives one back. */
na_domains *na_domains_ref(na_domains *domains);
void na_domains_free(na_domains *domains);
/* The virtual host for an authority, or NULL; *wildcard tells that only `*` matched. */
na_vhost *na_domains_find(const na_domains *domains, na_str authority, bool *wildcard);

/* The first route that matches, or NULL. */
const na_route *na_vhost_match(const na_vhost *vhost, const na_request *request);
/* The destination for a 64-bit random number, by weight; NULL when all weights are 0. */
const na_route_destination *na_route_pick(const na_route *route, uint64_t random);
/* Write the path and query as sent: an absolute target may have a query and no path. */
void na_route_write_target(const na_request *request, na_out *out);
/* Write the path and query as they go upstream, rewritten as the route says. */
void na_route_write_path(const na_route *route, const na_request *request, na_out *out);
/* Write the Location value of a redirect. */
void na_route_write_location(const na_route *route, const na_request *request, na_out *out);

typedef struct na_header_levels {
  const na_mutations *levels[4];  /* destination, route, virtual host, guards; NULL entries are skipped */
  const na_format_source *source; /* what command operators in values stand for; NULL: nothing */
} na_header_levels;

#define NA_MAX_OWN_HEADERS 4
/* Headers of the proxy itself: each takes the place of received ones of its name. */
typedef struct na_own_headers {
  na_header items[NA_MAX_OWN_HEADERS];
  uint32_t n;
} na_own_headers;

void na_own_header(na_own_headers *own, const char *name, na_str value);
/* Envoy's order: destination first, then route, then virtual host (most specific first); each level removes, then
 * sets and adds. Applies the levels to the headers received and to the proxy's own (`own` may be NULL), and writes the
 * header block without the final empty line. Hop-by-hop headers (hop flag) are left out. `authority` is written as Host
 * when not empty. */
void na_write_headers(const na_header *headers, uint32_t n, const na_own_headers *own, const na_header_levels *levels,
                      na_str authority, na_out *out);

#endif
