/* SPDX-License-Identifier: Apache-2.0
 *
 * The timing wheel, compared with a sorted list of what should fire.
 */
#include "timer.h"

#include <stdlib.h>

#include "cmocka_common.h"

typedef struct probe {
  na_timer timer;
  uint64_t fired_at; /* 0: not yet */
  int fired;
} probe;

static na_wheel wheel;

static void fire(na_timer *timer) {
  probe *p = na_container_of(timer, probe, timer);
  p->fired_at = wheel.now_ms;
  p->fired++;
}

static void fires_at_its_time(void **state) {
  static const uint64_t delays[] = {1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 300000, 3600000, 86400000};
  for (size_t i = 0; i < COUNT(delays); i++) {
    probe p = {0};
    na_wheel_init(&wheel, 123456789);
    na_timer_init(&p.timer, fire);
    na_timer_arm(&wheel, &p.timer, 123456789 + delays[i]);
    na_wheel_advance(&wheel, 123456789 + delays[i] - 1);
    assert_int_equal(p.fired, 0);
    assert_true(na_timer_armed(&p.timer));
    na_wheel_advance(&wheel, 123456789 + delays[i]);
    assert_int_equal(p.fired, 1);
    assert_int_equal(p.fired_at, 123456789 + delays[i]);
    assert_false(na_timer_armed(&p.timer));
  }
}

static void fires_what_is_overdue_at_once(void **state) {
  probe p = {0};
  na_wheel_init(&wheel, 1000);
  na_timer_init(&p.timer, fire);
  na_timer_arm(&wheel, &p.timer, 10);
  na_wheel_advance(&wheel, 1001);
  assert_int_equal(p.fired, 1);
}

static void can_be_disarmed_and_moved(void **state) {
  probe p = {0};
  na_wheel_init(&wheel, 0);
  na_timer_init(&p.timer, fire);
  na_timer_arm(&wheel, &p.timer, 50);
  na_timer_disarm(&p.timer);
  na_timer_disarm(&p.timer);
  na_wheel_advance(&wheel, 100);
  assert_int_equal(p.fired, 0);
  na_timer_arm(&wheel, &p.timer, 150);
  na_timer_arm(&wheel, &p.timer, 5000);
  na_wheel_advance(&wheel, 4999);
  assert_int_equal(p.fired, 0);
  na_wheel_advance(&wheel, 5000);
  assert_int_equal(p.fired, 1);
  assert_int_equal(na_wheel_next(&wheel), NA_WHEEL_IDLE);
}

/* A deadline beyond the wheel's span fires early, never late or never: owners look at the clock and arm anew. */
static void clamps_what_is_too_far_away(void **state) {
  probe p = {0};
  na_wheel_init(&wheel, 77);
  na_timer_init(&p.timer, fire);
  na_timer_arm(&wheel, &p.timer, UINT64_MAX);
  na_wheel_advance(&wheel, 77 + ((uint64_t)1 << 30));
  assert_int_equal(p.fired, 1);
}

static na_timer *victim;

static void disarm_victim(na_timer *timer) {
  fire(timer);
  na_timer_disarm(victim);
}

static void callbacks_may_disarm_others_due_now(void **state) {
  probe a = {0}, b = {0};
  na_wheel_init(&wheel, 0);
  na_timer_init(&a.timer, disarm_victim);
  na_timer_init(&b.timer, fire);
  victim = &b.timer;
  na_timer_arm(&wheel, &a.timer, 10);
  na_timer_arm(&wheel, &b.timer, 10);
  na_wheel_advance(&wheel, 20);
  assert_int_equal(a.fired, 1);
  assert_int_equal(b.fired, 0);
}

/* Many timers, random delays, random steps: each fires once, in the first step that reaches it. */
static void agrees_with_the_clock(void **state) {
  enum { N = 5000 };
  static probe probes[N];
  static uint64_t due[N];
  srand(1);
  uint64_t now = 0x123456789ab;
  na_wheel_init(&wheel, now);
  for (int i = 0; i < N; i++) {
    na_timer_init(&probes[i].timer, fire);
    due[i] = now + 1 + (uint64_t)rand() % (1 << (1 + rand() % 22));
    na_timer_arm(&wheel, &probes[i].timer, due[i]);
  }
  for (int left = N; left;) {
    uint64_t next = na_wheel_next(&wheel);
    assert_true(next != NA_WHEEL_IDLE && next > now);
    now += 1 + (uint64_t)rand() % 5000;
    na_wheel_advance(&wheel, now);
    left = 0;
    for (int i = 0; i < N; i++) {
      assert_int_equal(probes[i].fired, due[i] <= now);
      if (probes[i].fired)
        assert_int_equal(probes[i].fired_at, due[i]);
      left += !probes[i].fired;
    }
  }
  assert_int_equal(na_wheel_next(&wheel), NA_WHEEL_IDLE);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(fires_at_its_time),
      cmocka_unit_test(fires_what_is_overdue_at_once),
      cmocka_unit_test(can_be_disarmed_and_moved),
      cmocka_unit_test(clamps_what_is_too_far_away),
      cmocka_unit_test(callbacks_may_disarm_others_due_now),
      cmocka_unit_test(agrees_with_the_clock),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
