/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Whether the agent lives: the kernel knows it at once, however it ended. The agent keeps a socket in the one slot of
 * a map, out of which the kernel takes it when it closes; after SIGKILL that is before the agent can be waited for.
 *
 * For programs that have bpf_sk_release(), such as those of connect(), sendmsg() and sk_lookup. Those of sockops and
 * sk_msg have not, and the verifier refuses them what they could not give back.
 *
 * Kernel: >= 5.15 (Unix sockets in such maps).
 */
#ifndef NODEAGENT_BPF_LIVENESS_H
#define NODEAGENT_BPF_LIVENESS_H

#include <bpf/bpf_helpers.h>

struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} liveness SEC(".maps");

static __always_inline int agent_is_alive(void) {
  __u32 only = 0;
  struct bpf_sock *sk = bpf_map_lookup_elem(&liveness, &only);

  if (!sk)
    return 0;
  bpf_sk_release(sk);
  return 1;
}

#endif
