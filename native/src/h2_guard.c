/* SPDX-License-Identifier: Apache-2.0 */
#include "h2_guard.h"

#include <stddef.h>

/* Envoy: max_consecutive_inbound_frames_with_empty_payload */
#define MAX_EMPTY 1
/* Envoy: max_inbound_priority_frames_per_stream */
#define PRIORITIES_PER_STREAM 100
/* Envoy: max_inbound_window_update_frames_per_data_frame_sent */
#define UPDATES_PER_DATA 10
/* PING and SETTINGS per second; a peer with something to measure sends a few. */
#define MAX_CONTROLS 1000
/* Streams after which resets are looked at, and per second too: CVE-2023-44487, CVE-2025-8671. */
#define RESET_GRACE       500
#define RESETS_PER_SECOND 100

const char *na_h2_guard_priority(na_h2_guard *guard) {
  return ++guard->priorities > PRIORITIES_PER_STREAM * (1 + guard->streams) ? "too many PRIORITY frames" : NULL;
}

const char *na_h2_guard_window_update(na_h2_guard *guard) {
  uint64_t allowed = 5 + 2 * (guard->streams + UPDATES_PER_DATA * guard->data_sent);
  return ++guard->window_updates > allowed ? "too many WINDOW_UPDATE frames" : NULL;
}

static void turn_second(na_h2_guard *guard, uint64_t now_ms) {
  if (now_ms - guard->second_ms < 1000)
    return;
  guard->second_ms = now_ms;
  guard->controls = guard->resets = guard->ended = 0;
}

const char *na_h2_guard_control(na_h2_guard *guard, uint64_t now_ms) {
  turn_second(guard, now_ms);
  return ++guard->controls > MAX_CONTROLS ? "too many PING or SETTINGS frames" : NULL;
}

const char *na_h2_guard_payload(na_h2_guard *guard, bool useful) {
  guard->empty = useful ? 0 : guard->empty + 1;
  return guard->empty > MAX_EMPTY ? "too many empty frames" : NULL;
}

const char *na_h2_guard_end(na_h2_guard *guard, bool reset, uint64_t now_ms) {
  turn_second(guard, now_ms);
  guard->ended++;
  guard->resets += reset;
  bool flood = guard->streams > RESET_GRACE && guard->resets > RESETS_PER_SECOND && guard->resets * 2 > guard->ended;
  return flood ? "too many streams reset" : NULL;
}
