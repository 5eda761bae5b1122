/* SPDX-License-Identifier: Apache-2.0
 *
 * Opaque connections through a running engine, and finding out what a client speaks.
 */
#include <pthread.h>

#include "conversation.h"
#include "scene_rig.h"

static void relays_both_ways_with_half_close(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  talk_until_the_client_ends(client, server);
  await_counter(&s.r, "downstream_cx_active", 0);
  await_counter(&s.r, "upstream_cx_active", 0);
  close(client);
  scene_end(&s);
}

static void relays_the_servers_half_close(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  talk_until_the_server_ends(client, server);
  await_counter(&s.r, "downstream_cx_active", 0);
  scene_end(&s);
}

static void resets_when_the_upstream_refuses(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  na_builder *b = rig_change(&s.r);
  na_endpoint endpoint = endpoint_at(closed_port());
  assert_int_equal(na_builder_endpoints(b, "c", &endpoint, 1), 0);
  rig_commit(&s.r);
  int client = dial(s.port);
  expect_reset(client);
  assert_int_equal(counter(&s.r, "upstream_cx_connect_fail_total"), 3);
  close(client);
  b = rig_change(&s.r); /* no endpoint at all */
  assert_int_equal(na_builder_endpoints(b, "c", NULL, 0), 0);
  rig_commit(&s.r);
  client = dial(s.port);
  expect_reset(client);
  close(client);
  scene_end(&s);
}

static void passes_resets_on(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  struct linger hard = {.l_onoff = 1};
  int client = dial(s.port), server = answer(s.listener);
  put(client, "a");
  expect(server, "a");
  setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(server);
  expect_reset(client);
  close(client);
  client = dial(s.port);
  server = answer(s.listener);
  put(client, "a");
  expect(server, "a");
  setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(client);
  expect_reset(server);
  close(server);
  /* also when that side has ended its data before */
  client = dial(s.port);
  server = answer(s.listener);
  shutdown(client, SHUT_WR);
  expect_end(server);
  setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(client);
  int error = 0;
  socklen_t size = sizeof error;
  await_counter(&s.r, "downstream_cx_active", 0);
  assert_int_equal(getsockopt(server, SOL_SOCKET, SO_ERROR, &error, &size), 0);
  assert_int_equal(error, EPIPE); /* what a reset is after the end of data */
  close(server);
  scene_end(&s);
}

/* ---- bulk ---- */

enum { BULK = 24 * 1024 * 1024 };

typedef struct bulk_peer {
  int fd;
  unsigned salt;
} bulk_peer;

static void *bulk_sender(void *argument) {
  bulk_peer *peer = argument;
  send_bulk(peer->fd, peer->salt, BULK);
  shutdown(peer->fd, SHUT_WR);
  return NULL;
}

static void *bulk_echo_checker(void *argument) {
  bulk_peer *peer = argument;
  return (void *)(uintptr_t)check_bulk(peer->fd, peer->salt, BULK, 5);
}

static void moves_bulk_both_ways_at_once(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  pthread_t threads[4];
  bulk_peer up = {client, 1}, down = {server, 2}, up_check = {server, 1}, down_check = {client, 2};
  pthread_create(&threads[0], NULL, bulk_sender, &up);
  pthread_create(&threads[1], NULL, bulk_sender, &down);
  pthread_create(&threads[2], NULL, bulk_echo_checker, &up_check);
  pthread_create(&threads[3], NULL, bulk_echo_checker, &down_check);
  for (int i = 0; i < 4; i++) {
    void *result;
    pthread_join(threads[i], &result);
    assert_true(i < 2 || result != NULL);
  }
  expect_end(client);
  expect_end(server);
  assert_true(counter(&s.r, "spliced_bytes_total") > BULK);
  close(client);
  close(server);
  await_counter(&s.r, "downstream_cx_active", 0);
  scene_end(&s);
}

static void stops_reading_when_the_other_side_does(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  int small = 65536;
  int client = dial(s.port), server = answer(s.listener);
  setsockopt(server, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  size_t sent = send_until_blocked(client);
  assert_in_range(sent, 1, 40u * 1024 * 1024); /* ended at all; tcp_wmem and tcp_rmem of both hops at most */
  receive_all(server, sent);
  put(client, "end");
  expect(server, "end");
  close(client);
  close(server);
  scene_end(&s);
}

/* ---- what does the client speak? ---- */

static void serves_server_first_protocols(void **state) {
  na_config config = {.detect_timeout_ms = 30};
  scene s = scene_of(&config, NA_PROTOCOL_DETECT);
  int client = dial(s.port), server = answer(s.listener);
  put(server, "220 hello\r\n");
  expect(client, "220 hello\r\n");
  put(client, "QUIT\r\n");
  expect(server, "QUIT\r\n");
  close(client);
  close(server);
  scene_end(&s);
}

static void serves_clients_that_only_listen(void **state) {
  na_config config = {.detect_timeout_ms = 60000};
  scene s = scene_of(&config, NA_PROTOCOL_DETECT);
  int client = dial(s.port);
  shutdown(client, SHUT_WR);
  int server = answer(s.listener);
  expect_end(server);
  put(server, "bye");
  close(server);
  expect(client, "bye");
  expect_end(client);
  close(client);
  scene_end(&s);
}

static void detects_http(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_DETECT);
  int client = dial(s.port);
  put(client, "G");
  sleep_ms(10);
  put(client, "ET / HTTP/1.1\r\nHost: a\r\n\r\n");
  int server = answer(s.listener);
  assert_has(get_head(server), "x-request-id");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  close(client);
  close(server);
  scene_end(&s);
}

