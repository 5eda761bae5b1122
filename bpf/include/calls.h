/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Connections of the agent's to applications that are being made, in the name of their clients (stand_in.h).
 */
#ifndef NODEAGENT_BPF_CALLS_H
#define NODEAGENT_BPF_CALLS_H

#include "address.h"

/* Stand-ins have half an address of a client in IPv4, 127.6.0.0/16, so that connections of many clients may have the
 * same ports; and the last 64 bits of it in IPv6, where a route makes the prefix local (routing.py). */
#define STAND_IN4      0x7f060000
#define STAND_IN4_REST 0x0000ffff
#define STAND_IN6_HIGH 0xfd169254
#define STAND_IN6_LOW  0x71270006

/* Ends of such a connection, the agent's first -> its client; from the SYN until the application's end is there. LRU:
 * without an entry an application hears of a client that has no address. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct na_bypass_key);
  __type(value, struct na_destination);
} calls SEC(".maps");

static __always_inline int is_stand_in(const struct na_address *a) {
  if (is_mapped(a))
    return (a->word[3] & bpf_htonl(~STAND_IN4_REST)) == bpf_htonl(STAND_IN4);
  return !((a->word[0] ^ bpf_htonl(STAND_IN6_HIGH)) | (a->word[1] ^ bpf_htonl(STAND_IN6_LOW)));
}

#endif
