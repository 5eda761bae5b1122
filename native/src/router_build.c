/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual hosts and routes under construction: the na_vhost_* and na_route_* calls of the public interface. Everything
 * is checked here, so that matching and writing need no checks.
 */
#include "router_build.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "http1_parse.h"
#include "regex.h"
#include "slots.h"

int na_vhost_fail(na_vhost *vhost, int rc, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(vhost->error, sizeof vhost->error, format, args);
  va_end(args);
  return rc;
}

/* ---- virtual hosts ------------------------------------------------------------------------------------------ */

int na_vhost_new(const char *name, uint32_t tag, na_vhost **out) {
  na_vhost *vhost = calloc(1, sizeof *vhost);
  if (!vhost)
    return -ENOMEM;
  vhost->name = strdup(name);
  if (!vhost->name) {
    free(vhost);
    return -ENOMEM;
  }
  vhost->tag = tag;
  vhost->refs = 1;
  *out = vhost;
  return 0;
}

void na_vhost_attempt_count(na_vhost *vhost) {
  vhost->attempt_count = true;
}

static void destination_clear(na_vhost *vhost, na_route_destination *destination) {
  if (vhost->slots && destination->slot != NA_NO_SLOT)
    na_slots_unref(vhost->slots, destination->slot);
  free(destination->cluster);
  for (int side = 0; side < 2; side++)
    na_mutations_clear(&destination->mutations[side]);
}

static void route_free(na_route *route) {
  free(route->name);
  na_matcher_clear(&route->path);
  for (uint32_t i = 0; i < route->nheaders; i++)
    na_matcher_clear(&route->headers[i]);
  for (uint32_t i = 0; i < route->nqueries; i++)
    na_matcher_clear(&route->queries[i]);
  for (uint32_t i = 0; i < route->ndestinations; i++)
    destination_clear(route->vhost, &route->destinations[i]);
  for (int side = 0; side < 2; side++)
    na_mutations_clear(&route->mutations[side]);
  free(route->headers);
  free(route->queries);
  free(route->destinations);
  free(route->redirect.scheme);
  free(route->redirect.authority);
  free(route->redirect.path);
  free(route->redirect.prefix);
  free(route->respond.body);
  free(route->rewrite_prefix);
  na_regex_free(route->rewrite_regex);
  free(route->rewrite_substitution);
  free(route->rewrite_authority);
  free(route);
}

static void vhost_destroy(na_vhost *vhost) {
  for (na_route *route = vhost->routes, *next; route; route = next) {
    next = route->next;
    route_free(route);
  }
  for (uint32_t i = 0; i < vhost->ndomains; i++)
    free(vhost->domains[i]);
  for (int side = 0; side < 2; side++)
    na_mutations_clear(&vhost->mutations[side]);
  free(vhost->domains);
  free(vhost->name);
  free(vhost);
}

na_vhost *na_vhost_ref(na_vhost *vhost) {
  __atomic_fetch_add(&vhost->refs, 1, __ATOMIC_RELAXED);
  return vhost;
}

void na_vhost_unref(na_vhost *vhost) {
  if (vhost && __atomic_fetch_sub(&vhost->refs, 1, __ATOMIC_ACQ_REL) == 1)
    vhost_destroy(vhost);
}

void na_vhost_free(na_vhost *vhost) {
  na_vhost_unref(vhost);
}

const char *na_vhost_error(const na_vhost *vhost) {
  return vhost->error;
}

/* `*` may stand alone, at the beginning or at the end. */
static bool valid_domain(const char *domain) {
  size_t n = strlen(domain);
  const char *star = strchr(domain, '*');
  if (!n)
    return false;
  for (size_t i = 0; i < n; i++)
    if (!na_h1_is(domain[i], NA_C_TARGET) || domain[i] == '/')
      return false;
  return !star || (strchr(star + 1, '*') == NULL && (star == domain || star == domain + n - 1));
}

int na_vhost_domain(na_vhost *vhost, const char *domain) {
  if (strlen(domain) > NA_MAX_DOMAIN)
    return na_vhost_fail(vhost, -E2BIG, "domain of virtual host '%s' is longer than %d bytes", vhost->name,
                         NA_MAX_DOMAIN);
  if (!valid_domain(domain))
    return na_vhost_fail(vhost, -EINVAL,
                         "domain '%s' of virtual host '%s' is no host name, '*.suffix', 'prefix.*' or '*'", domain,
                         vhost->name);
  char *copy = na_lower_copy(domain);
  if (!copy || na_grow(&vhost->domains, vhost->ndomains, sizeof *vhost->domains)) {
    free(copy);
    return na_vhost_fail(vhost, -ENOMEM, "out of memory");
  }
  for (uint32_t i = 0; i < vhost->ndomains; i++) {
    if (strcmp(vhost->domains[i], copy) == 0) {
      free(copy);
      return 0;
    }
  }
  vhost->domains[vhost->ndomains++] = copy;
  return 0;
}

int na_vhost_header(na_vhost *vhost, enum na_header_side side, enum na_header_op op, const char *name,
                    const char *value) {
  return na_mutations_add(vhost, vhost->mutations, side, op, name, value);
}

