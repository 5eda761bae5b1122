/* SPDX-License-Identifier: Apache-2.0
 *
 * Traffic through tunnels between two workloads of a running engine.
 */
#include "hbone_rig.h"

static void carries_tcp_both_ways_with_half_close(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  put(client, "one");
  expect(server, "one");
  put(server, "two");
  expect(client, "two");
  shutdown(client, SHUT_WR);
  expect_end(server);
  put(server, "still");
  expect(client, "still");
  close(server);
  expect_end(client);
  await_counter(&s.r, "downstream_cx_active", 0);
  await_counter(&s.r, "upstream_cx_active", 0);
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 1);
  assert_int_equal(counter(&s.r, "hbone_accepted_total"), 1);
  close(client);
  hbone_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(carries_tcp_both_ways_with_half_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
