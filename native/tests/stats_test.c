/* SPDX-License-Identifier: Apache-2.0
 *
 * What workers gather for the control thread: statistics, access records, events.
 */
#include "stats.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "access.h"
#include "cmocka_common.h"
#include "events.h"

static na_stat_key key_of(uint32_t tag) {
  na_stat_key key = {.kind = NA_STAT_HTTP, .workload = 1, .cluster_tag = tag, .status = 200};
  return key;
}

static void add(na_stats *stats, uint32_t tag) {
  na_stat_key key = key_of(tag);
  na_stat_row *row = na_stats_row(stats, &key);
  if (row)
    na_stats_request(row, 700, 5, 100);
}

static void aggregates_by_key(void **state) {
  na_counters counters = {0};
  na_stats stats;
  na_stat_row rows[4];
  assert_int_equal(na_stats_init(&stats, 100, &counters), 0);
  add(&stats, 1);
  add(&stats, 2);
  add(&stats, 1);
  na_stats_swap(&stats);
  add(&stats, 3); /* goes into the other table */
  assert_int_equal(na_stats_take(&stats, rows, 4), 2);
  assert_int_equal(rows[0].cluster_tag, 1);
  assert_int_equal(rows[0].count, 2);
  assert_int_equal(rows[0].bytes_in, 10);
  assert_int_equal(rows[0].bytes_out, 200);
  assert_int_equal(rows[0].duration_us, 1400);
  assert_int_equal(rows[0].duration[1], 2);     /* <= 1 ms */
  assert_int_equal(rows[0].request_size[2], 2); /* <= 16 bytes */
  assert_int_equal(rows[0].response_size[4], 2);
  assert_int_equal(rows[1].count, 1);
  assert_false(na_stats_left(&stats));
  na_stats_swap(&stats);
  assert_int_equal(na_stats_take(&stats, rows, 4), 1);
  assert_int_equal(rows[0].cluster_tag, 3);
  na_stats_free(&stats);
}

static void sorts_into_buckets(void **state) {
  static const struct {
    uint64_t us, bytes;
    unsigned duration, size;
  } cases[] = {
      {0, 0, 0, 0},
      {500, 1, 0, 1},
      {501, 4, 1, 1},
      {1000, 5, 1, 2},
      {1001, 16, 2, 2},
      {5000000, 17, 11, 3},
      {30000000, 1 << 28, 13, 14},
      {3600000000, (1 << 28) + 1, 18, 15},
      {3600000001, UINT64_MAX, 19, 15},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_stat_row row = {0};
    na_stats_request(&row, cases[i].us, cases[i].bytes, cases[i].bytes);
    assert_int_equal(row.duration[cases[i].duration], 1);
    assert_int_equal(row.request_size[cases[i].size], 1);
    assert_int_equal(row.response_size[cases[i].size], 1);
  }
}

static void drops_and_counts_beyond_its_size(void **state) {
  na_counters counters = {0};
  na_stats stats;
  na_stat_row rows[32];
  assert_int_equal(na_stats_init(&stats, 16, &counters), 0);
  for (uint32_t round = 0; round < 2; round++) {
    for (uint32_t tag = 0; tag < 20; tag++)
      add(&stats, tag);
    add(&stats, 3); /* known keys go on being counted */
    na_stats_swap(&stats);
    assert_int_equal(na_stats_take(&stats, rows, 10), 10);
    assert_true(na_stats_left(&stats));
    assert_int_equal(na_stats_take(&stats, rows, 10), 6);
    assert_int_equal(counters.values[NA_COUNTER_STATS_DROPPED], 4 * (round + 1));
  }
  na_stats_free(&stats);
}

static void access_ring_keeps_order_and_drops_new_ones(void **state) {
  na_access_ring ring;
  na_access_record out[8];
  assert_int_equal(na_access_init(&ring, 4), 0);
  for (int round = 0; round < 3; round++) {
    for (uint16_t i = 0; i < 6; i++) {
      na_access_record *record = na_access_begin(&ring);
      assert_int_equal(record != NULL, i < 4);
      if (!record)
        continue;
      record->status = i;
      na_access_text(record->method, sizeof record->method, na_str_of("A-METHOD-OF-MORE-THAN-24-CHARACTERS"));
      na_access_publish(&ring);
    }
    assert_int_equal(na_access_take(&ring, out, 3), 3);
    assert_int_equal(na_access_take(&ring, out + 3, 5), 1);
    for (uint16_t i = 0; i < 4; i++)
      assert_int_equal(out[i].status, i);
    assert_string_equal(out[0].method, "A-METHOD-OF-MORE-THAN-2");
  }
  na_access_free(&ring);
}

static void event_ring_wakes_its_reader(void **state) {
  na_event_ring ring;
  na_event_filter filter = {0};
  na_event event = {.kind = NA_EVENT_HOST}, out[8];
  eventfd_t count;
  int fd = eventfd(0, EFD_NONBLOCK);
  assert_int_equal(na_events_init(&ring, 4, fd), 0);
  assert_int_equal(eventfd_read(fd, &count), -1);
  for (uint32_t i = 0; i < 6; i++) {
    event.tag = i;
    assert_int_equal(na_events_raise(&ring, &event), i < 4);
  }
  assert_int_equal(eventfd_read(fd, &count), 0);
  assert_true(na_events_waiting(&ring));
  assert_int_equal(na_events_take(&ring, &filter, 5000, out, 8), 4);
  assert_int_equal(out[3].tag, 3);
  assert_false(na_events_waiting(&ring));
  /* another worker's need of the same is not told again, but is after a second */
  event.tag = 2;
  assert_true(na_events_raise(&ring, &event));
  assert_int_equal(na_events_take(&ring, &filter, 5500, out, 8), 0);
  assert_true(na_events_raise(&ring, &event));
  assert_int_equal(na_events_take(&ring, &filter, 6000, out, 8), 1);
  na_events_free(&ring);
  close(fd);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(aggregates_by_key),
      cmocka_unit_test(sorts_into_buckets),
      cmocka_unit_test(drops_and_counts_beyond_its_size),
      cmocka_unit_test(access_ring_keeps_order_and_drops_new_ones),
      cmocka_unit_test(event_ring_wakes_its_reader),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
