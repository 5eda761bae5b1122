/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Parts of sk_lookup programs: who speaks to whom.
 */
#ifndef NODEAGENT_BPF_ARRIVAL_H
#define NODEAGENT_BPF_ARRIVAL_H

#include "address.h"

#define LOOPBACK_IFINDEX 1

static __always_inline void read_addresses(struct bpf_sk_lookup *ctx, struct na_address *local,
                                           struct na_address *remote) {
  if (ctx->family == AF_INET) {
    set_mapped(local, ctx->local_ip4);
    KEEP_BRANCH();
    set_mapped(remote, ctx->remote_ip4);
    KEEP_BRANCH();
    return;
  }
  *local = (struct na_address){{ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]}};
  *remote = (struct na_address){{ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]}};
}

/* The kubelet's probes, as istio-cni marks them by their source: 169.254.7.127, and fd16:9254:7127:1337:ffff:...:ffff.
 */
static __always_inline int is_probe(const struct na_address *from) {
  struct na_address probe4, probe6 = {{bpf_htonl(0xfd169254), bpf_htonl(0x71271337), 0xffffffff, 0xffffffff}};

  set_mapped(&probe4, bpf_htonl(0xa9fe077f));
  return same_address(from, &probe4) || same_address(from, &probe6);
}

/* Whether nobody from outside speaks. To an own address from there: the ingress device is then the one that owns the
 * address, not lo. */
static __always_inline int is_within(const struct na_address *local, const struct na_address *remote) {
  return same_address(local, remote) || is_loopback(remote);
}

#endif
