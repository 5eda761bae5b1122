/* SPDX-License-Identifier: Apache-2.0 */
#include "flow_names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "table.h"

#define MIN_SIZE 64

_Static_assert(sizeof(na_flow_question) == 88, "a key has no padding: it is hashed and compared as bytes");

void na_flow_cache_init(na_flow_cache *cache) {
  *cache = (na_flow_cache){0};
}

void na_flow_cache_clear(na_flow_cache *cache) {
  for (uint32_t i = 0; i < cache->size; i++)
    free(cache->slots[i]);
  free(cache->slots);
  na_flow_cache_init(cache);
}

/* Where a key is, or would be. */
static na_flow_name **slot_of(const na_flow_cache *cache, const na_flow_question *key) {
  uint32_t mask = cache->size - 1, at = (uint32_t)na_hash(key, sizeof *key) & mask;
  while (cache->slots[at] && memcmp(&cache->slots[at]->key, key, sizeof *key) != 0)
    at = (at + 1) & mask;
  return &cache->slots[at];
}

na_flow_name *na_flow_cache_find(const na_flow_cache *cache, const na_flow_question *key) {
  return cache->size ? *slot_of(cache, key) : NULL;
}

static int grow(na_flow_cache *cache) {
  na_flow_cache larger = {.size = cache->size ? cache->size * 2 : MIN_SIZE, .n = cache->n};
  larger.slots = calloc(larger.size, sizeof *larger.slots);
  if (!larger.slots)
    return -ENOMEM;
  for (uint32_t i = 0; i < cache->size; i++)
    if (cache->slots[i])
      *slot_of(&larger, &cache->slots[i]->key) = cache->slots[i];
  free(cache->slots);
  *cache = larger;
  return 0;
}

/* A number, also where there is no room for the name (na_engine_policy, na_engine_principal). */
static uint32_t number_of(na_principals *names, const char *text) {
  uint32_t id = na_principals_intern(names, text);
  return id ? id : UINT32_MAX;
}

static void fill_labels(na_flow_labels *labels, const na_flow_names *names, na_principals *principals) {
  bool mutual = names->source_principal[0] && names->destination_principal[0];
  *labels = (na_flow_labels){.source = names->source,
                             .destination = names->destination,
                             .asked_tag = names->asked_tag,
                             .cluster_tag = names->cluster_tag,
                             .endpoint_tag = names->endpoint_tag,
                             .inbound_tag = names->inbound_tag,
                             .mutual_tls = mutual};
  if (mutual) {
    labels->source_principal = na_principals_intern(principals, names->source_principal);
    labels->destination_principal = na_principals_intern(principals, names->destination_principal);
  }
}

int na_flow_cache_put(na_flow_cache *cache, const na_flow_question *key, const na_flow_names *names,
                      na_principals *principals, na_principals *policies) {
  if (cache->n == NA_MAX_FLOW_NAMES)
    na_flow_cache_clear(cache);
  if ((cache->n + 1) * 2 > cache->size && grow(cache) < 0)
    return -ENOMEM;
  na_flow_name **slot = slot_of(cache, key);
  na_flow_name *name = *slot ? *slot : calloc(1, sizeof *name);
  if (!name)
    return -ENOMEM;
  cache->n += !*slot;
  *slot = name;
  *name = (na_flow_name){.key = *key};
  fill_labels(&name->labels, names, principals);
  for (; name->npolicies < names->n_policies && name->npolicies < NA_FLOW_POLICIES; name->npolicies++)
    name->policies[name->npolicies] = number_of(policies, names->policies[name->npolicies]);
  if (names->policy[0])
    name->denied_by = number_of(policies, names->policy);
  na_access_text(name->detail, sizeof name->detail, na_str_of(names->detail));
  return 0;
}
