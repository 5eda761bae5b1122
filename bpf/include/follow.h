/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * A connection past the engine from its SYN to its end, as its client's socket sees it (sockops): its entry among the
 * flows, and what the agent is told of it.
 *
 * Kernel: with BTF (CONFIG_DEBUG_INFO_BTF), by which the few fields of sockets are found that the context has not.
 */
#ifndef NODEAGENT_BPF_FOLLOW_H
#define NODEAGENT_BPF_FOLLOW_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "counters.h"
#include "ends.h"
#include "events.h"
#include "flows.h"
#include "kernel_types.h"
#include "nodeagent_abi.h"
#include "redirected.h"

#define SOL_SOCKET       1
#define SOL_TCP          6
#define SO_KEEPALIVE     9
#define SO_BINDTODEVICE  25
#define TCP_KEEPIDLE     4
#define TCP_KEEPINTVL    5
#define TCP_USER_TIMEOUT 18

/* Before the SYN leaves. Without an entry the connection gets to the engine where it arrives: for want of room, or when
 * the kernel has chosen a source that is none of the workload's own, for which there is no verdict. */
static __always_inline void begin_flow(struct bpf_sock_ops *ops, struct na_original *kept,
                                       const struct na_workload_entry *workload) {
  struct na_bypass flow = {.asked = kept->asked,
                           .netns_cookie = bpf_get_netns_cookie(ops),
                           .socket_cookie = bpf_get_socket_cookie(ops),
                           .started_ns = bpf_ktime_get_ns(),
                           .life = kept->life,
                           .source = kept->source,
                           .destination = kept->destination,
                           .service = kept->service};
  struct na_bypass_key ends;

  read_ends(ops, &ends);
  if (!is_own(workload, &ends.source)) {
    kept->life = 0;
    return;
  }
  if (bpf_map_update_elem(&bypassed, &ends, &flow, BPF_ANY)) {
    kept->life = 0;
    count(NA_COUNT_NO_BYPASS);
    return;
  }
  bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Payload that the server has acknowledged: the kernel counts SYN and FIN with it. */
static __always_inline __u64 payload_sent(struct bpf_sock_ops *ops, const struct tcp_sock *tcp, __u32 state) {
  __u64 acked = ops->bytes_acked;
  int fin =
      state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2 || state == BPF_TCP_CLOSING || state == BPF_TCP_LAST_ACK;

  if (fin && ops->snd_una == tcp->write_seq)
    acked--;
  return acked ? acked - 1 : 0;
}

/* Payload that has arrived in order: the kernel counts the FIN with it. */
static __always_inline __u64 payload_received(struct bpf_sock_ops *ops, const struct sock *sk) {
  int fin = (sk->__sk_common.skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_DONE)) & 1;

  return ops->bytes_received - fin;
}

/* Who has ended a connection that leaves `state` for BPF_TCP_CLOSE. */
static __always_inline __u32 end_of(struct bpf_sock_ops *ops, const struct tcp_sock *tcp, const struct sock *sk,
                                    __u32 state) {
  if (sk->sk_err)
    return NA_BYPASS_END_RESET;
  if (state == BPF_TCP_FIN_WAIT2)
    return NA_BYPASS_END_CLIENT;
  if (state == BPF_TCP_CLOSING && ops->snd_una == tcp->write_seq)
    return NA_BYPASS_END_CLIENT;
  if (state == BPF_TCP_LAST_ACK && ops->snd_una == tcp->write_seq)
    return NA_BYPASS_END_SERVER;
  return NA_BYPASS_END_RESET;
}

/* What went past TCP. */
static __always_inline void add_redirected(struct na_bypass_event *event) {
  struct na_redirected *past = find_redirected(event->flow.socket_cookie);

  if (!past)
    return;
  event->sent += past->sent;
  event->received += past->received;
  release_redirected(past);
}

static __always_inline void tell_closed(struct bpf_sock_ops *ops, struct bpf_sock *sk, struct na_bypass_event *event,
                                        __u32 state) {
  struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

  if (!tcp)
    return;
  event->sent = payload_sent(ops, tcp, state);
  event->received = payload_received(ops, (struct sock *)tcp);
  if (ops->bpf_sock_ops_cb_flags & REDIRECTED_CB_FLAG)
    add_redirected(event);
  event->end = end_of(ops, tcp, (struct sock *)tcp, state);
  event->error = ((struct sock *)tcp)->sk_err;
}

static __always_inline void tell_flow(struct bpf_sock_ops *ops, struct bpf_sock *sk, __u32 kind,
                                      const struct na_bypass_key *ends, const struct na_bypass *flow) {
  struct na_bypass_event *event = reserve_event(kind);

  if (!event)
    return;
  event->ends = *ends;
  event->flow = *flow;
  event->srtt_us = ops->srtt_us >> 3; // the kernel has eighths
  event->retransmits = ops->total_retrans;
  if (kind != NA_BYPASS_OPENED)
    tell_closed(ops, sk, event, ops->args[0]);
  submit_event(event);
}

/* End a connection to somebody who only has the address of the workload that it was for: a pod that took it, or got it
 * before the agent heard of the workload's end. Bound to the loopback device it neither sends nor gets anything more,
 * not even the last segment of the handshake, and times out as soon as TCP can: an idle one by its second keepalive. */
static __always_inline void cut_off(struct bpf_sock_ops *ops) {
  char lo[] = "lo";
  int one = 1;

  bpf_setsockopt(ops, SOL_SOCKET, SO_BINDTODEVICE, lo, sizeof(lo));
  bpf_setsockopt(ops, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
  bpf_setsockopt(ops, SOL_TCP, TCP_KEEPIDLE, &one, sizeof(one));
  bpf_setsockopt(ops, SOL_TCP, TCP_KEEPINTVL, &one, sizeof(one));
  bpf_setsockopt(ops, SOL_TCP, TCP_USER_TIMEOUT, &one, sizeof(one));
  count(NA_COUNT_ASTRAY);
}

/* A change of state, from args[0] to args[1]. */
static __always_inline void follow_flow(struct bpf_sock_ops *ops, struct bpf_sock *sk, struct na_original *kept) {
  __u32 before = ops->args[0], after = ops->args[1];
  struct na_bypass_key ends;
  struct na_bypass *flow;
  __u32 kind;

  if (after != BPF_TCP_ESTABLISHED && after != BPF_TCP_CLOSE)
    return;
  read_ends(ops, &ends);
  flow = bpf_map_lookup_elem(&bypassed, &ends);
  if (!flow || flow->socket_cookie != bpf_get_socket_cookie(ops))
    return;
  if (after == BPF_TCP_ESTABLISHED)
    kind = NA_BYPASS_OPENED;
  else if (before == BPF_TCP_SYN_SENT || before == BPF_TCP_SYN_RECV)
    kind = NA_BYPASS_FAILED;
  else
    kind = NA_BYPASS_CLOSED;
  if (kind == NA_BYPASS_OPENED && !flow->arrived) {
    cut_off(ops);
    kind = NA_BYPASS_FAILED;
  }
  tell_flow(ops, sk, kind, &ends, flow);
  if (kind != NA_BYPASS_OPENED) {
    kept->life = 0;
    bpf_map_delete_elem(&bypassed, &ends);
  }
}

#endif
