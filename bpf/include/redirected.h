/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What connections have carried past TCP (direct.bpf.c), whose counters do not know of it. Whoever tells of a
 * connection's bytes adds these.
 */
#ifndef NODEAGENT_BPF_REDIRECTED_H
#define NODEAGENT_BPF_REDIRECTED_H

#include <bpf/bpf_helpers.h>

#include "direct_abi.h"

/* By the cookie of the client's socket, for as long as it is connected. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct na_redirected);
} redirected SEC(".maps");

#endif
