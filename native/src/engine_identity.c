/* SPDX-License-Identifier: Apache-2.0
 *
 * The public calls that tell an engine who its workloads are.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"

int na_identity_set(na_engine *engine, const char *name, const char *chain_pem, const char *key_pem,
                    const char *bundle_pem, const char *const *trust_domains, size_t n) {
  na_identity_args args = {.name = name,
                           .chain_pem = chain_pem,
                           .key_pem = key_pem,
                           .bundle_pem = bundle_pem,
                           .trust_domains = trust_domains,
                           .n = n};
  na_identity *identity;
  char why[256];
  int rc = *name ? na_identity_create(&args, why, sizeof why, &identity) : -EINVAL;
  if (rc) {
    na_snapshots_error(&engine->snapshots, "identity '%s': %s", name, *name ? why : "it needs a name");
    return rc;
  }
  return na_snapshots_set_identity(&engine->snapshots, name, identity);
}

int na_identity_remove(na_engine *engine, const char *name) {
  return na_snapshots_set_identity(&engine->snapshots, name, NULL);
}

static na_workload *find(na_engine *engine, uint32_t id) {
  na_workload *workload = engine->workloads;
  while (workload && workload->id != id)
    workload = workload->next;
  return workload && !atomic_load(&workload->removed) ? workload : NULL;
}

int na_workload_identity(na_engine *engine, uint32_t id, const char *name) {
  na_workload *workload = find(engine, id);
  if (!workload)
    return -ENOENT;
  return *name ? na_workload_set_text(&workload->identity, name) : -EINVAL;
}

int na_workload_share(na_engine *engine, uint32_t id, const uint16_t *ports, size_t n) {
  na_workload *workload = find(engine, id);
  return workload ? na_workload_set_ports(workload, ports, n) : -ENOENT;
}

/* A header value (RFC 9110 5.5) that is visible ASCII. */
static bool is_header_value(const char *text) {
  for (; *text; text++)
    if (*text < 0x20 || *text > 0x7e)
      return false;
  return true;
}

int na_workload_baggage(na_engine *engine, uint32_t id, const char *baggage) {
  na_workload *workload = find(engine, id);
  if (!workload)
    return -ENOENT;
  if (strlen(baggage) > NA_MAX_BAGGAGE || !is_header_value(baggage))
    return -EINVAL;
  return na_workload_set_text(&workload->baggage, baggage);
}

int na_workload_search(na_engine *engine, uint32_t id, const char *domains) {
  na_workload *workload = find(engine, id);
  return workload ? na_workload_set_text(&workload->search, domains) : -ENOENT;
}

const char *na_engine_policy(na_engine *engine, uint32_t id) {
  return na_principals_text(&engine->policies, id);
}

const char *na_engine_principal(na_engine *engine, uint32_t id) {
  return na_principals_text(&engine->principals, id);
}
