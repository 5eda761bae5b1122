/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards in force at a workload that is reached through tunnels: its peers are who their certificates say.
 */
#include "guard_rig.h"
#include "h2_peer.h"

static const na_config logged = {.access_log = 1};

/* Guards that allow one principal. */
static na_guards *allow_only(enum na_guarded guarded, const char *principal) {
  na_guards *guards = new_guards(guarded, NA_RULE_ALLOW, "friends");
  guard_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, principal, 0);
  return guards;
}

static void guard_b(hbone_scene *s, enum na_protocol protocol, na_guards *port, na_guards *every) {
  guard_workload(&s->r, 2, s->backend, protocol, port, every);
}

/* The status that CONNECT gets in a new tunnel. */
static int connect_status(hbone_scene *s) {
  h2_peer peer;
  h2_dial(&peer, s);
  assert_true(h2_connect(&peer, 1, s));
  int status = h2_status(&peer, 1);
  h2_close(&peer);
  return status;
}

static void connect_is_judged_by_the_certificate(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  static const struct {
    const char *principal;
    bool allowed;
  } cases[] = {{ID_A, true}, {ID_B, false}, {ID_A "x", false}};
  for (size_t i = 0; i < COUNT(cases); i++)
    for (int every = 0; every < 2; every++) {
      na_guards *guards = allow_only(NA_GUARDED_CONNECTION, cases[i].principal);
      guard_b(&s, NA_PROTOCOL_TCP, every ? NULL : guards, every ? guards : NULL);
      assert_int_equal(connect_status(&s), cases[i].allowed ? 200 : 401);
      if (cases[i].allowed)
        close(answer(s.listener));
      else
        expect_silence(s.listener, 20);
    }
  hbone_end(&s);
}

/* A port that may speak HTTP is judged when that shows: by then CONNECT was answered. */
static void undeclared_ports_are_judged_later(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  guard_b(&s, NA_PROTOCOL_DETECT, allow_only(NA_GUARDED_CONNECTION, ID_B), NULL);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  assert_int_equal(h2_status(&peer, 1), 200);
  int server = answer(s.listener); /* as ztunnel has it: 200 says that the application is there */
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "\x16\x03\x01", 3));
  assert_true(h2_await(&peer, H2_RST_STREAM, 1));
  char byte;
  assert_true(recv(server, &byte, 1, 0) <= 0); /* it saw nothing of it */
  h2_close(&peer);
  close(server);
  hbone_end(&s);
}

static void requests_in_tunnels_are_judged(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  na_guards *guards = new_guards(NA_GUARDED_REQUEST, NA_RULE_ALLOW, "a-reads");
  assert_int_equal(na_check_all(guards, 2), 0);
  guard_text(guards, NA_ATTRIBUTE_SERVICE_ACCOUNT, NA_MATCH_EXACT, NULL, "x/a", 0);
  guard_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":method", "GET", 0);
  guard_b(&s, NA_PROTOCOL_HTTP, guards, NULL);
  int client = dial(s.port);
  int server = first_exchange(client, s.listener);
  put(client, "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_head(client, "HTTP/1.1 403 Forbidden");
  expect(client, "RBAC: access denied");
  guard_b(&s, NA_PROTOCOL_HTTP, allow_only(NA_GUARDED_REQUEST, ID_B), NULL);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 403 Forbidden");
  expect_silence(server, 20);
  close(client);
  close(server);
  hbone_end(&s);
}

/* The streams of a tunnel are connections of their own: the tunnel stays. */
static void streams_are_asked_again(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  put(client, "one");
  expect(server, "one");
  guard_b(&s, NA_PROTOCOL_TCP, allow_only(NA_GUARDED_CONNECTION, ID_A), NULL);
  put(client, "two");
  expect(server, "two");
  guard_b(&s, NA_PROTOCOL_TCP, NULL, allow_only(NA_GUARDED_CONNECTION, ID_B));
  expect_reset(client);
  expect_reset(server);
  assert_int_equal(counter(&s.r, "guards_reset_total"), 1);
  assert_int_equal(counter(&s.r, "hbone_accepted_active"), 1);
  close(client);
  close(server);
  guard_b(&s, NA_PROTOCOL_TCP, NULL, NULL);
  client = dial(s.port);
  server = answer(s.listener);
  put(client, "three");
  expect(server, "three");
  assert_int_equal(counter(&s.r, "hbone_accepted_total"), 1);
  close(client);
  close(server);
  hbone_end(&s);
}

/* Plaintext has no principal, whatever a client says of itself. */
static void reports_who_was_denied(void **state) {
  hbone_scene s = hbone_scene_of(&logged, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  guard_b(&s, NA_PROTOCOL_TCP, NULL, allow_only(NA_GUARDED_CONNECTION, ID_B));
  assert_int_equal(connect_status(&s), 401);
  na_access_record record = get_record(&s.r);
  assert_string_equal(record.detail, "rbac_access_denied_matched_policy[none]");
  assert_string_equal(na_engine_principal(s.r.engine, record.principal), ID_A);
  assert_int_equal(record.cluster_tag, 77);
  hbone_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(connect_is_judged_by_the_certificate),
      cmocka_unit_test(undeclared_ports_are_judged_later),
      cmocka_unit_test(requests_in_tunnels_are_judged),
      cmocka_unit_test(streams_are_asked_again),
      cmocka_unit_test(reports_who_was_denied),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
