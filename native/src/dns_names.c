/* SPDX-License-Identifier: Apache-2.0 */
#include "dns_names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"

/* ---- names ---- */

static void ref_name(void *name) {
  atomic_fetch_add_explicit(&((na_dns_name *)name)->refs, 1, memory_order_relaxed);
}

static void unref_name(void *name) {
  if (atomic_fetch_sub_explicit(&((na_dns_name *)name)->refs, 1, memory_order_acq_rel) == 1)
    free(name);
}

const na_map_ops na_dns_name_ops = {ref_name, unref_name};

/* Whether a question may have the name: labels of 1 to 63 characters, none of them in upper case; and the namespace, if
 * there is one, is a label. */
static bool is_name(const char *key) {
  size_t host = strcspn(key, "/"), at = 0;
  if (host >= NA_DNS_NAME_TEXT)
    return false;
  if (key[host]) {
    size_t namespace = strcspn(key + host + 1, "./");
    if (!namespace || namespace > 63 || key[host + 1 + namespace])
      return false;
  }
  while (at <= host) {
    size_t length = strcspn(key + at, "./");
    if (!length || length > 63)
      return false;
    at += length + 1;
  }
  for (const char *c = key; *c; c++)
    if (*c <= ' ' || *c >= 0x7f || (*c >= 'A' && *c <= 'Z'))
      return false;
  return true;
}

int na_dns_name_new(const char *key, const uint8_t *addresses, size_t n, na_dns_name **out) {
  if (!is_name(key) || n > NA_DNS_MAX_ADDRESSES)
    return -EINVAL;
  size_t key_n = strlen(key);
  na_dns_name *name = calloc(1, sizeof *name + n * 16 + key_n + 1);
  if (!name)
    return -ENOMEM;
  uint8_t(*all)[16] = (uint8_t(*)[16])(name + 1);
  uint32_t v4 = 0, v6 = 0;
  for (size_t i = 0; i < n; i++)
    v4 += na_ip_is_v4(addresses + i * 16);
  name->addresses[0] = all;
  name->addresses[1] = all + v4;
  for (size_t i = 0; i < n; i++)
    if (na_ip_is_v4(addresses + i * 16))
      memcpy(name->addresses[0][name->n[0]++], addresses + i * 16, 16);
    else
      memcpy(name->addresses[1][v6++], addresses + i * 16, 16);
  name->n[1] = v6;
  name->key = (char *)(all + n);
  name->key_n = (uint32_t)key_n;
  memcpy(name->key, key, key_n);
  atomic_init(&name->refs, 1);
  *out = name;
  return 0;
}

/* ---- looking up ---- */

/* A domain of a search list. */
typedef struct search_domain {
  const char *text;
  size_t n;
} search_domain;

static bool next_domain(const char **search, search_domain *out) {
  *search += strspn(*search, " ");
  out->text = *search;
  out->n = strcspn(*search, " ");
  *search += out->n;
  return out->n != 0;
}

/* Where is looked, for clients of the namespace `mine`. */
typedef struct lookup {
  const na_map *names;
  search_domain mine;
} lookup;

/* `prefix` and `host` as a key: first for clients of the namespace. */
static na_dns_name *find_key(const lookup *l, const char *prefix, const char *host, size_t n) {
  char key[NA_DNS_KEY_TEXT + 2];
  size_t before = strlen(prefix), used = before + n;
  if (!n || used >= NA_DNS_NAME_TEXT)
    return NULL;
  memcpy(key, prefix, before);
  memcpy(key + before, host, n);
  if (l->mine.n && l->mine.n < NA_DNS_KEY_TEXT - NA_DNS_NAME_TEXT) {
    key[used] = '/';
    memcpy(key + used + 1, l->mine.text, l->mine.n);
    na_dns_name *found = na_map_find(l->names, key, (uint32_t)(used + 1 + l->mine.n));
    if (found)
      return found;
  }
  return na_map_find(l->names, key, (uint32_t)used);
}

/* The name itself, else the longest wildcard above it. */
static na_dns_name *find_name(const lookup *l, const char *host, size_t n) {
  na_dns_name *found = find_key(l, "", host, n);
  for (const char *dot = host; !found && (dot = memchr(dot, '.', n - (size_t)(dot - host))); dot++)
    found = find_key(l, "*.", dot + 1, n - (size_t)(dot + 1 - host));
  return found;
}

/* The name below a domain: what a resolver asks next. */
static na_dns_name *find_below(const lookup *l, const char *host, size_t n, const search_domain *domain) {
  char text[NA_DNS_NAME_TEXT];
  if (n + 1 + domain->n >= sizeof text)
    return NULL;
  memcpy(text, host, n);
  text[n] = '.';
  memcpy(text + n + 1, domain->text, domain->n);
  return find_key(l, "", text, n + 1 + domain->n);
}

/* Its length without a domain at its end and the dot before; 0: it is not below the domain. */
static size_t without(const char *host, size_t n, const search_domain *domain) {
  if (n < domain->n + 2 || host[n - domain->n - 1] != '.')
    return 0;
  return memcmp(host + n - domain->n, domain->text, domain->n) == 0 ? n - domain->n - 1 : 0;
}

static na_dns_name *find_stripped(const lookup *l, const char *question, size_t n, const char *search,
                                  na_dns_match *out) {
  for (search_domain domain; next_domain(&search, &domain);) {
    size_t left = without(question, n, &domain);
    na_dns_name *found = left ? find_name(l, question, left) : NULL;
    if (!found)
      continue;
    memcpy(out->text, question, left);
    out->text[left] = 0;
    out->alias = out->text;
    return found;
  }
  return NULL;
}

bool na_dns_find(const na_map *names, const char *question, const char *search, na_dns_match *out) {
  lookup l = {.names = names, .mine = {search, strcspn(search, ". ")}};
  size_t n = strlen(question);
  const char *rest = search;
  out->alias = NULL;
  out->name = NULL;
  if (!n || !names->count)
    return false;
  out->name = find_name(&l, question, n);
  for (search_domain domain; !out->name && next_domain(&rest, &domain);)
    out->name = find_below(&l, question, n, &domain);
  if (!out->name)
    out->name = find_stripped(&l, question, n, search, out);
  return out->name != NULL;
}
