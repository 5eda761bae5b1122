/* SPDX-License-Identifier: Apache-2.0 */
#include "timer.h"

#include <assert.h>

#define SLOT_MASK (NA_WHEEL_SLOTS - 1)
#define SPAN      ((uint64_t)1 << (NA_WHEEL_BITS * NA_WHEEL_LEVELS))

void na_wheel_init(na_wheel *wheel, uint64_t now_ms) {
  wheel->now_ms = now_ms;
  wheel->next_ms = NA_WHEEL_IDLE;
  for (int level = 0; level < NA_WHEEL_LEVELS; level++) {
    wheel->occupied[level] = 0;
    for (int slot = 0; slot < NA_WHEEL_SLOTS; slot++)
      na_link_init(&wheel->slots[level][slot]);
  }
}

void na_timer_init(na_timer *timer, na_timer_fn *fn) {
  na_link_init(&timer->link);
  timer->expires_ms = 0;
  timer->fn = fn;
  timer->level = timer->slot = 0;
}

/* The lowest level whose slot for `expires` lies ahead of now: the highest digit (base 64) in which they differ. */
static int level_of(uint64_t now, uint64_t expires) {
  uint64_t differing = now ^ expires;
  assert(differing != 0 && expires > now);
  int level = (63 - __builtin_clzll(differing)) / NA_WHEEL_BITS;
  return level < NA_WHEEL_LEVELS ? level : NA_WHEEL_LEVELS - 1;
}

void na_timer_arm(na_wheel *wheel, na_timer *timer, uint64_t expires_ms) {
  na_link_remove(&timer->link);
  if (expires_ms <= wheel->now_ms)
    expires_ms = wheel->now_ms + 1;
  /* A slot of the top level must not be taken for the one that is due: stay within one turn of it. */
  uint64_t limit = SPAN - (SPAN >> NA_WHEEL_BITS);
  timer->expires_ms = expires_ms - wheel->now_ms < limit ? expires_ms : wheel->now_ms + limit - 1;
  timer->level = (uint8_t)level_of(wheel->now_ms, timer->expires_ms);
  timer->slot = (timer->expires_ms >> (NA_WHEEL_BITS * timer->level)) & SLOT_MASK;
  na_list_push_back(&wheel->slots[timer->level][timer->slot], &timer->link);
  wheel->occupied[timer->level] |= (uint64_t)1 << timer->slot;
  uint64_t turn = timer->expires_ms >> (NA_WHEEL_BITS * timer->level) << (NA_WHEEL_BITS * timer->level);
  if (turn < wheel->next_ms)
    wheel->next_ms = turn;
}

void na_timer_disarm(na_timer *timer) {
  na_link_remove(&timer->link);
}

/* Run or move down the timers of one slot. */
static void drain_slot(na_wheel *wheel, int level, unsigned slot) {
  na_link due;
  na_list_take(&due, &wheel->slots[level][slot]);
  wheel->occupied[level] &= ~((uint64_t)1 << slot);
  while (!na_list_empty(&due)) {
    na_timer *timer = na_container_of(due.next, na_timer, link);
    na_link_remove(&timer->link);
    if (timer->expires_ms <= wheel->now_ms)
      timer->fn(timer);
    else
      na_timer_arm(wheel, timer, timer->expires_ms);
  }
}

/* When the first slot that holds timers comes up. */
static uint64_t find_next(na_wheel *wheel) {
  uint64_t next = NA_WHEEL_IDLE;
  for (int level = 0; level < NA_WHEEL_LEVELS; level++) {
    int shift = NA_WHEEL_BITS * level;
    unsigned at = (wheel->now_ms >> shift) & SLOT_MASK;
    while (wheel->occupied[level]) {
      uint64_t bits = wheel->occupied[level];
      unsigned turn = (at + 1) & SLOT_MASK;
      uint64_t ahead = turn ? bits >> turn | bits << (NA_WHEEL_SLOTS - turn) : bits;
      unsigned distance = (unsigned)__builtin_ctzll(ahead) + 1;
      unsigned slot = (at + distance) & SLOT_MASK;
      if (na_list_empty(&wheel->slots[level][slot])) { /* all disarmed since */
        wheel->occupied[level] &= ~((uint64_t)1 << slot);
        continue;
      }
      uint64_t when = ((wheel->now_ms >> shift) + distance) << shift;
      if (when < next)
        next = when;
      break;
    }
  }
  return next;
}

void na_wheel_advance(na_wheel *wheel, uint64_t now_ms) {
  while (wheel->next_ms <= now_ms) {
    uint64_t next = wheel->next_ms = find_next(wheel); /* what it was may have been disarmed */
    if (next > now_ms)
      break;
    wheel->now_ms = next;
    /* Upper levels first: what they hold may be due in this very millisecond. */
    for (int level = NA_WHEEL_LEVELS - 1; level >= 0; level--) {
      int shift = NA_WHEEL_BITS * level;
      if (level && (next & (((uint64_t)1 << shift) - 1)))
        continue;
      drain_slot(wheel, level, (next >> shift) & SLOT_MASK);
    }
  }
  if (now_ms > wheel->now_ms)
    wheel->now_ms = now_ms;
}
