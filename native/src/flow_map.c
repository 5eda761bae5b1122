/* SPDX-License-Identifier: Apache-2.0 */
#include "flow_map.h"

#include <bpf/bpf.h>
#include <nodeagent_abi.h>
#include <string.h>

int na_flow_map_find(int map, uint64_t cookie, const uint8_t client[16], uint16_t client_port, uint8_t ip[16],
                     uint16_t *port) {
  struct na_flow flow = {.netns_cookie = cookie, .source_port = client_port};
  struct na_destination found;
  memcpy(&flow.source, client, sizeof flow.source);
  int error = bpf_map_lookup_elem(map, &flow, &found);
  if (error)
    return error;
  memcpy(ip, &found.address, sizeof found.address);
  *port = found.port;
  return 0;
}
