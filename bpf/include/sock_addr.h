/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * Address and port in the context of a program at connect(), sendmsg(), recvmsg() or getpeername().
 */
#ifndef NODEAGENT_BPF_SOCK_ADDR_H
#define NODEAGENT_BPF_SOCK_ADDR_H

#include "address.h"

static __always_inline void read_user4(const struct bpf_sock_addr *ctx, struct na_destination *out) {
  set_mapped(&out->address, ctx->user_ip4);
  out->port = bpf_ntohs((__u16)ctx->user_port);
}

static __always_inline void read_user6(const struct bpf_sock_addr *ctx, struct na_destination *out) {
  out->address = (struct na_address){{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
  out->port = bpf_ntohs((__u16)ctx->user_port);
}

static __always_inline void write_user4(struct bpf_sock_addr *ctx, const struct na_destination *to) {
  ctx->user_ip4 = to->address.word[3];
  ctx->user_port = bpf_htons(to->port);
}

static __always_inline void write_user6(struct bpf_sock_addr *ctx, const struct na_destination *to) {
  ctx->user_ip6[0] = to->address.word[0];
  ctx->user_ip6[1] = to->address.word[1];
  ctx->user_ip6[2] = to->address.word[2];
  ctx->user_ip6[3] = to->address.word[3];
  ctx->user_port = bpf_htons(to->port);
}

#endif
