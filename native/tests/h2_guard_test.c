/* SPDX-License-Identifier: Apache-2.0 */
#include "h2_guard.h"

#include "cmocka_common.h"

static void allows_priorities_per_stream(void **state) {
  na_h2_guard guard = {.streams = 1};
  for (int i = 0; i < 200; i++)
    assert_null(na_h2_guard_priority(&guard));
  assert_non_null(na_h2_guard_priority(&guard));
}

static void allows_window_updates_per_data(void **state) {
  na_h2_guard guard = {.streams = 1, .data_sent = 2};
  for (int i = 0; i < 5 + 2 * (1 + 20); i++)
    assert_null(na_h2_guard_window_update(&guard));
  assert_non_null(na_h2_guard_window_update(&guard));
}

static void allows_controls_per_second(void **state) {
  na_h2_guard guard = {0};
  for (uint64_t second = 1; second < 4; second++)
    for (int i = 0; i < 1000; i++)
      assert_null(na_h2_guard_control(&guard, second * 1000));
  assert_non_null(na_h2_guard_control(&guard, 3999));
}

static void allows_one_empty_frame_in_a_row(void **state) {
  na_h2_guard guard = {0};
  assert_null(na_h2_guard_payload(&guard, false));
  assert_null(na_h2_guard_payload(&guard, true));
  assert_null(na_h2_guard_payload(&guard, false));
  assert_non_null(na_h2_guard_payload(&guard, false));
}

static void allows_resets_within_reason(void **state) {
  na_h2_guard guard = {.streams = 400};
  for (int i = 0; i < 400; i++) /* few streams so far */
    assert_null(na_h2_guard_end(&guard, true, 5000));
  guard = (na_h2_guard){.streams = 10000};
  for (int i = 0; i < 1000; i++) /* most end well */
    assert_null(na_h2_guard_end(&guard, i % 3 == 0, 5000));
  guard = (na_h2_guard){.streams = 10000};
  for (uint64_t i = 0; i < 1000; i++) /* slowly */
    assert_null(na_h2_guard_end(&guard, true, 5000 + i * 20));
  guard = (na_h2_guard){.streams = 10000};
  const char *why = NULL;
  int n = 0;
  for (; n < 1000 && !why; n++)
    why = na_h2_guard_end(&guard, true, 5000);
  assert_string_equal(why, "too many streams reset");
  assert_int_equal(n, 101);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(allows_priorities_per_stream), cmocka_unit_test(allows_window_updates_per_data),
      cmocka_unit_test(allows_controls_per_second),   cmocka_unit_test(allows_one_empty_frame_in_a_row),
      cmocka_unit_test(allows_resets_within_reason),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
