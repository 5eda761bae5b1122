/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What connections have carried past TCP (direct.bpf.c), whose counters do not know of it. Whoever tells of a
 * connection's bytes adds these.
 */
#ifndef NODEAGENT_BPF_REDIRECTED_H
#define NODEAGENT_BPF_REDIRECTED_H

#include <bpf/bpf_helpers.h>

#include "direct_abi.h"

/* A socket's own mark that it may have a cell: most have none, and to find that out takes 150 ns, as cells are all over
 * the cache. One of the flags that a program sets for callbacks, which the socket keeps until its end; this one has
 * programs run after a retransmission timeout, which both here ignore. Set by whoever else, it costs a search. */
#define REDIRECTED_CB_FLAG BPF_SOCK_OPS_RTO_CB_FLAG

/* A cell for each connection, for as long as its client is connected. An array, since each message is counted: a cell
 * is found without a call, where a hash map takes 40 ns. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, NA_REDIRECTED_CELLS);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct na_redirected);
} redirected SEC(".maps");

/* Cookies are handed out one after the other. Those of connections at the same time are led to different cache lines,
 * for their counters change all the time. */
static __always_inline __u32 cell_of(__u64 cookie, __u32 attempt) {
  return ((__u32)cookie * 0x9e3779b1 + attempt) % NA_REDIRECTED_CELLS;
}

static __always_inline struct na_redirected *find_redirected(__u64 cookie) {
  for (__u32 i = 0; i < NA_PROBED; i++) {
    __u32 index = cell_of(cookie, i);
    struct na_redirected *cell = bpf_map_lookup_elem(&redirected, &index);

    if (cell && cell->cookie == cookie)
      return cell;
  }
  return 0;
}

/* 1, and which cell it is; 0: all that it may have are others'. */
static __always_inline int claim_redirected(__u64 cookie, __u32 *out) {
  for (__u32 i = 0; i < NA_PROBED; i++) {
    __u32 index = cell_of(cookie, i);
    struct na_redirected *cell = bpf_map_lookup_elem(&redirected, &index);

    if (cell && !__sync_val_compare_and_swap(&cell->cookie, 0, cookie)) {
      *out = index;
      return 1;
    }
  }
  return 0;
}

static __always_inline void release_redirected(struct na_redirected *cell) {
  cell->sent = 0;
  cell->received = 0;
  __sync_lock_test_and_set(&cell->cookie, 0); /* after those */
}

#endif
