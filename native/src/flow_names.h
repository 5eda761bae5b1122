/* SPDX-License-Identifier: Apache-2.0
 *
 * What the numbers in events stand for, as the control plane of the process has answered: a bounded cache, which is
 * emptied when it is full and when configuration changes.
 */
#ifndef NODEAGENT_FLOW_NAMES_H
#define NODEAGENT_FLOW_NAMES_H

#include <nodeagent/flows.h>

#include <stdbool.h>

#include "principals.h"

#define NA_MAX_FLOW_NAMES 8192

/* Of a connection, as long as it is followed. */
typedef struct na_flow_labels {
  uint32_t source;
  uint32_t destination;
  uint32_t asked_tag;
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t inbound_tag;
  uint32_t source_principal;
  uint32_t destination_principal;
  uint32_t mutual_tls;
} na_flow_labels;

typedef struct na_flow_name {
  na_flow_question key;
  na_flow_labels labels;
  uint32_t policies[NA_FLOW_POLICIES];
  uint32_t npolicies;
  uint32_t denied_by; /* of a denied connection; 0: no rule allowed it */
  bool used;          /* since the last look (na_engine_usage) */
  char detail[192];
} na_flow_name;

typedef struct na_flow_cache {
  na_flow_name **slots; /* open addressing; a power of two, at most half of them used */
  uint32_t size;
  uint32_t n;
} na_flow_cache;

void na_flow_cache_init(na_flow_cache *cache);
/* Forget everything, and give the memory back. */
void na_flow_cache_clear(na_flow_cache *cache);
/* NULL: not known. Valid until the next put or clear. */
na_flow_name *na_flow_cache_find(const na_flow_cache *cache, const na_flow_question *key);
/* Remember an answer. `principals` and `policies` are the engine's. -ENOMEM. */
int na_flow_cache_put(na_flow_cache *cache, const na_flow_question *key, const na_flow_names *names,
                      na_principals *principals, na_principals *policies);

#endif
