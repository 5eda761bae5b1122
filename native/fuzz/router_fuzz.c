/* SPDX-License-Identifier: Apache-2.0
 *
 * Virtual hosts from arbitrary configuration, against arbitrary requests: domains are found as a plain search finds
 * them, and what is written for the upstream is again a head that the parser takes.
 *
 * The input is lines, each an operation letter and its text, up to an empty line; then a request head.
 */
#include <stdlib.h>
#include <string.h>

#include "router.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition))                                                                                                  \
      abort();                                                                                                         \
  } while (0)

#define MAX_VHOSTS 8

typedef struct setup {
  na_vhost *vhosts[MAX_VHOSTS];
  uint32_t n;
  na_route *route;
} setup;

/* "name=value": cut in two; the value is empty without '='. */
static const char *cut(char *text) {
  char *equals = strchr(text, '=');
  if (!equals)
    return "";
  *equals = 0;
  return equals + 1;
}

static void add_vhost(setup *s, const char *name) {
  if (s->n < MAX_VHOSTS && na_vhost_new(name, s->n, &s->vhosts[s->n]) == 0)
    s->route = na_vhost_route(s->vhosts[s->n++], "first", 1);
}

/* Routes' conditions and header operations; kind and flags come from the digits after the letter. */
static void apply_condition(setup *s, char op, char *text) {
  enum na_match_kind kind = (enum na_match_kind)(text[0] & 7);
  uint32_t flags = text[0] ? (uint32_t)text[1] & 7 : 0;
  char *rest = strlen(text) > 2 ? text + 2 : text;
  const char *value = op == 'p' ? rest : cut(rest);
  if (op == 'p')
    na_route_path(s->route, kind, value, flags & 1);
  else if (op == 'h')
    na_route_match_header(s->route, kind, rest, value, flags);
  else
    na_route_match_query(s->route, kind, rest, value, flags);
}

static void apply(setup *s, char op, char *text) {
  if (op == 'v')
    add_vhost(s, text);
  if (!s->route)
    return;
  na_vhost *vhost = s->vhosts[s->n - 1];
  switch (op) {
  case 'd':
    na_vhost_domain(vhost, text);
    break;
  case 'r':
    s->route = na_vhost_route(vhost, text, 1);
    break;
  case 'p':
  case 'h':
  case 'q':
    apply_condition(s, op, text);
    break;
  case 'f':
    na_route_forward(s->route, text, (uint32_t)strlen(text));
    break;
  case 'w':
    na_route_rewrite_prefix(s->route, text);
    break;
  case 'x': {
    const char *value = cut(text);
    na_route_rewrite_regex(s->route, text, value);
    break;
  }
  case 'l': {
    const char *value = cut(text);
    na_route_redirect(s->route, 301, "https", NULL, 0, *value ? value : NULL, *value ? NULL : text, 0);
    break;
  }
  case '=':
  case '+':
  case '-':
  case '?': {
    const char *value = cut(text);
    enum na_header_op kind = op == '='   ? NA_HEADER_SET
                             : op == '+' ? NA_HEADER_ADD
                             : op == '-' ? NA_HEADER_REMOVE
                                         : NA_HEADER_ADD_IF_ABSENT;
    na_route_header(s->route, NA_REQUEST, kind, text, value);
    break;
  }
  default:
    break;
  }
}

/* ---- domains ------------------------------------------------------------------------------------------------ */

/* How well a domain fits: exact over suffix over prefix over any, then by length; 0 not at all. */
static uint32_t fit(const char *domain, const char *host) {
  size_t n = strlen(domain), h = strlen(host);
  if (strcmp(domain, "*") == 0)
    return 1;
  if (domain[0] == '*')
    return h > n - 1 && strcmp(host + h - (n - 1), domain + 1) == 0 ? 20000 + (uint32_t)n : 0;
  if (domain[n - 1] == '*')
    return h > n - 1 && strncmp(host, domain, n - 1) == 0 ? 10000 + (uint32_t)n : 0;
  return strcmp(domain, host) == 0 ? 30000 : 0;
}

static uint32_t best_fit(const na_vhost *vhost, const char *host) {
  uint32_t best = 0;
  for (uint32_t i = 0; i < vhost->ndomains; i++) {
    uint32_t f = fit(vhost->domains[i], host);
    best = f > best ? f : best;
  }
  return best;
}