na_route *na_vhost_route(na_vhost *vhost, const char *name, uint32_t tag) {
  if (vhost->nroutes == NA_MAX_ROUTES) {
    na_vhost_fail(vhost, -E2BIG, "virtual host '%s' has more than %d routes", vhost->name, NA_MAX_ROUTES);
    return NULL;
  }
  na_route *route = calloc(1, sizeof *route);
  if (!route || !(route->name = strdup(name))) {
    free(route);
    na_vhost_fail(vhost, -ENOMEM, "out of memory");
    return NULL;
  }
  route->tag = tag;
  route->vhost = vhost;
  route->timeout_ms = (uint32_t)NA_NEVER;
  if (vhost->last)
    vhost->last->next = route;
  else
    vhost->routes = route;
  vhost->last = route;
  vhost->nroutes++;
  return route;
}

/* ---- conditions --------------------------------------------------------------------------------------------- */

int na_route_path(na_route *route, enum na_match_kind kind, const char *value, uint32_t flags) {
  if (kind != NA_MATCH_EXACT && kind != NA_MATCH_PREFIX && kind != NA_MATCH_REGEX && kind != NA_MATCH_PATH_PREFIX)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': this kind of match does not apply to paths", route->name);
  if (flags & ~(uint32_t)NA_MATCH_IGNORE_CASE)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': a path match can only ignore case", route->name);
  na_matcher_clear(&route->path);
  route->has_path = false;
  int rc = na_matcher_init(&route->path, kind, NULL, value, flags, route->vhost->error, sizeof route->vhost->error);
  route->has_path = rc == 0;
  return rc;
}

static int add_matcher(na_route *route, na_matcher **matchers, uint32_t *n, enum na_match_kind kind, const char *name,
                       const char *value, uint32_t flags) {
  if (kind == NA_MATCH_PATH_PREFIX)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': only paths match by segments", route->name);
  if (*n == NA_MAX_MATCHERS)
    return na_vhost_fail(route->vhost, -E2BIG, "route '%s' has more than %d matchers", route->name, NA_MAX_MATCHERS);
  if (na_grow(matchers, *n, sizeof **matchers))
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  int rc = na_matcher_init(&(*matchers)[*n], kind, name, value, flags, route->vhost->error, sizeof route->vhost->error);
  if (!rc)
    ++*n;
  return rc;
}

int na_route_match_header(na_route *route, enum na_match_kind kind, const char *name, const char *value,
                          uint32_t flags) {
  char *lower = na_lower_copy(name);
  if (!lower)
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  /* Host and :authority are one thing, whatever the codec calls it. */
  int rc = add_matcher(route, &route->headers, &route->nheaders, kind,
                       strcmp(lower, "host") == 0 ? ":authority" : lower, value, flags);
  free(lower);
  return rc;
}

int na_route_match_query(na_route *route, enum na_match_kind kind, const char *name, const char *value,
                         uint32_t flags) {
  return add_matcher(route, &route->queries, &route->nqueries, kind, name, value, flags);
}

/* ---- actions ------------------------------------------------------------------------------------------------ */

static int claim_action(na_route *route, enum na_action action) {
  if (route->action != NA_ACTION_NONE && (route->action != action || action != NA_ACTION_FORWARD))
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s' has an action already", route->name);
  return 0;
}

int na_route_forward(na_route *route, const char *cluster, uint32_t weight) {
  int rc = claim_action(route, NA_ACTION_FORWARD);
  if (rc)
    return rc;
  if (route->ndestinations == NA_MAX_SPLIT)
    return na_vhost_fail(route->vhost, -E2BIG, "route '%s' has more than %d destinations", route->name, NA_MAX_SPLIT);
  char *copy = strdup(cluster);
  if (!copy || na_grow(&route->destinations, route->ndestinations, sizeof *route->destinations)) {
    free(copy);
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  }
  route->action = NA_ACTION_FORWARD;
  route->total_weight += weight;
  route->destinations[route->ndestinations] =
      (na_route_destination){.cluster = copy, .weight = weight, .slot = NA_NO_SLOT};
  return (int)route->ndestinations++;
}

int na_route_destination_header(na_route *route, int destination, enum na_header_side side, enum na_header_op op,
                                const char *name, const char *value) {
  if (destination < 0 || (uint32_t)destination >= route->ndestinations)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s' has no destination %d", route->name, destination);
  return na_mutations_add(route->vhost, route->destinations[destination].mutations, side, op, name, value);
}

static bool is_redirect(uint32_t code) {
  return code == 301 || code == 302 || code == 303 || code == 307 || code == 308;
}

/* Whether text may stand in a header value or URI; NULL may. */
static bool clean(const char *text, uint8_t classes) {
  return !text || na_h1_span(text, strlen(text), classes) == strlen(text);
}

/* Whether text may stand in a Location: as in a request target, and a fragment besides (RFC 9110 10.2.2). */
static bool clean_location(const char *text) {
  for (; text && *text; text++)
    if (*text != '#' && !na_h1_is(*text, NA_C_TARGET))
      return false;
  return true;
}

