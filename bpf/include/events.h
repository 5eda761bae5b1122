/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * What becomes of connections past the engine, told to the agent through a ring buffer for metrics and access log.
 */
#ifndef NODEAGENT_BPF_EVENTS_H
#define NODEAGENT_BPF_EVENTS_H

#include <bpf/bpf_helpers.h>

#include "counters.h"
#include "nodeagent_abi.h"

/* The agent looks now and then. It is woken when this much is there, and not again with each event after that: waking
 * costs more than telling. (A few times, since those that several CPUs write at once may go past the very mark.) */
#define EVENTS_BYTES     (1 << 20)
#define EVENTS_WAKE_FROM (EVENTS_BYTES / 4)
#define EVENTS_WAKE_TO   (EVENTS_WAKE_FROM + 8 * sizeof(struct na_bypass_event))

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

/* Room for an event, all of it zero or set but ends and flow. NULL, and counted: there is none. */
static __always_inline struct na_bypass_event *reserve_event(__u32 kind) {
  struct na_bypass_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

  if (!event) {
    count(NA_COUNT_NO_EVENT);
    return 0;
  }
  event->at_ns = bpf_ktime_get_ns();
  event->sent = event->received = 0;
  event->kind = kind;
  event->end = event->policy = event->srtt_us = event->retransmits = event->error = 0;
  return event;
}

static __always_inline void submit_event(struct na_bypass_event *event) {
  __u64 unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
  int wake = unread >= EVENTS_WAKE_FROM && unread < EVENTS_WAKE_TO;

  bpf_ringbuf_submit(event, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

#endif
