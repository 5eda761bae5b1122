/* SPDX-License-Identifier: Apache-2.0
 *
 * Budgets of an HTTP/2 connection: what a peer may make us do without getting work done itself. Counts frames by kind,
 * as Envoy does (its Http2ProtocolOptions), and streams that end in a reset.
 */
#ifndef NODEAGENT_H2_GUARD_H
#define NODEAGENT_H2_GUARD_H

#include <stdbool.h>
#include <stdint.h>

typedef struct na_h2_guard {
  uint64_t streams;   /* opened by the peer, or by us */
  uint64_t data_sent; /* DATA frames */
  uint64_t priorities;
  uint64_t window_updates;
  uint32_t empty;     /* frames without payload in a row */
  uint32_t controls;  /* PING and SETTINGS in the running second */
  uint32_t resets;    /* streams reset in the running second, by whomever */
  uint32_t ended;     /* streams ended in the running second */
  uint64_t second_ms; /* its beginning */
} na_h2_guard;

/* Each notes one event and returns NULL, or why the connection must end. `now_ms` is the loop's clock. */
const char *na_h2_guard_priority(na_h2_guard *guard);
const char *na_h2_guard_window_update(na_h2_guard *guard);
const char *na_h2_guard_control(na_h2_guard *guard, uint64_t now_ms);
/* A DATA, HEADERS or CONTINUATION frame; `useful`: it has a payload or ends its stream. */
const char *na_h2_guard_payload(na_h2_guard *guard, bool useful);
/* The end of a stream: in order, or (reset) not. */
const char *na_h2_guard_end(na_h2_guard *guard, bool reset, uint64_t now_ms);

#endif
