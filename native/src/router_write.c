/* SPDX-License-Identifier: Apache-2.0
 *
 * What a route makes of a request's target: the rewritten path, and the Location of a redirect.
 */
#include <string.h>

#include "regex.h"
#include "router.h"

/* The part of the path that a prefix rewrite replaces: the matched prefix; of other matches, all of it. A route without
 * a path condition is as one for the prefix "/". */
static uint32_t matched_bytes(const na_route *route, na_str path) {
  if (!route->has_path)
    return path.n && path.p[0] == '/' ? 1 : 0;
  if (route->path.kind != NA_MATCH_PREFIX && route->path.kind != NA_MATCH_PATH_PREFIX)
    return path.n;
  return route->path.value_n < path.n ? route->path.value_n : path.n;
}

static void write_query(const na_request *request, na_out *out) {
  const na_str *all = &request->path_query;
  if (all->n > request->path.n && request->query.p)
    na_out_bytes(out, "?", 1), na_out_str(out, request->query);
}

void na_route_write_target(const na_request *request, na_out *out) {
  if (request->path_query.n && request->path_query.p[0] == '?')
    na_out_bytes(out, "/", 1);
  na_out_str(out, request->path_query);
}

/* Make what was written from `start` on begin with a slash. */
static void ensure_slash(na_out *out, size_t start) {
  if (out->over || (out->n > start && out->p[start] == '/'))
    return;
  if (out->n == out->size) {
    out->over = true;
    return;
  }
  memmove(out->p + start + 1, out->p + start, out->n - start);
  out->p[start] = '/';
  out->n++;
}

static void write_replaced(const na_route *route, const na_request *request, const char *replacement, na_out *out) {
  uint32_t matched = matched_bytes(route, request->path);
  na_out_cstr(out, replacement);
  na_out_bytes(out, request->path.p + matched, request->path.n - matched);
}

static void write_substituted(const na_route *route, const na_request *request, na_out *out) {
  long n = na_regex_replace(route->rewrite_regex, request->path.p, request->path.n, route->rewrite_substitution,
                            out->p + out->n, out->size - out->n);
  if (n < 0)
    out->over = true;
  else
    out->n += (size_t)n;
}

void na_route_write_path(const na_route *route, const na_request *request, na_out *out) {
  size_t start = out->n;
  bool is_path = request->path.n && request->path.p[0] == '/'; /* else `*`, which stays */
  if (is_path && route->rewrite_prefix)
    write_replaced(route, request, route->rewrite_prefix, out);
  else if (is_path && route->rewrite_regex)
    write_substituted(route, request, out);
  else {
    na_route_write_target(request, out);
    return;
  }
  ensure_slash(out, start);
  write_query(request, out);
}

static bool is_default_port(na_str scheme, uint32_t port) {
  return (port == 80 && na_str_ieq(scheme, "http")) || (port == 443 && na_str_ieq(scheme, "https"));
}

/* Split an authority into host and ":port" (empty without one). */
static na_str split_port(na_str authority, na_str *host) {
  uint32_t i = authority.n;
  while (i > 0 && authority.p[i - 1] != ':' && authority.p[i - 1] != ']')
    i--;
  bool has_port = i > 0 && authority.p[i - 1] == ':';
  *host = (na_str){authority.p, has_port ? i - 1 : authority.n};
  return has_port ? (na_str){authority.p + i - 1, authority.n - i + 1} : (na_str){authority.p + authority.n, 0};
}

/* Host and port of the redirect. The request's own port goes when another is set, or when it is the default of a scheme
 * that changes (Envoy: processRequestHost). */
static void write_authority(const na_route *route, const na_request *request, na_str scheme, na_out *out) {
  na_str host, port;
  if (route->redirect.authority) {
    host = na_str_of(route->redirect.authority);
    port = (na_str){"", 0};
  } else {
    port = split_port(request->authority, &host);
    bool changes = !na_str_ieq2(scheme, request->scheme);
    if (changes && na_str_eq(port, na_str_ieq(request->scheme, "https") ? ":443" : ":80"))
      port.n = 0;
  }
  na_out_str(out, host);
  if (!route->redirect.port) {
    na_out_str(out, port);
  } else if (!is_default_port(scheme, route->redirect.port)) {
    na_out_bytes(out, ":", 1);
    na_out_u64(out, route->redirect.port);
  }
}

void na_route_write_location(const na_route *route, const na_request *request, na_out *out) {
  na_str scheme = route->redirect.scheme ? na_str_of(route->redirect.scheme) : request->scheme;
  na_out_str(out, scheme);
  na_out_cstr(out, "://");
  write_authority(route, request, scheme, out);
  size_t start = out->n;
  if (route->redirect.path)
    na_out_cstr(out, route->redirect.path);
  else if (route->redirect.prefix)
    write_replaced(route, request, route->redirect.prefix, out);
  else
    na_out_str(out, request->path);
  ensure_slash(out, start);
  /* A query of the configured path takes the place of the request's. */
  bool has_query = route->redirect.path && strchr(route->redirect.path, '?');
  if (!route->redirect.strip_query && !has_query)
    write_query(request, out);
}
