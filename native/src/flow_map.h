/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading the BPF map from na_flow to na_destination (nodeagent_abi.h, whose names are others here).
 */
#ifndef NODEAGENT_FLOW_MAP_H
#define NODEAGENT_FLOW_MAP_H

#include <stdint.h>

/* Where the client of a namespace, by its cookie, was going. 0 or -errno; -ENOENT: it was not captured. */
int na_flow_map_find(int map, uint64_t cookie, const uint8_t client[16], uint16_t client_port, uint8_t ip[16],
                     uint16_t *port);

#endif
