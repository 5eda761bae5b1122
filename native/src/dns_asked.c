/* SPDX-License-Identifier: Apache-2.0
 *
 * Which name server a captured datagram was for: bpf/dns.bpf.c keeps it by the client's side, conntrack by both.
 */
#include "conntrack.h"
#include "dns_server.h"
#include "flow_map.h"

static bool ask_conntrack(na_dns_listener *listener, const na_address *client, na_address *out) {
  if (listener->conntrack < 0)
    listener->conntrack = na_conntrack_open(&listener->workload->netns, &listener->worker->home);
  return listener->conntrack >= 0 && na_conntrack_original(listener->conntrack, client, &listener->address, out) == 0;
}

bool na_dns_asked(na_dns_listener *listener, const na_address *client, na_address *out) {
  int map = (int)listener->worker->config->dns_flows;
  bool found = map ? na_flow_map_find(map, listener->cookie, client->ip, client->port, out->ip, &out->port) == 0
                   : ask_conntrack(listener, client, out);
  /* Not a datagram that was sent to the listener itself: that would go round in circles. */
  return found && !na_ip_is_loopback(out->ip) && !na_ip_is_any(out->ip);
}
