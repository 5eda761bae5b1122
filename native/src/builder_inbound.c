/* SPDX-License-Identifier: Apache-2.0
 *
 * Builders: inbound configurations, with the guards of their ports.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "builder.h"

static int compare_ports(const void *a, const void *b) {
  uint16_t x = ((const na_inbound_port *)a)->port, y = ((const na_inbound_port *)b)->port;
  return (x > y) - (x < y);
}

static int check_ports(na_builder *b, const na_inbound *inbound) {
  for (uint32_t i = 0; i < inbound->n; i++) {
    const na_inbound_port *port = &inbound->ports[i];
    if (port->protocol > NA_PROTOCOL_REFUSE)
      return na_builder_fail(b, -EINVAL, "workload %u: protocol %u of port %u is unknown", inbound->workload,
                             port->protocol, port->port);
    if (i && port->port == port[-1].port)
      return na_builder_fail(b, -EINVAL, "workload %u: port %u is there twice", inbound->workload, port->port);
    if (port->guards > inbound->nguards)
      return na_builder_fail(b, -EINVAL, "workload %u: port %u has guards %u of %u", inbound->workload, port->port,
                             port->guards, inbound->nguards);
  }
  return 0;
}

/* What is asked of every connection must not keep it waiting: the engine asks it in places where nobody waits. */
static bool every_may_be_asked(const na_guards *every) {
  for (const na_stage *stage = every->stages[NA_GUARDED_CONNECTION]; stage; stage = stage->next)
    if (stage->kind->keeps)
      return false;
  return !every->stages[NA_GUARDED_REQUEST];
}

static int check_config(na_builder *b, const na_inbound *inbound) {
  const na_inbound_config *config = &inbound->config;
  if (config->fallback > NA_PROTOCOL_REFUSE)
    return na_builder_fail(b, -EINVAL, "workload %u: fallback protocol %u is unknown", inbound->workload,
                           config->fallback);
  if (config->tunnel > NA_APPLICATION_TUNNEL_PROXY || config->tunnel_port > UINT16_MAX)
    return na_builder_fail(b, -EINVAL, "workload %u: application tunnel %u to port %u", inbound->workload,
                           config->tunnel, config->tunnel_port);
  if (config->fallback_guards > inbound->nguards || config->every > inbound->nguards)
    return na_builder_fail(b, -EINVAL, "workload %u: guards %u or %u of %u", inbound->workload, config->fallback_guards,
                           config->every, inbound->nguards);
  if (config->every && !every_may_be_asked(inbound->guards[config->every - 1]))
    return na_builder_fail(b, -EINVAL, "workload %u: every connection can be asked for rules only", inbound->workload);
  return check_ports(b, inbound);
}

static int take_guards(na_builder *b, na_inbound *inbound, na_guards *const *guards, size_t m) {
  inbound->guards = m ? calloc(m, sizeof *guards) : NULL;
  if (m && !inbound->guards)
    return na_builder_out(b, -ENOMEM);
  for (size_t i = 0; i < m; i++) {
    if (b->registry->policies)
      na_guards_enlist(guards[i], b->registry->policies);
    int rc = na_guards_seal(guards[i]);
    if (!rc)
      rc = na_guards_bind(guards[i], b->registry->cluster_names);
    if (rc)
      return na_builder_fail(b, rc, "workload %u: guards %zu: %s", inbound->workload, i + 1,
                             na_guards_error(guards[i]));
    inbound->guards[inbound->nguards++] = na_guards_ref(guards[i]);
  }
  return 0;
}

static int take_names(na_builder *b, na_inbound *inbound) {
  const na_inbound_config *config = &inbound->config;
  inbound->names = config->n_names ? calloc(config->n_names, sizeof *inbound->names) : NULL;
  if (config->n_names && !inbound->names)
    return na_builder_out(b, -ENOMEM);
  for (uint32_t i = 0; i < config->n_names; i++) {
    const na_inbound_name *name = &config->names[i];
    if (!*name->host || !name->port || !name->target)
      return na_builder_fail(b, -EINVAL, "workload %u: name '%s' stands for port %u as %u", inbound->workload,
                             name->host, name->target, name->port);
    inbound->names[i] = *name;
    inbound->names[i].host = strdup(name->host);
    if (!inbound->names[i].host)
      return na_builder_out(b, -ENOMEM);
    inbound->nnames++;
  }
  inbound->config.names = NULL; /* the caller's */
  return 0;
}

static na_inbound *new_inbound(const na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                               const na_inbound_config *config) {
  na_inbound *inbound = calloc(1, sizeof *inbound + n * sizeof *ports);
  if (!inbound)
    return NULL;
  atomic_init(&inbound->refs, 1);
  inbound->workload = workload;
  inbound->generation = b->base + 1;
  inbound->config = *config;
  inbound->n = (uint32_t)n;
  if (n)
    memcpy(inbound->ports, ports, n * sizeof *ports);
  qsort(inbound->ports, n, sizeof *ports, compare_ports);
  return inbound;
}

int na_builder_guarded_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                               const na_inbound_config *config, na_guards *const *guards, size_t m) {
  if (n > 65536 || m > 65536)
    return na_builder_fail(b, -EINVAL, "workload %u: %zu ports, %zu guards", workload, n, m);
  na_inbound *inbound = new_inbound(b, workload, ports, n, config);
  if (!inbound)
    return na_builder_out(b, -ENOMEM);
  int rc = take_names(b, inbound);
  if (!rc)
    rc = take_guards(b, inbound, guards, m);
  if (!rc)
    rc = check_config(b, inbound);
  if (!rc)
    rc = na_builder_out(b, na_shared_map_own(&b->next->inbounds));
  if (rc) {
    na_inbound_unref(inbound);
    return rc;
  }
  b->next->inbound_generation = b->base + 1;
  return na_builder_out(b, na_map_put(&b->next->inbounds->map, &inbound->workload, sizeof inbound->workload, inbound));
}

int na_builder_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n, uint32_t fallback) {
  return na_builder_guarded_inbound(b, workload, ports, n, &(na_inbound_config){.fallback = fallback}, NULL, 0);
}

int na_builder_inbound_remove(na_builder *b, uint32_t workload) {
  int rc = na_shared_map_own(&b->next->inbounds);
  if (!rc)
    na_map_remove(&b->next->inbounds->map, &workload, sizeof workload);
  b->next->inbound_generation = b->base + 1;
  return na_builder_out(b, rc);
}

int na_snapshots_drop_inbound(na_snapshots *registry, uint32_t workload) {
  if (!na_snapshot_inbound(na_snapshots_current(registry), workload))
    return 0;
  na_builder *b;
  int rc = na_snapshots_builder(registry, &b);
  if (rc)
    return rc;
  rc = na_builder_inbound_remove(b, workload);
  if (rc) {
    na_builder_abort(b);
    return rc;
  }
  return na_builder_commit(b);
}
