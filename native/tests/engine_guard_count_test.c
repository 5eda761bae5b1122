/* SPDX-License-Identifier: Apache-2.0
 *
 * Rules that decide nothing: dry runs and audits, what they count, and who learns of them. Needs root and nft.
 */
#include "guarded_pod_rig.h"

static void dry_runs_and_audits_count(void **state) {
  need_capture(ready);
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  for (int shadow = 1; shadow >= 0; shadow--) {
    assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, shadow ? NA_RULE_DENY : NA_RULE_LOG, shadow, "x"), 0);
    assert_int_equal(na_guards_policy(guards, "all"), 0);
    assert_int_equal(na_check_always(guards), 0);
  }
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_ALLOW, 1, "y"), 0);
  assert_int_equal(na_guards_policy(guards, "all"), 0);
  assert_int_equal(na_check_always(guards), 0);
  put_in_force(NA_PROTOCOL_HTTP, guards, NULL);
  static const char *const names[] = {"rbac_shadow_denied_total", "rbac_shadow_allowed_total", "rbac_logged_total"};
  uint64_t before[3];
  for (size_t i = 0; i < COUNT(names); i++)
    before[i] = counter(&engine, names[i]);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  int upstream = first_exchange(client, server);
  for (size_t i = 0; i < COUNT(names); i++)
    assert_int_equal(counter(&engine, names[i]), before[i] + 1);
  close(client);
  close(upstream);
  close(server);
}

static na_guards *audit(enum na_guarded guarded, const char *const *names, size_t n) {
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  for (size_t i = 0; i < n; i++) {
    assert_int_equal(na_guards_rules(guards, guarded, NA_RULE_LOG, 0, NULL), 0);
    assert_int_equal(na_guards_policy(guards, names[i]), 0);
    if (guarded == NA_GUARDED_REQUEST)
      guard_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/audited", 0);
    else
      assert_int_equal(na_check_always(guards), 0);
  }
  return guards;
}

static void records_say_who_audits(void **state) {
  need_capture(ready);
  static const char *const names[] = {"first", "second"};
  put_in_force(NA_PROTOCOL_HTTP, audit(NA_GUARDED_REQUEST, names, 2), NULL);
  int server = listen_at(false, POD, 8080), client = dial_from(false, CLIENT, POD, 8080), upstream = -1;
  for (int audited = 0; audited < 2; audited++) { /* the mark is of the request, not of its connection */
    put(client, audited ? "GET /audited HTTP/1.1\r\nHost: a\r\n\r\n" : GET_ROOT);
    if (upstream < 0)
      upstream = answer(server);
    expect_head(upstream, audited ? "GET /audited HTTP/1.1" : "GET / HTTP/1.1");
    put(upstream, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    expect(client, "hello");
    na_access_record record = get_record(&engine);
    assert_string_equal(na_engine_policy(engine.engine, record.audit), audited ? "first" : "");
  }
  close(client);
  close(upstream);
  put_in_force(NA_PROTOCOL_TCP, audit(NA_GUARDED_CONNECTION, names + 1, 1), NULL);
  client = dial_from(false, CLIENT, POD, 8080);
  upstream = answer(server);
  close(client);
  close(upstream);
  na_access_record record = get_record(&engine);
  assert_string_equal(na_engine_policy(engine.engine, record.audit), "second");
  close(server);
}

/* A dry run's outcome is known to the rules behind it. */
static void rules_go_by_what_shadows_found(void **state) {
  need_capture(ready);
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 1, "dry_"), 0);
  assert_int_equal(na_guards_policy(guards, "admin"), 0);
  guard_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/admin", 0);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "found"), 0);
  guard_text(guards, NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT,
             "envoy.filters.http.rbac\x1f"
             "dry_shadow_effective_policy_id",
             "admin", 0);
  put_in_force(NA_PROTOCOL_HTTP, guards, NULL);
  int server = listen_at(false, POD, 8080), client = dial_from(false, CLIENT, POD, 8080);
  put(client, "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_403(client);
  int upstream = first_exchange(client, server);
  close(client);
  close(upstream);
  close(server);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(dry_runs_and_audits_count),
      cmocka_unit_test(records_say_who_audits),
      cmocka_unit_test(rules_go_by_what_shadows_found),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
