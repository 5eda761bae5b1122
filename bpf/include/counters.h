/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Counters of events (enum na_bpf_counter), one map for all programs of an agent.
 */
#ifndef NODEAGENT_BPF_COUNTERS_H
#define NODEAGENT_BPF_COUNTERS_H

#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, NA_COUNTERS);
  __type(key, __u32);
  __type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which) {
  __u64 *value = bpf_map_lookup_elem(&counters, &which);
  if (value)
    *value += 1;
}

#endif
