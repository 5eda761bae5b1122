/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Who is captured, for all programs that are asked about a socket of a workload.
 */
#ifndef NODEAGENT_BPF_WORKLOADS_H
#define NODEAGENT_BPF_WORKLOADS_H

#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

/* Network namespace cookie -> enrolled workload. Written by the agent at enrolment. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct na_workload_entry);
} workloads SEC(".maps");

#endif