static void takes_the_rest_for_tcp(void **state) {
  static const char *const firsts[] = {"\x16\x03\x01\x02", "*1\r\n$4\r\nPING\r\n", "\x01\x02\x03\x04"};
  scene s = scene_of(NULL, NA_PROTOCOL_DETECT);
  for (size_t i = 0; i < COUNT(firsts); i++) {
    int client = dial(s.port);
    put(client, firsts[i]);
    int server = answer(s.listener);
    expect(server, firsts[i]);
    put(server, "ok");
    expect(client, "ok");
    close(client);
    close(server);
  }
  scene_end(&s);
}

static void forwards_http2_by_connection(void **state) {
  const char *preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  for (int protocol = NA_PROTOCOL_HTTP; protocol <= NA_PROTOCOL_DETECT; protocol++) {
    scene s = scene_of(NULL, (enum na_protocol)protocol);
    int client = dial(s.port), n;
    put(client, preface);
    int server = answer(s.listener);
    expect(server, preface);
    put(server, "frames");
    expect(client, "frames");
    close(client);
    close(server);
    await_counter(&s.r, "downstream_cx_active", 0);
    assert_int_equal(counter(&s.r, "http2_forwarded_total"), 1);
    na_stat_row *rows = get_stats(&s.r, &n);
    assert_int_equal(rows[0].protocol, 3);
    scene_end(&s);
  }
}

static void answers_400_to_what_is_not_http(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int client = dial(s.port);
  put(client, "\x16\x03\x01\x02\x03\x04");
  assert_has(expect_head(client, "HTTP/1.1 400 Bad Request"), "connection: close\r\n");
  close(client);
  scene_end(&s);
}

static void refuses_what_the_view_refuses(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  uint8_t ip[16];
  v4_mapped(ip, "127.0.0.1");
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_destination_remove(b, "v", ip, s.port), 0);
  assert_int_equal(na_builder_view(b, "v", 1), 0);
  rig_commit(&s.r);
  int client = dial(s.port);
  expect_reset(client);
  assert_int_equal(counter(&s.r, "downstream_cx_refused_total"), 1);
  close(client);
  scene_end(&s);
}

static void refuses_connections_beyond_the_limit(void **state) {
  na_config config = {.max_connections = 2};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  int clients[3];
  for (int i = 0; i < 3; i++) {
    clients[i] = dial(s.port);
    await_counter(&s.r, "downstream_cx_active", i < 2 ? (uint64_t)i + 1 : 2);
  }
  expect_reset(clients[2]);
  assert_int_equal(counter(&s.r, "downstream_cx_overflow_total"), 1);
  for (int i = 0; i < 3; i++)
    close(clients[i]);
  scene_end(&s);
}

/* Without capture there is no original destination: captured listeners refuse, whoever connects to them directly. */
static void captured_listeners_refuse_direct_connections(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_TCP);
  uint16_t port;
  int fd = listen_any(&port);
  assert_int_equal(na_workload_listen(s.r.engine, 1, NA_LISTENER_OUTBOUND, 0, fd), 0);
  int client = dial(port);
  expect_reset(client);
  assert_int_equal(counter(&s.r, "downstream_cx_loop_total") + counter(&s.r, "downstream_cx_no_destination_total"), 1);
  close(client);
  scene_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(relays_both_ways_with_half_close),
      cmocka_unit_test(relays_the_servers_half_close),
      cmocka_unit_test(resets_when_the_upstream_refuses),
      cmocka_unit_test(passes_resets_on),
      cmocka_unit_test(moves_bulk_both_ways_at_once),
      cmocka_unit_test(stops_reading_when_the_other_side_does),
      cmocka_unit_test(serves_server_first_protocols),
      cmocka_unit_test(serves_clients_that_only_listen),
      cmocka_unit_test(detects_http),
      cmocka_unit_test(takes_the_rest_for_tcp),
      cmocka_unit_test(forwards_http2_by_connection),
      cmocka_unit_test(answers_400_to_what_is_not_http),
      cmocka_unit_test(refuses_what_the_view_refuses),
      cmocka_unit_test(refuses_connections_beyond_the_limit),
      cmocka_unit_test(captured_listeners_refuse_direct_connections),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
