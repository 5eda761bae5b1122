/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Workloads that share a network namespace, such as the services of a virtual machine or pods in their host's: each is
 * a cgroup. A process cannot choose its own unless it may write to cgroupfs, which is root's or whom root lets.
 */
#ifndef NODEAGENT_BPF_GROUPS_H
#define NODEAGENT_BPF_GROUPS_H

#include "address.h"

/* Several namespaces may be shared, each by as many. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1024);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_group_key);
  __type(value, struct na_group);
} groups SEC(".maps");

/* The workload that the current task belongs to: the innermost cgroup of its that is one. Only levels on which the
 * namespace has workloads are looked at. */
static __always_inline struct na_group *find_group(const struct na_workload_entry *shared, __u64 cookie) {
  struct na_group_key key = {.netns_cookie = cookie};
  struct na_group *found = 0;

  for (int level = NA_GROUP_LEVELS; level > 0 && !found; level--) {
    if (!(shared->group_levels & 1u << level))
      continue;
    key.cgroup = bpf_get_current_ancestor_cgroup_id(level);
    if (key.cgroup)
      found = bpf_map_lookup_elem(&groups, &key);
  }
  return found;
}

static __always_inline __u16 outbound_port(const struct na_group *group) {
  return NA_PORT_SHARED_OUTBOUND + (group->slot & (NA_SHARED_WORKLOADS - 1));
}

static __always_inline int is_shared_outbound(__u32 port) {
  return port - NA_PORT_SHARED_OUTBOUND < NA_SHARED_WORKLOADS;
}

#endif
