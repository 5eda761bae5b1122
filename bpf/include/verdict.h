/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Who may connect to whom within the node, as the agent has compiled it from policies and identities. Written anew in
 * each life of an agent: what is not there, or belongs to another life, is decided by the engine.
 */
#ifndef NODEAGENT_BPF_VERDICT_H
#define NODEAGENT_BPF_VERDICT_H

#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct na_life);
} life SEC(".maps");

/* Network namespace cookie -> workload as a client. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct na_source);
} sources SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_access_key);
  __type(value, struct na_access_entry);
} access SEC(".maps");

/* 0: nothing passes the engine. */
static __always_inline __u32 present_life(void) {
  __u32 only = 0;
  struct na_life *present = bpf_map_lookup_elem(&life, &only);

  return present ? present->number : 0;
}

/* Whether a namespace is that of a workload, as a client. */
static __always_inline int is_source(__u64 netns_cookie, __u32 workload) {
  const struct na_source *source = bpf_map_lookup_elem(&sources, &netns_cookie);

  return source && source->workload == workload;
}

/* The verdict on a source; without one of its own that on everybody. NULL: the engine decides. */
static __always_inline const struct na_access_entry *access_of(__u32 source, __u32 destination, __u16 port,
                                                               __u8 protocol) {
  struct na_access_key key = {source, destination, port, protocol, 0};
  const struct na_access_entry *entry = bpf_map_lookup_elem(&access, &key);

  if (entry)
    return entry;
  key.source = 0;
  return bpf_map_lookup_elem(&access, &key);
}

#endif
