/* SPDX-License-Identifier: Apache-2.0
 *
 * domain -> virtual host, in the order that Envoy searches: exact, longest `*suffix`, longest `prefix*`, `*`.
 */
#include "router_domains.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http1_parse.h"
#include "router_build.h"
#include "table.h"

/* Wildcards of one kind: a map from the text beside the star, and the lengths that occur in it. */
typedef struct wildcards {
  na_map map;
  uint32_t count[NA_MAX_DOMAIN + 1]; /* domains by length */
  uint32_t longest;
} wildcards;

struct na_domains {
  atomic_uint refs;
  na_map exact;
  wildcards suffixes;
  wildcards prefixes;
  na_vhost *any;
};

static void ref_vhost(void *vhost) {
  na_vhost_ref(vhost);
}

static void unref_vhost(void *vhost) {
  na_vhost_unref(vhost);
}

static const na_map_ops vhost_ops = {ref_vhost, unref_vhost};

/* ---- building ----------------------------------------------------------------------------------------------- */

int na_domains_empty(na_domains **out) {
  na_domains *domains = calloc(1, sizeof *domains);
  if (!domains)
    return -ENOMEM;
  atomic_init(&domains->refs, 1);
  na_map_init(&domains->exact, &vhost_ops);
  na_map_init(&domains->suffixes.map, &vhost_ops);
  na_map_init(&domains->prefixes.map, &vhost_ops);
  *out = domains;
  return 0;
}

na_domains *na_domains_ref(na_domains *domains) {
  atomic_fetch_add_explicit(&domains->refs, 1, memory_order_relaxed);
  return domains;
}

void na_domains_free(na_domains *domains) {
  if (!domains || atomic_fetch_sub_explicit(&domains->refs, 1, memory_order_acq_rel) != 1)
    return;
  na_map_clear(&domains->exact);
  na_map_clear(&domains->suffixes.map);
  na_map_clear(&domains->prefixes.map);
  na_vhost_unref(domains->any);
  free(domains);
}

static int copy_wildcards(wildcards *to, const wildcards *from) {
  memcpy(to->count, from->count, sizeof to->count);
  to->longest = from->longest;
  return na_map_copy(&to->map, &from->map);
}

int na_domains_own(na_domains **domains) {
  na_domains *from = *domains, *to;
  if (atomic_load_explicit(&from->refs, memory_order_acquire) == 1)
    return 0;
  int rc = na_domains_empty(&to);
  if (rc)
    return rc;
  if (na_map_copy(&to->exact, &from->exact) || copy_wildcards(&to->suffixes, &from->suffixes) ||
      copy_wildcards(&to->prefixes, &from->prefixes)) {
    na_domains_free(to);
    return -ENOMEM;
  }
  to->any = from->any ? na_vhost_ref(from->any) : NULL;
  na_domains_free(from);
  *domains = to;
  return 0;
}

/* A domain taken apart: in which map it is, under which text. */
typedef struct place {
  na_map *map; /* NULL: `*` */
  wildcards *wildcards;
  na_str key;
} place;

static place place_of(na_domains *domains, const char *domain) {
  uint32_t n = (uint32_t)strlen(domain);
  if (n == 1 && domain[0] == '*')
    return (place){0};
  if (domain[0] == '*')
    return (place){&domains->suffixes.map, &domains->suffixes, {domain + 1, n - 1}};
  if (domain[n - 1] == '*')
    return (place){&domains->prefixes.map, &domains->prefixes, {domain, n - 1}};
  return (place){&domains->exact, NULL, {domain, n}};
}

static na_vhost *holder(na_domains *domains, const char *domain) {
  place at = place_of(domains, domain);
  return at.map ? na_map_find(at.map, at.key.p, at.key.n) : domains->any;
}

const char *na_domains_conflict(na_domains *domains, const na_vhost *vhost, const na_vhost **other) {
  for (uint32_t i = 0; i < vhost->ndomains; i++) {
    *other = holder(domains, vhost->domains[i]);
    if (*other)
      return vhost->domains[i];
  }
  return NULL;
}

static int put(na_domains *domains, na_vhost *vhost, const char *domain) {
  place at = place_of(domains, domain);
  if (!at.map) {
    domains->any = na_vhost_ref(vhost);
    return 0;
  }
  int rc = na_map_put(at.map, at.key.p, at.key.n, na_vhost_ref(vhost));
  if (!rc && at.wildcards) {
    at.wildcards->count[at.key.n]++;
    if (at.key.n > at.wildcards->longest)
      at.wildcards->longest = at.key.n;
  }
  return rc;
}

