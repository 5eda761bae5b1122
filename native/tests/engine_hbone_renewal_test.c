/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections that are kept for more requests end with the identities that their tunnels were made with.
 */
#include "h2_peer.h"

#define POST "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"

static const na_config logged = {.access_log = 1};

/* A first request over the client's connection; the server's. */
static int begin_exchange(hbone_scene *s, int client) {
  put(client, GET_ROOT);
  int server = answer(s->listener);
  expect_head(server, "GET / HTTP/1.1");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  return server;
}

static void expect_503(int client) {
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
}

static void a_pooled_stream_ends_with_the_own_identity(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int client = dial(s.port), server = begin_exchange(&s, client);
  assert_int_equal(na_identity_remove(s.r.engine, ID_A), 0);
  expect_503(client);
  expect_silence(server, 20);
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 1);
  close(client);
  close(server);
  hbone_end(&s);
}

static void a_pooled_stream_ends_with_the_peers_identity(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int client = dial(s.port), server = begin_exchange(&s, client);
  assert_int_equal(na_identity_remove(s.r.engine, ID_B), 0);
  expect_503(client);
  expect_silence(server, 20);
  close(client);
  close(server);
  hbone_end(&s);
}

static void a_pooled_stream_gives_way_to_a_renewed_identity(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int client = dial(s.port), server = begin_exchange(&s, client);
  for (int side = 0; side < 2; side++) {
    credential next = new_leaf(&s.ca, &(leaf_spec){.uris = {side ? ID_B : ID_A}});
    set_identity(&s.r, side ? ID_B : ID_A, &next, &s.ca);
    while (na_engine_settled(s.r.engine) < na_engine_committed(s.r.engine))
      sleep_ms(1);
    exchange(client, server); /* the application's connection has nothing to do with it */
    await_counter(&s.r, "hbone_dialed_total", 2 + (uint64_t)side);
    await_counter(&s.r, "hbone_accepted_active", 1);
    free_credential(&next);
  }
  close(client);
  close(server);
  hbone_end(&s);
}

/* The certificate of one side runs out after the first request. */
static void expect_end_at_expiry(bool peers) {
  hbone_scene s = hbone_begin(&logged);
  credential *brief = peers ? &s.b : &s.a;
  free_credential(brief);
  *brief = new_leaf(&s.ca, &(leaf_spec){.uris = {peers ? ID_B : ID_A}, .to = 2});
  hbone_configure(&s, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int client = dial(s.port), server = begin_exchange(&s, client);
  sleep_ms(2100);
  expect_503(client);
  expect_silence(server, 20);
  close(client);
  close(server);
  hbone_end(&s);
}

static void a_pooled_stream_ends_when_a_certificate_runs_out(void **state) {
  expect_end_at_expiry(false);
  expect_end_at_expiry(true);
}

/* ---- a peer that goes on asking in an old tunnel ---- */

/* An exchange in a stream of the peer's; the application's connection. */
static int ask_in_tunnel(hbone_scene *s, h2_peer *peer) {
  h2_dial(peer, s);
  assert_true(h2_connect(peer, 1, s));
  assert_int_equal(h2_status(peer, 1), 200);
  assert_true(h2_send(peer, H2_DATA, 0, 1, GET_ROOT, strlen(GET_ROOT)));
  int server = answer(s->listener);
  expect_head(server, "GET / HTTP/1.1");
  put(server, OK_HELLO);
  assert_true(h2_await(peer, H2_DATA, 1));
  return server;
}

static void a_client_is_not_served_beyond_its_certificate(void **state) {
  hbone_scene s = hbone_begin(&logged);
  h2_peer peer;
  free_credential(&s.a);
  s.a = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_A}, .to = 2});
  hbone_configure(&s, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int server = ask_in_tunnel(&s, &peer);
  sleep_ms(2100);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, GET_ROOT, strlen(GET_ROOT)));
  assert_true(h2_await(&peer, H2_RST_STREAM, 1));
  expect_silence(server, 20);
  assert_int_equal(counter(&s.r, "hbone_outdated_total"), 1);
  h2_close(&peer);
  close(server);
  hbone_end(&s);
}

static void a_client_is_sent_away_when_the_identity_goes(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  h2_peer peer;
  int server = ask_in_tunnel(&s, &peer);
  assert_int_equal(na_identity_remove(s.r.engine, ID_B), 0);
  while (h2_next(&peer) && !(peer.type == H2_DATA && peer.flags & H2_END_STREAM))
    ; /* the kept connection is closed in order */
  assert_int_equal(peer.stream, 1);
  await_counter(&s.r, "downstream_cx_active", 0);
  h2_close(&peer);
  close(server);
  hbone_end(&s);
}

static void settle(hbone_scene *s) {
  while (na_engine_settled(s->r.engine) < na_engine_committed(s->r.engine))
    sleep_ms(1);
}

/* A request on a kept connection may be on its way when the tunnel is retired: it is served, and is the last one. */
static void a_request_that_meets_a_renewal_is_served(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  h2_peer peer;
  int server = ask_in_tunnel(&s, &peer);
  credential next = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_B}});
  set_identity(&s.r, ID_B, &next, &s.ca);
  settle(&s);
  assert_true(h2_await(&peer, H2_GOAWAY, 0));
  assert_true(h2_send(&peer, H2_DATA, 0, 1, POST, strlen(POST)));
  expect_head(server, "POST / HTTP/1.1");
  put(server, OK_HELLO);
  assert_true(h2_await(&peer, H2_DATA, 1));
  assert_non_null(memmem(peer.payload, peer.n, "connection: close\r\n", 19));
  while (!(peer.stream == 1 && peer.flags & H2_END_STREAM))
    assert_true(h2_next(&peer));
  await_counter(&s.r, "downstream_cx_active", 0);
  h2_close(&peer);
  close(server);
  free_credential(&next);
  hbone_end(&s);
}

/* A peer that has not heard of the renewal yet loses nothing. */
static void streams_on_their_way_are_taken_over_a_renewal(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  assert_int_equal(h2_status(&peer, 1), 200);
  int first = answer(s.listener);
  credential next = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_B}});
  set_identity(&s.r, ID_B, &next, &s.ca);
  settle(&s);
  assert_true(h2_connect(&peer, 3, &s));
  assert_int_equal(h2_status(&peer, 3), 200);
  int second = answer(s.listener);
  assert_true(h2_send(&peer, H2_DATA, 0, 3, "late", 4));
  expect(second, "late");
  do /* the last word: nothing behind stream 3 */
    assert_true(h2_await(&peer, H2_GOAWAY, 0));
  while (peer.payload[0] == 0x7f);
  assert_int_equal(peer.payload[3], 3);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "open", 4)); /* what is open stays */
  expect(first, "open");
  h2_close(&peer);
  close(first);
  close(second);
  free_credential(&next);
  hbone_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_pooled_stream_ends_with_the_own_identity),
      cmocka_unit_test(a_pooled_stream_ends_with_the_peers_identity),
      cmocka_unit_test(a_pooled_stream_gives_way_to_a_renewed_identity),
      cmocka_unit_test(a_pooled_stream_ends_when_a_certificate_runs_out),
      cmocka_unit_test(a_client_is_not_served_beyond_its_certificate),
      cmocka_unit_test(a_client_is_sent_away_when_the_identity_goes),
      cmocka_unit_test(a_request_that_meets_a_renewal_is_served),
      cmocka_unit_test(streams_on_their_way_are_taken_over_a_renewal),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
