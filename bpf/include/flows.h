/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Connections that have passed the engine, by their exact ends. Only programs write here, and only for a socket whose
 * connect() they have judged: an application cannot put itself into it. The map outlives agents, as the connections do.
 */
#ifndef NODEAGENT_BPF_FLOWS_H
#define NODEAGENT_BPF_FLOWS_H

#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_bypass_key);
  __type(value, struct na_bypass);
} bypassed SEC(".maps");

#endif
