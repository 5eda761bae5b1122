/* SPDX-License-Identifier: Apache-2.0
 *
 * Builder: DNS names; and the public calls about them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "builder.h"
#include "dns_names.h"
#include "engine.h"

int na_builder_dns(na_builder *b, const char *key, const uint8_t *addresses, size_t n) {
  na_dns_name *name = NULL;
  int rc = n ? na_dns_name_new(key, addresses, n, &name) : 0;
  if (rc == -EINVAL)
    return na_builder_fail(b, rc, "DNS name '%s': not a host name in lower case, or more than %d addresses", key,
                           NA_DNS_MAX_ADDRESSES);
  if (!rc)
    rc = na_shared_map_own(&b->next->dns);
  if (rc) {
    if (name)
      na_dns_name_ops.unref(name);
    return na_builder_out(b, rc);
  }
  if (name)
    return na_builder_out(b, na_map_put(&b->next->dns->map, name->key, name->key_n, name));
  na_map_remove(&b->next->dns->map, key, (uint32_t)strlen(key));
  return 0;
}

int na_engine_explain_name(na_engine *engine, const char *question, const char *domains, char *name, size_t name_size,
                           uint8_t *addresses, size_t max) {
  const na_snapshot *snapshot = na_snapshots_current(&engine->snapshots);
  na_dns_match match;
  size_t n = 0;
  if (!na_dns_find(&snapshot->dns->map, question, domains, &match))
    return -ENOENT;
  snprintf(name, name_size, "%s", match.name->key);
  for (int family = 0; family < 2; family++)
    for (uint32_t i = 0; i < match.name->n[family] && n < max; i++)
      memcpy(addresses + 16 * n++, match.name->addresses[family][i], 16);
  return (int)(match.name->n[0] + match.name->n[1]);
}
