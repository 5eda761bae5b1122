/* SPDX-License-Identifier: Apache-2.0
 *
 * A hierarchical timing wheel: arming, disarming and expiry are O(1) and make no system call. Resolution is one
 * millisecond; the span is 2^30 ms (longer deadlines are clamped to it).
 */
#ifndef NODEAGENT_TIMER_H
#define NODEAGENT_TIMER_H

#include <stdint.h>

#include "list.h"

#define NA_WHEEL_BITS   6
#define NA_WHEEL_SLOTS  (1 << NA_WHEEL_BITS)
#define NA_WHEEL_LEVELS 5
/* na_wheel_next when nothing is armed. */
#define NA_WHEEL_IDLE UINT64_MAX

typedef struct na_timer na_timer;
typedef void na_timer_fn(na_timer *timer);

struct na_timer {
  na_link link;
  uint64_t expires_ms;
  na_timer_fn *fn;
  uint8_t level;
  uint8_t slot;
};

typedef struct na_wheel {
  uint64_t now_ms;
  uint64_t next_ms;                   /* no timer is due before; NA_WHEEL_IDLE: none at all */
  uint64_t occupied[NA_WHEEL_LEVELS]; /* a bit per slot that may hold timers */
  na_link slots[NA_WHEEL_LEVELS][NA_WHEEL_SLOTS];
} na_wheel;

void na_wheel_init(na_wheel *wheel, uint64_t now_ms);
void na_timer_init(na_timer *timer, na_timer_fn *fn);
/* Arm, or arm anew. A deadline that has passed fires at the next advance. */
void na_timer_arm(na_wheel *wheel, na_timer *timer, uint64_t expires_ms);
void na_timer_disarm(na_timer *timer);

static inline bool na_timer_armed(const na_timer *timer) {
  return na_link_in_list(&timer->link);
}

/* Run what is due up to now_ms. Callbacks may arm and disarm any timer, their own included. */
void na_wheel_advance(na_wheel *wheel, uint64_t now_ms);
/* When to call na_wheel_advance next: not later than the next expiry, perhaps earlier (for a timer that was
 * disarmed since, or to move timers down). NA_WHEEL_IDLE: never. */
static inline uint64_t na_wheel_next(const na_wheel *wheel) {
  return wheel->next_ms;
}

#endif