void na_domains_remove(na_domains *domains, const na_vhost *vhost) {
  for (uint32_t i = 0; i < vhost->ndomains; i++) {
    if (holder(domains, vhost->domains[i]) != vhost)
      continue;
    place at = place_of(domains, vhost->domains[i]);
    if (!at.map) {
      na_vhost_unref(domains->any);
      domains->any = NULL;
      continue;
    }
    if (at.wildcards) {
      at.wildcards->count[at.key.n]--;
      while (at.wildcards->longest && !at.wildcards->count[at.wildcards->longest])
        at.wildcards->longest--;
    }
    na_map_remove(at.map, at.key.p, at.key.n);
  }
}

int na_domains_add(na_domains *domains, na_vhost *vhost) {
  for (uint32_t i = 0; i < vhost->ndomains; i++) {
    int rc = put(domains, vhost, vhost->domains[i]);
    if (rc) {
      na_domains_remove(domains, vhost);
      return rc;
    }
  }
  return 0;
}

int na_domains_new(na_vhost *const *vhosts, uint32_t n, na_domains **out, char *error, size_t error_size) {
  na_domains *domains;
  int rc = na_domains_empty(&domains);
  for (uint32_t i = 0; i < n && !rc; i++) {
    const na_vhost *other;
    const char *domain = na_domains_conflict(domains, vhosts[i], &other);
    if (domain) {
      snprintf(error, error_size, "domain '%s' is claimed by virtual hosts '%s' and '%s'", domain, other->name,
               vhosts[i]->name);
      rc = -EEXIST;
      na_domains_free(domains);
      return rc;
    }
    rc = na_domains_add(domains, vhosts[i]);
    if (rc)
      na_domains_free(domains);
  }
  if (!rc)
    *out = domains;
  else if (rc == -ENOMEM)
    snprintf(error, error_size, "out of memory");
  return rc;
}

/* ---- searching ---------------------------------------------------------------------------------------------- */

static na_vhost *find_suffix(const wildcards *suffixes, na_str host) {
  /* `*` stands for one byte at least. */
  for (uint32_t n = suffixes->longest < host.n ? suffixes->longest : host.n - 1; n; n--) {
    if (!suffixes->count[n])
      continue;
    na_vhost *vhost = na_map_find(&suffixes->map, host.p + host.n - n, n);
    if (vhost)
      return vhost;
  }
  return NULL;
}

static na_vhost *find_prefix(const wildcards *prefixes, na_str host) {
  for (uint32_t n = prefixes->longest < host.n ? prefixes->longest : host.n - 1; n; n--) {
    if (!prefixes->count[n])
      continue;
    na_vhost *vhost = na_map_find(&prefixes->map, host.p, n);
    if (vhost)
      return vhost;
  }
  return NULL;
}

/* Without its port: "[::1]:80" -> "[::1]". */
static na_str strip_port(na_str host) {
  for (uint32_t i = host.n; i > 0 && host.p[i - 1] != ']'; i--)
    if (host.p[i - 1] == ':')
      return (na_str){host.p, i - 1};
  return host;
}

na_vhost *na_domains_find(const na_domains *domains, na_str authority, bool *wildcard) {
  char lower[NA_MAX_DOMAIN];
  *wildcard = false;
  if (authority.n && authority.n <= sizeof lower) {
    for (uint32_t i = 0; i < authority.n; i++)
      lower[i] = na_lower(authority.p[i]);
    na_str full = {lower, authority.n}, host = strip_port(full);
    na_vhost *vhost = na_map_find(&domains->exact, full.p, full.n);
    if (!vhost && host.n != full.n)
      vhost = na_map_find(&domains->exact, host.p, host.n);
    if (!vhost && domains->suffixes.longest) {
      vhost = find_suffix(&domains->suffixes, full);
      if (!vhost && host.n && host.n != full.n)
        vhost = find_suffix(&domains->suffixes, host);
    }
    if (!vhost && domains->prefixes.longest)
      vhost = find_prefix(&domains->prefixes, full);
    if (vhost)
      return vhost;
  }
  *wildcard = domains->any != NULL;
  return domains->any;
}