/* Compare with a plain search, for hosts without port (the order of the two is the map's own business). */
static void check_found(const setup *s, na_str authority, const na_vhost *found) {
  char host[400];
  if (authority.n == 0 || authority.n > 300 || memchr(authority.p, ':', authority.n))
    return;
  for (uint32_t i = 0; i < authority.n; i++)
    host[i] = authority.p[i] >= 'A' && authority.p[i] <= 'Z' ? (char)(authority.p[i] | 32) : authority.p[i];
  host[authority.n] = 0;
  uint32_t best = 0;
  for (uint32_t i = 0; i < s->n; i++) {
    uint32_t f = best_fit(s->vhosts[i], host);
    best = f > best ? f : best;
  }
  CHECK((found ? best_fit(found, host) : 0) == best);
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

static na_h1_head head, upstream;

/* Write the request as it goes upstream; the parser must take it. */
static void check_written(const na_vhost *vhost, const na_route *route) {
  static char buf[65536];
  na_out out = {.p = buf, .size = sizeof buf};
  na_out_str(&out, head.request.method);
  na_out_bytes(&out, " ", 1);
  na_route_write_path(route, &head.request, &out);
  na_out_cstr(&out, " HTTP/1.1\r\n");
  na_header_levels levels = {{NULL, &route->mutations[NA_REQUEST], &vhost->mutations[NA_REQUEST]}};
  na_str authority = head.request.authority.n ? head.request.authority : (na_str){"h", 1};
  na_write_headers(head.headers, head.nheaders, NULL, &levels, authority, &out);
  na_out_cstr(&out, "\r\n");
  if (out.over || head.is_connect)
    return;
  na_h1_limits wide = {.max_head_bytes = sizeof buf, .max_headers = NA_H1_MAX_HEADERS, .max_request_line = sizeof buf};
  na_h1_error error;
  uint32_t scanned = 0;
  CHECK(na_h1_parse_request(buf, out.n, &scanned, &wide, &upstream, &error) == (int)out.n);
}

static void check_location(const na_route *route) {
  char buf[8192];
  na_out out = {.p = buf, .size = sizeof buf};
  na_route_write_location(route, &head.request, &out);
  for (size_t i = 0; i < out.n; i++)
    CHECK((uint8_t)buf[i] > ' ' && (uint8_t)buf[i] < 0x7f);
}

static void route_request(const setup *s, const na_domains *domains) {
  bool wildcard;
  na_vhost *vhost = na_domains_find(domains, head.request.authority, &wildcard);
  check_found(s, head.request.authority, vhost);
  const na_route *route = vhost ? na_vhost_match(vhost, &head.request) : NULL;
  if (!route)
    return;
  na_route_pick(route, 0x123456789abcdef0u);
  if (route->action == NA_ACTION_REDIRECT)
    check_location(route);
  check_written(vhost, route);
}

static const char *read_setup(setup *s, const char *p, const char *end) {
  while (p < end && *p != '\n') {
    const char *lf = memchr(p, '\n', (size_t)(end - p));
    const char *stop = lf ? lf : end;
    char *text = strndup(p + 1, (size_t)(stop - p - 1));
    CHECK(text);
    apply(s, *p, text);
    free(text);
    p = lf ? lf + 1 : end;
  }
  return p < end ? p + 1 : end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  setup s = {0};
  if (size > 4096)
    return 0;
  const char *end = (const char *)data + size;
  const char *rest = read_setup(&s, (const char *)data, end);
  na_domains *domains;
  char error[256];
  na_h1_error refusal;
  na_h1_limits limits = {.max_head_bytes = 4096, .max_headers = 100, .max_request_line = 4096};
  uint32_t scanned = 0;
  if (na_domains_new(s.vhosts, s.n, &domains, error, sizeof error) == 0) {
    if (na_h1_parse_request(rest, (size_t)(end - rest), &scanned, &limits, &head, &refusal) > 0)
      route_request(&s, domains);
    na_domains_free(domains);
  }
  for (uint32_t i = 0; i < s.n; i++)
    na_vhost_free(s.vhosts[i]);
  return 0;
}