static int check_redirect(na_route *route, uint32_t code, const char *scheme, const char *authority, uint32_t port,
                          const char *path, const char *prefix) {
  na_vhost *vhost = route->vhost;
  if (!is_redirect(code))
    return na_vhost_fail(vhost, -EINVAL, "route '%s': redirect code %u is not one of 301, 302, 303, 307, 308",
                         route->name, code);
  if (port > 65535)
    return na_vhost_fail(vhost, -EINVAL, "route '%s': redirect port %u is above 65535", route->name, port);
  if (path && prefix)
    return na_vhost_fail(vhost, -EINVAL, "route '%s': redirect has both a path and a prefix", route->name);
  if (!clean(scheme, NA_C_TOKEN) || !clean(authority, NA_C_TARGET) || !clean_location(path) || !clean_location(prefix))
    return na_vhost_fail(vhost, -EINVAL, "route '%s': redirect has a byte that may not be in a URI", route->name);
  return 0;
}

/* Copy text to *out unless it is NULL or empty; -ENOMEM. */
static int copy_text(char **out, const char *text) {
  if (!text || !*text)
    return 0;
  *out = strdup(text);
  return *out ? 0 : -ENOMEM;
}

int na_route_redirect(na_route *route, uint32_t code, const char *scheme, const char *authority, uint32_t port,
                      const char *path, const char *prefix, int strip_query) {
  int rc = claim_action(route, NA_ACTION_REDIRECT);
  if (!rc)
    rc = check_redirect(route, code, scheme, authority, port, path, prefix);
  if (rc)
    return rc;
  route->action = NA_ACTION_REDIRECT;
  route->redirect.code = (uint16_t)code;
  route->redirect.port = port;
  route->redirect.strip_query = strip_query != 0;
  if (copy_text(&route->redirect.scheme, scheme) || copy_text(&route->redirect.authority, authority) ||
      copy_text(&route->redirect.path, path) || (prefix && !(route->redirect.prefix = strdup(prefix))))
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  return 0;
}

int na_route_respond(na_route *route, uint32_t status, const uint8_t *body, size_t n) {
  int rc = claim_action(route, NA_ACTION_RESPOND);
  if (rc)
    return rc;
  if (status < 200 || status > 599)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': status %u is not within 200..599", route->name, status);
  if (n > NA_MAX_BODY)
    return na_vhost_fail(route->vhost, -E2BIG, "route '%s': body has more than %u bytes", route->name, NA_MAX_BODY);
  char *copy = malloc(n ? n : 1);
  if (!copy)
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  if (n)
    memcpy(copy, body, n);
  route->action = NA_ACTION_RESPOND;
  route->respond.status = (uint16_t)status;
  route->respond.body = copy;
  route->respond.n = (uint32_t)n;
  return 0;
}

/* ---- what happens to a request on its way ------------------------------------------------------------------- */

static int replace_text(na_route *route, char **field, const char *text, uint8_t classes, const char *what) {
  if (!clean(text, classes))
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': %s has a byte that may not be in a URI", route->name,
                         what);
  char *copy = strdup(text);
  if (!copy)
    return na_vhost_fail(route->vhost, -ENOMEM, "out of memory");
  free(*field);
  *field = copy;
  return 0;
}

int na_route_rewrite_prefix(na_route *route, const char *replacement) {
  if (route->rewrite_regex)
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s' has a regex rewrite already", route->name);
  return replace_text(route, &route->rewrite_prefix, replacement, NA_C_TARGET, "path rewrite");
}

int na_route_rewrite_regex(na_route *route, const char *regex, const char *substitution) {
  na_vhost *vhost = route->vhost;
  if (route->rewrite_prefix || route->rewrite_regex)
    return na_vhost_fail(vhost, -EINVAL, "route '%s' has a path rewrite already", route->name);
  na_regex *compiled = NULL;
  int rc = na_regex_new(regex, false, &compiled, vhost->error, sizeof vhost->error);
  if (rc)
    return rc;
  if (!na_regex_check_substitution(compiled, substitution, vhost->error, sizeof vhost->error)) {
    na_regex_free(compiled);
    return -EINVAL;
  }
  rc = replace_text(route, &route->rewrite_substitution, substitution, NA_C_TARGET, "path rewrite");
  if (rc)
    na_regex_free(compiled);
  else
    route->rewrite_regex = compiled;
  return rc;
}

int na_route_rewrite_authority(na_route *route, const char *authority) {
  if (!na_h1_valid_authority(na_str_of(authority), false))
    return na_vhost_fail(route->vhost, -EINVAL, "route '%s': authority rewrite '%s' is no host", route->name,
                         authority);
  return replace_text(route, &route->rewrite_authority, authority, NA_C_TARGET, "authority rewrite");
}

int na_route_timeout(na_route *route, uint32_t ms) {
  route->timeout_ms = ms ? ms : (uint32_t)NA_NEVER;
  return 0;
}

int na_route_header(na_route *route, enum na_header_side side, enum na_header_op op, const char *name,
                    const char *value) {
  return na_mutations_add(route->vhost, route->mutations, side, op, name, value);
}
