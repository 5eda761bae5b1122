/* SPDX-License-Identifier: Apache-2.0
 *
 * Routes: which one takes a request. Semantics are Envoy's QueryParameterMatcher and RouteMatch.
 */
#include <string.h>

#include "router.h"

/* ---- query parameters --------------------------------------------------------------------------------------- */

/* The first value of a parameter, as sent (no decoding, as Envoy); false when it is not there. */
static bool find_parameter(na_str query, const na_matcher *matcher, na_str *value) {
  const char *p = query.p, *end = query.p + query.n;
  while (p < end) {
    const char *next = memchr(p, '&', (size_t)(end - p));
    const char *stop = next ? next : end;
    const char *equals = memchr(p, '=', (size_t)(stop - p));
    const char *name_end = equals ? equals : stop;
    if ((size_t)(name_end - p) == matcher->name_n && memcmp(p, matcher->name, matcher->name_n) == 0) {
      *value = equals ? (na_str){equals + 1, (uint32_t)(stop - equals - 1)} : (na_str){stop, 0};
      return true;
    }
    p = stop + 1;
  }
  return false;
}

static bool match_query(const na_matcher *matcher, const na_request *request) {
  na_str value;
  return na_matcher_named(matcher, find_parameter(request->query, matcher, &value) ? &value : NULL);
}

/* ---- routes ------------------------------------------------------------------------------------------------- */

static bool match_route(const na_route *route, const na_request *request) {
  if (route->has_path && !na_matcher_text(&route->path, request->path))
    return false;
  for (uint32_t i = 0; i < route->nheaders; i++)
    if (!na_matcher_header(&route->headers[i], request))
      return false;
  for (uint32_t i = 0; i < route->nqueries; i++)
    if (!match_query(&route->queries[i], request))
      return false;
  return true;
}

const na_route *na_vhost_match(const na_vhost *vhost, const na_request *request) {
  for (const na_route *route = vhost->routes; route; route = route->next)
    if (match_route(route, request))
      return route;
  return NULL;
}

const na_route_destination *na_route_pick(const na_route *route, uint64_t random) {
  if (!route->total_weight)
    return NULL;
  /* Lemire's multiply-shift: each weight gets its share to within 2^-64 of the total. */
  uint64_t at = (uint64_t)(((__uint128_t)random * route->total_weight) >> 64);
  for (uint32_t i = 0; i < route->ndestinations; i++) {
    if (at < route->destinations[i].weight)
      return &route->destinations[i];
    at -= route->destinations[i].weight;
  }
  return NULL;
}
