/* SPDX-License-Identifier: Apache-2.0
 *
 * What tunnels cost, how many there are, and how they are kept alive and ended.
 */
#include <malloc.h>
#include <sys/resource.h>

#include "h2_peer.h"

enum { MANY = 1000, PEERS_LIMIT = 200 };

/* ---- how many ---- */

static void raise_descriptors(void) {
  struct rlimit limit;
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void connect_many(const hbone_scene *s, int clients[MANY], int servers[MANY]) {
  for (int i = 0; i < MANY; i++)
    clients[i] = dial(s->port);
  for (int i = 0; i < MANY; i++)
    servers[i] = answer(s->listener);
  for (int i = 0; i < MANY; i++)
    put(clients[i], "x");
  for (int i = 0; i < MANY; i++)
    expect(servers[i], "x");
}

static void close_many(const int fds[MANY]) {
  for (int i = 0; i < MANY; i++)
    close(fds[i]);
}

/* Many connections at once: they wait for each other's tunnels instead of making their own. */
static void connections_share_as_few_tunnels_as_the_peer_allows(void **state) {
  static int clients[MANY], servers[MANY];
  const uint32_t limits[] = {0, 90};
  raise_descriptors();
  for (size_t i = 0; i < COUNT(limits); i++) {
    const na_config config = {.hbone_max_streams = limits[i]};
    hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
    uint32_t limit = limits[i] ? limits[i] : PEERS_LIMIT;
    connect_many(&s, clients, servers);
    assert_int_equal(counter(&s.r, "hbone_dialed_total"), (MANY + limit - 1) / limit);
    assert_int_equal(counter(&s.r, "hbone_handshake_fail_total"), 0);
    close_many(clients);
    close_many(servers);
    hbone_end(&s);
  }
}

/* ---- what a stream costs ---- */

size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t allocated(void) {
  if (__sanitizer_get_current_allocated_bytes)
    return __sanitizer_get_current_allocated_bytes();
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/* Both sides are in this process, each with its connection, its relay, and a stream of the HTTP/2 library. */
static void an_idle_stream_costs_little(void **state) {
  static int clients[MANY], servers[MANY];
  raise_descriptors();
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int first = dial(s.port), first_server = answer(s.listener); /* its tunnel is there */
  size_t before = allocated();
  connect_many(&s, clients, servers);
  sleep_ms(50);
  size_t each_side = (allocated() - before) / MANY / 2;
  print_message("an idle stream takes %zu bytes on each side, its share of the tunnel included\n", each_side);
  assert_in_range(each_side, 200, 4096);
  close(first);
  close(first_server);
  close_many(clients);
  close_many(servers);
  hbone_end(&s);
}

/* ---- keeping alive ---- */

/* Read on to the answer to a PING. */
static void expect_pong(h2_peer *peer) {
  assert_true(h2_send(peer, H2_PING, 0, 0, "12345678", 8));
  while (h2_next(peer))
    if (peer->type == H2_PING && peer->flags & H2_ACK) {
      assert_memory_equal(peer->payload, "12345678", 8);
      return;
    }
  fail_msg("no answer to PING");
}

static void pings_are_answered_on_both_sides(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer client, server;
  h2_dial(&client, &s);
  expect_pong(&client);
  h2_close(&client);
  int listener = play_server(&s), asks = dial(s.port);
  h2_answer(&server, answer(listener), &s);
  expect_pong(&server);
  h2_close(&server);
  close(asks);
  stop_playing(&s, listener);
  hbone_end(&s);
}

static void a_server_that_is_silent_is_pinged_and_given_up(void **state) {
  const na_config config = {.hbone_ping_ms = 100, .access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer server;
  int listener = play_server(&s), client = dial(s.port);
  h2_answer(&server, answer(listener), &s);
  assert_true(h2_await(&server, H2_HEADERS, 1));
  assert_true(h2_send(&server, H2_HEADERS, H2_END_HEADERS, 1, OK_HEAD, sizeof OK_HEAD));
  for (int i = 0; i < 3; i++) { /* answered, it goes on */
    assert_true(h2_await(&server, H2_PING, 0));
    assert_true(h2_send(&server, H2_PING, H2_ACK, 0, server.payload, 8));
  }
  assert_true(h2_send(&server, H2_DATA, 0, 1, "a", 1));
  expect(client, "a");
  assert_true(h2_await(&server, H2_PING, 0));
  expect_reset(client);
  assert_int_equal(counter(&s.r, "hbone_ping_timeout_total"), 1);
  close(client);
  h2_close(&server);
  stop_playing(&s, listener);
  hbone_end(&s);
}

/* ---- the end ---- */

/* RFC 9113 6.8: first a notice with the highest possible stream, then, when what was on its way has come, the truth. */
static void a_drain_is_announced_and_streams_go_on(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  int server = answer(s.listener);
  assert_int_equal(h2_status(&peer, 1), 200);
  assert_int_equal(na_workload_remove(s.r.engine, 2, 4000), 0);
  assert_true(h2_await(&peer, H2_GOAWAY, 0));
  assert_memory_equal(peer.payload, "\x7f\xff\xff\xff\0\0\0\0", 8);
  uint64_t noticed = now_ms();
  assert_true(h2_await(&peer, H2_GOAWAY, 0));
  assert_memory_equal(peer.payload, "\0\0\0\1\0\0\0\0", 8);
  assert_in_range(now_ms() - noticed, 500, 2000);
  assert_true(h2_connect(&peer, 3, &s)); /* too late: it may ask somebody else (RFC 9113 8.7) */
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "still", 5));
  expect(server, "still");
  put(server, "there");
  assert_true(h2_await(&peer, H2_DATA, 1));
  assert_true(h2_send(&peer, H2_DATA, H2_END_STREAM, 1, NULL, 0));
  expect_end(server);
  close(server);
  assert_false(h2_await(&peer, -1, 0)); /* with its last stream the tunnel ends */
  h2_close(&peer);
  hbone_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(connections_share_as_few_tunnels_as_the_peer_allows),
      cmocka_unit_test(an_idle_stream_costs_little),
      cmocka_unit_test(pings_are_answered_on_both_sides),
      cmocka_unit_test(a_server_that_is_silent_is_pinged_and_given_up),
      cmocka_unit_test(a_drain_is_announced_and_streams_go_on),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
