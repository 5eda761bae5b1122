/* SPDX-License-Identifier: Apache-2.0
 *
 * Lookups in a snapshot.
 */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http1_parse.h"
#include "snapshot_parts.h"

static const uint8_t any_address[16];

void na_address_key(uint8_t key[NA_ADDRESS_KEY], const uint8_t *address, uint16_t port) {
  memcpy(key, address ? address : any_address, 16);
  key[16] = (uint8_t)(port >> 8);
  key[17] = (uint8_t)port;
}

const na_view *na_snapshot_view(const na_snapshot *snapshot, const char *name) {
  return na_map_find(&snapshot->views->map, name, (uint32_t)strlen(name));
}

na_destination *na_view_destination(const na_view *view, const uint8_t address[16], uint16_t port) {
  uint8_t key[NA_ADDRESS_KEY];
  na_address_key(key, address, port);
  na_destination *destination = na_map_find(&view->destinations, key, sizeof key);
  if (destination)
    return destination;
  na_address_key(key, NULL, port);
  return na_map_find(&view->destinations, key, sizeof key);
}

static int compare_addresses(const void *a, const void *b) {
  return memcmp(a, b, 16);
}

bool na_snapshot_hinted(const na_snapshot *snapshot, const uint8_t address[16], uint16_t port) {
  const na_hints *hints = snapshot->hints;
  if (hints->ports[port / 8] & 1u << port % 8)
    return true;
  return hints->n && bsearch(address, hints->addresses, hints->n, 16, compare_addresses);
}

na_cluster *na_snapshot_cluster(const na_snapshot *snapshot, uint32_t slot) {
  return slot < snapshot->clusters->n ? snapshot->clusters->at[slot] : NULL;
}

na_cluster *na_snapshot_pick_cluster(const na_snapshot *snapshot, const na_destination *destination, uint64_t random,
                                     bool *passthrough) {
  *passthrough = destination->n == 0;
  uint64_t at = (uint64_t)((__uint128_t)random * destination->total_weight >> 64);
  for (uint32_t i = 0; i < destination->n; i++) {
    if (at < destination->clusters[i].weight)
      return na_snapshot_cluster(snapshot, destination->clusters[i].slot);
    at -= destination->clusters[i].weight;
  }
  return NULL;
}

const na_table *na_snapshot_table(const na_snapshot *snapshot, uint32_t slot) {
  return slot < snapshot->tables->n ? snapshot->tables->at[slot] : NULL;
}

const na_inbound *na_snapshot_inbound(const na_snapshot *snapshot, uint32_t workload) {
  return na_map_find(&snapshot->inbounds->map, &workload, sizeof workload);
}

na_identity *na_snapshot_identity(const na_snapshot *snapshot, const char *name) {
  return na_map_find(&snapshot->identities->map, name, (uint32_t)strlen(name));
}

static int compare_ports(const void *key, const void *item) {
  uint16_t port = *(const uint16_t *)key, other = ((const na_inbound_port *)item)->port;
  return (port > other) - (port < other);
}

static const na_inbound_port *find_port(const na_inbound *inbound, uint16_t port) {
  return inbound->n ? bsearch(&port, inbound->ports, inbound->n, sizeof *inbound->ports, compare_ports) : NULL;
}

enum na_protocol na_inbound_protocol(const na_inbound *inbound, uint16_t port, uint32_t *tag) {
  const na_inbound_port *found = find_port(inbound, port);
  *tag = found ? found->tag : 0;
  return (enum na_protocol)(found ? found->protocol : inbound->config.fallback);
}

const na_stage *na_inbound_stages(const na_inbound *inbound, uint16_t port, enum na_guarded guarded,
                                  na_guards **guards) {
  *guards = NULL;
  if (!inbound->guards)
    return NULL;
  const na_inbound_port *found = find_port(inbound, port);
  uint32_t number = found ? found->guards : inbound->config.fallback_guards;
  if (!number)
    return NULL;
  *guards = inbound->guards[number - 1];
  return (*guards)->stages[guarded];
}

uint8_t na_inbound_slashes(const na_inbound *inbound, uint16_t port) {
  na_guards *guards;
  (void)na_inbound_stages(inbound, port, NA_GUARDED_REQUEST, &guards);
  return guards ? guards->slashes : 0;
}

const na_stage *na_inbound_every(const na_inbound *inbound) {
  if (!inbound->guards || !inbound->config.every)
    return NULL;
  return inbound->guards[inbound->config.every - 1]->stages[NA_GUARDED_CONNECTION];
}

uint16_t na_inbound_target(const na_inbound *inbound, na_str host, uint16_t port) {
  for (uint32_t i = 0; i < inbound->nnames; i++) {
    const na_inbound_name *name = &inbound->names[i];
    if (name->port == port && strlen(name->host) == host.n && strncasecmp(name->host, host.p, host.n) == 0)
      return name->target;
  }
  return 0;
}

const na_inbound *na_snapshot_inbound_port(const na_snapshot *snapshot, uint32_t workload, uint16_t port) {
  const na_inbound *inbound = na_snapshot_inbound(snapshot, workload);
  uint32_t tag;
  return inbound && na_inbound_protocol(inbound, port, &tag) != NA_PROTOCOL_REFUSE ? inbound : NULL;
}

size_t na_host_of(na_str authority, char *out, size_t size) {
  uint32_t n = authority.n;
  for (uint32_t i = n; i > 0 && authority.p[i - 1] != ']'; i--)
    if (authority.p[i - 1] == ':') {
      n = i - 1;
      break;
    }
  size_t length = n < size ? n : size - 1;
  for (size_t i = 0; i < length; i++)
    out[i] = na_lower(authority.p[i]);
  out[length] = 0;
  return length;
}

bool na_table_host_unknown(const na_table *table, const char *host, size_t n) {
  return na_map_find(&table->unknown, host, (uint32_t)n) != NULL;
}

na_vhost *na_table_vhost(const na_table *table, na_str authority, bool *wait) {
  bool wildcard;
  na_vhost *vhost = na_domains_find(table->domains, authority, &wildcard);
  *wait = false;
  if (table->on_demand && authority.n && (!vhost || wildcard)) {
    char host[256];
    *wait = !na_table_host_unknown(table, host, na_host_of(authority, host, sizeof host));
  }
  return vhost;
}
