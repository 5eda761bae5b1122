/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Both ends of a connection, as a socket's own program (sockops) finds them.
 */
#ifndef NODEAGENT_BPF_ENDS_H
#define NODEAGENT_BPF_ENDS_H

#include "address.h"

/* The socket's own end is the source. One of IPv6 that speaks IPv4 has mapped addresses; one of IPv4 gets them here. */
static __always_inline void read_ends(struct bpf_sock_ops *ops, struct na_bypass_key *out) {
  if (ops->family == AF_INET) {
    set_mapped(&out->source, ops->local_ip4);
    KEEP_BRANCH();
    set_mapped(&out->destination, ops->remote_ip4);
    KEEP_BRANCH();
  } else {
    out->source = (struct na_address){{ops->local_ip6[0], ops->local_ip6[1], ops->local_ip6[2], ops->local_ip6[3]}};
    out->destination =
        (struct na_address){{ops->remote_ip6[0], ops->remote_ip6[1], ops->remote_ip6[2], ops->remote_ip6[3]}};
  }
  out->source_port = (__u16)ops->local_port;
  out->destination_port = (__u16)bpf_ntohl(ops->remote_port);
  out->reserved = 0;
}

#endif
