/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * connect() past the engine: to a workload of this node that speaks plain TCP for the mesh, where policy allows it.
 * Whatever cannot be decided here is the engine's. That it is allowed is asked again where the connection arrives
 * (inbound.bpf.c).
 */
#ifndef NODEAGENT_BPF_BYPASS_H
#define NODEAGENT_BPF_BYPASS_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "address.h"
#include "counters.h"
#include "events.h"
#include "kernel_types.h"
#include "liveness.h"
#include "nodeagent_abi.h"
#include "verdict.h"

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_service_key);
  __type(value, struct na_service);
} services SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 131072);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct na_backend_key);
  __type(value, struct na_backend);
} backends SEC(".maps");

/* How a connect() ends that bypass was asked about. */
enum bypass { BYPASS_ENGINE = 0, BYPASS_ALLOWED = 1, BYPASS_DENIED = 2 };

/* One of the endpoints of what is asked for; `asked` tells the engine whose, should it come to that. NULL: the engine
 * must choose, or has to send it elsewhere. */
static __always_inline const struct na_backend *draw_backend(struct na_destination *asked, __u32 view, __u8 protocol,
                                                             __u32 *service_id) {
  struct na_service_key key = {asked->address, view, asked->port, protocol, 0};
  const struct na_service *service = bpf_map_lookup_elem(&services, &key);
  const struct na_backend *backend;
  struct na_backend_key slot;

  if (!service || !service->slots)
    return 0;
  *service_id = slot.service = service->id;
  slot.slot = service->slots == 1 ? 0 : bpf_get_prandom_u32() % service->slots;
  backend = bpf_map_lookup_elem(&backends, &slot);
  asked->drawn = backend ? backend->workload : NA_DRAWN_ELSEWHERE;
  return backend;
}

/* Whether verdicts were made for what a socket connects from. A device that it is bound to may not lead to the
 * endpoint. */
static __always_inline int is_plain_client(const struct bpf_sock *sk, const struct na_address *from,
                                           const struct na_workload_entry *workload) {
  return !(workload->flags & NA_WORKLOAD_SHARED) && !sk->bound_dev_if && (is_any(from) || is_own(workload, from));
}

/* Whether a socket that asked for an address can connect to an endpoint. The families are the same, or the socket is
 * one of IPv6 that speaks IPv4, too, as an address of a service in either family means the same endpoints. */
static __always_inline int can_reach(struct bpf_sock_addr *ctx, const struct na_address *from,
                                     const struct na_address *asked, const struct na_address *endpoint) {
  const struct tcp_sock *tcp;

  if (is_mapped(asked) == is_mapped(endpoint))
    return 1;
  if (ctx->family != AF_INET6 || !is_mapped(endpoint) || !is_any(from))
    return 0;
  tcp = bpf_skc_to_tcp_sock(ctx->sk);
  return tcp && !BPF_CORE_READ_BITFIELD(&tcp->inet_conn.icsk_inet.sk.__sk_common, skc_ipv6only);
}

static __always_inline void tell_denied(struct bpf_sock_addr *ctx, const struct na_address *from,
                                        const struct na_workload_entry *workload, const struct na_original *kept,
                                        const struct na_destination *to, __u32 policy) {
  const struct na_address *source = is_mapped(&to->address) ? &workload->source4 : &workload->source6;
  struct na_bypass_event *event = reserve_event(NA_BYPASS_DENIED);

  if (!event)
    return;
  event->ends.source = is_any(from) ? *source : *from;
  event->ends.source_port = (__u16)ctx->sk->src_port;
  event->ends.destination = to->address;
  event->ends.destination_port = to->port;
  event->ends.reserved = 0;
  event->flow = (struct na_bypass){kept->asked,
                                   bpf_get_netns_cookie(ctx),
                                   bpf_get_socket_cookie(ctx),
                                   event->at_ns,
                                   kept->life,
                                   kept->source,
                                   kept->destination,
                                   kept->service,
                                   0,
                                   0};
  event->policy = policy;
  submit_event(event);
}

/* Decide on a connect() that would be captured: fills `kept` but for what was asked, and where it goes. */
static __always_inline enum bypass try_bypass(struct bpf_sock_addr *ctx, const struct na_address *from,
                                              const struct na_workload_entry *workload, struct na_original *kept,
                                              struct na_destination *to) {
  __u64 cookie = bpf_get_netns_cookie(ctx);
  __u32 number = present_life();
  const struct na_access_entry *verdict;
  const struct na_backend *backend;
  const struct na_source *source;

  if (!number || !is_plain_client(ctx->sk, from, workload))
    return BYPASS_ENGINE;
  source = bpf_map_lookup_elem(&sources, &cookie);
  if (!source)
    return BYPASS_ENGINE;
  backend = draw_backend(&kept->asked, source->view, (__u8)ctx->protocol, &kept->service);
  if (!backend || is_own(workload, &backend->address) || !can_reach(ctx, from, &kept->asked.address, &backend->address))
    return BYPASS_ENGINE;
  verdict = access_of(source->workload, backend->workload, backend->port, (__u8)ctx->protocol);
  if (!verdict || verdict->access == NA_ACCESS_ENGINE || !agent_is_alive())
    return BYPASS_ENGINE;
  kept->life = number;
  kept->source = source->workload;
  kept->destination = backend->workload;
  to->address = backend->address;
  to->port = backend->port;
  kept->asked.drawn = NA_DRAWN_NONE;
  if (verdict->access == NA_ACCESS_ALLOW) {
    count(NA_COUNT_BYPASSED);
    return BYPASS_ALLOWED;
  }
  count(NA_COUNT_DENIED);
  tell_denied(ctx, from, workload, kept, to, verdict->policy);
  kept->life = 0;
  return BYPASS_DENIED;
}

#endif
