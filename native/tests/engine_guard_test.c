/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards in force at a workload whose inbound traffic is captured: what gets through, and what does not. The peers come
 * in plaintext; tunnels are in engine_hbone_guard_test.c, rules that only count in engine_guard_count_test.c. Needs
 * root and nft.
 */
#include "guarded_pod_rig.h"

static void requests_are_judged_one_by_one(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_PREFIX, "/admin"), NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  uint64_t denied = counter(&engine, "rbac_denied_total");
  put(client, "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_403(client);
  expect_silence(server, 20);
  na_access_record record = get_record(&engine);
  assert_int_equal(record.status, 403);
  assert_int_equal(record.flags, 0);
  assert_string_equal(record.detail, "rbac_access_denied_matched_policy[no]");
  assert_string_equal(record.path, "/admin");
  put(client, GET_ROOT); /* the same connection */
  int upstream = answer(server);
  expect_head(upstream, "GET / HTTP/1.1");
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  put(client, "HEAD /admin HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_head(client, "HTTP/1.1 403 Forbidden");
  exchange(client, upstream);
  assert_int_equal(counter(&engine, "rbac_denied_total"), denied + 2);
  close(client);
  close(upstream);
  close(server);
}

/* What is refused, and how what passes arrives: two spellings of one path are never judged and forwarded differently.
 */
static void no_spelling_slips_past(void **state) {
  need_capture(ready);
  static const struct {
    const char *target;
    int status;
    const char *arrives;
  } cases[] = {
      {"/admin", 403, NULL},
      {"/admin?x", 403, NULL},
      {"/%61dmin", 403, NULL},
      {"/%61%64%6D%69%6e", 403, NULL},
      {"/./admin", 403, NULL},
      {"/x/../admin", 403, NULL},
      {"/x/%2e%2e/admin", 403, NULL},
      {"/x/.%2E/admin/.", 403, NULL},
      {"\\admin", 400, NULL},
      {"/x\\..\\admin", 403, NULL},
      {"/../../admin", 403, NULL},
      {"/admin/../admin;x", 403, NULL},
      {"http://a/x/../admin", 403, NULL},
      {"/admin#x", 400, NULL}, /* CVE-2021-39156 */
      {"/x#/admin", 400, NULL},
      {"/%00/../admin", 400, NULL},
      {"/admin%00", 400, NULL},
      {"/admin\x01", 400, NULL},
      {"/x/..;/admin", 403, NULL},
      {"http://a/x/..;p/admin", 403, NULL},
      {"http://a?x=/admin", 200, "/?x=/admin"},
      {"/public/../x", 200, "/x"},
      {"/admin/../x", 200, "/x"},
      {"/x%2fadmin", 200, "/x%2fadmin"},
      {"/x/..%2fadmin", 200, "/x/..%2fadmin"},
      {"//admin", 200, "//admin"}, /* as Envoy: slashes are not merged */
      {"/ADMIN", 200, "/ADMIN"},
      {"/x?y=/../admin", 200, "/x?y=/../admin"},
      {"/%41?%41", 200, "/A?%41"},
      {"/%%361dmin", 200, "/%%361dmin"},
      {"/{a|b}", 200, "/%7Ba%7Cb%7D"},
  };
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_PREFIX, "/admin"), NULL);
  int server = listen_at(false, POD, 8080);
  for (size_t i = 0; i < COUNT(cases); i++) {
    char request[256], line[256];
    int client = dial_from(false, CLIENT, POD, 8080);
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", cases[i].target);
    put(client, request);
    if (cases[i].status == 200) {
      int upstream = answer(server);
      snprintf(line, sizeof line, "GET %s HTTP/1.1", cases[i].arrives);
      expect_head(upstream, line);
      put(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      close(upstream);
    }
    int status = atoi(get_head(client) + 9);
    if (status != cases[i].status)
      fail_msg("%s: %d, not %d", cases[i].target, status, cases[i].status);
    close(client);
  }
  expect_silence(server, 20);
  close(server);
}

/* Also on a connection that was there before that was wanted. */
static void slashes_are_read_as_wanted(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_PREFIX, "/admin"), NULL);
  int server = listen_at(false, POD, 8080), client = dial_from(false, CLIENT, POD, 8080);
  put(client, "GET //admin HTTP/1.1\r\nHost: a\r\n\r\n");
  int upstream = answer(server);
  expect_head(upstream, "GET //admin HTTP/1.1");
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  na_guards *guards = deny_path(NA_MATCH_PREFIX, "/admin");
  assert_int_equal(na_guards_slashes(guards, NA_SLASHES_MERGE | NA_SLASHES_DECODE), 0);
  put_in_force(NA_PROTOCOL_HTTP, guards, NULL);
  static const char *const denied[] = {"//admin", "/x/..//admin", "/%2fadmin", "/x%2f..%5cadmin", "///admin?x"};
  for (size_t i = 0; i < COUNT(denied); i++) {
    char request[128];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", denied[i]);
    put(client, request);
    expect_403(client);
  }
  put(client, "GET //x%2fy//?a//b HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_head(upstream, "GET /x/y/?a//b HTTP/1.1");
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  close(client);
  close(upstream);
  close(server);
}

static void headers_and_hosts_are_judged(void **state) {
  need_capture(ready);
  static const struct {
    const char *headers;
    int status;
  } cases[] = {
      {"Host: secret.test\r\n", 403},
      {"Host: SECRET.test\r\n", 403}, /* CVE-2021-39155 */
      {"Host: a\r\nX-Role: guest\r\n", 403},
      {"Host: a\r\nx-role: guest\r\n", 403},
      {"Host: a\r\nX-Role: admin\r\nX-Role: guest\r\n", 403}, /* no value hides behind another */
      {"Host: a\r\nX-Role: guest\r\nX-Role: admin\r\n", 403},
      {"Host: a\r\nX-Role: admin,guest\r\n", 200}, /* another value than "guest", as for Envoy */
      {"Host: a\r\nX-Role: admin\r\n", 200},
      {"Host: a\r\nX-Any: 1\r\n", 403},
      {"Host: a\r\nConnection: x-any\r\nX-Any: 1\r\n", 200}, /* it is not forwarded */
  };
  na_guards *guards = new_guards(NA_GUARDED_REQUEST, NA_RULE_DENY, "no");
  assert_int_equal(na_check_any(guards, 3), 0);
  guard_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":authority", "secret.test", 0);
  guard_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-role", "guest", 0);
  guard_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_PRESENT, "x-any", "", 0);
  put_in_force(NA_PROTOCOL_HTTP, guards, NULL);
  int server = listen_at(false, POD, 8080);
  for (size_t i = 0; i < COUNT(cases); i++) {
    char request[256];
    int client = dial_from(false, CLIENT, POD, 8080);
    snprintf(request, sizeof request, "GET / HTTP/1.1\r\n%s\r\n", cases[i].headers);
    put(client, request);
    if (cases[i].status == 200) {
      int upstream = answer(server);
      get_head(upstream);
      put(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      close(upstream);
    }
    int status = atoi(get_head(client) + 9);
    if (status != cases[i].status)
      fail_msg("%s: %d, not %d", cases[i].headers, status, cases[i].status);
    close(client);
  }
  close(server);
}

/* Encoding makes a path longer: the limits hold for what is forwarded. */
static void paths_grow_within_the_limits(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/admin"), NULL);
  int server = listen_at(false, POD, 8080);
  for (int i = 0; i < 2; i++) {
    char path[4096] = "/", request[4200];
    memset(path + 1, '|', i ? 3000 : 2000);
    int client = dial_from(false, CLIENT, POD, 8080);
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", path);
    put(client, request);
    if (i) {
      expect_head(client, "HTTP/1.1 414 URI Too Long");
    } else {
      int upstream = answer(server);
      assert_true(strlen(get_head(upstream)) > 6000);
      put(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      expect_head(client, "HTTP/1.1 200 OK");
      close(upstream);
    }
    close(client);
  }
  close(server);
}

/* The body of a refused request is not taken for the next one. */
static void a_refused_body_is_no_request(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/admin"), NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  put(client, "POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
  assert_has(expect_head(client, "HTTP/1.1 403 Forbidden"), "connection: close\r\n");
  expect(client, DENIED_BODY);
  expect_end(client);
  expect_silence(server, 20);
  close(client);
  close(server);
}

static void decisions_are_counted_by_policy(void **state) {
  need_capture(ready);
  int n;
  na_guards *guards = new_guards(NA_GUARDED_REQUEST, NA_RULE_ALLOW, "readers");
  guard_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":method", "GET", 0);
  put_in_force(NA_PROTOCOL_HTTP, guards, NULL);
  (void)get_stats(&engine, &n);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  int upstream = first_exchange(client, server);
  for (int i = 0; i < 2; i++) {
    put(client, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    expect_403(client);
  }
  uint64_t allowed = 0, denied = 0;
  const na_stat_row *rows = get_stats(&engine, &n);
  for (int i = 0; i < n; i++) {
    if (rows[i].kind != NA_STAT_POLICY)
      continue;
    assert_int_equal(rows[i].workload, 7);
    assert_int_equal(rows[i].protocol, 1);
    bool readers = strcmp(na_engine_policy(engine.engine, rows[i].cluster_tag), "readers") == 0;
    assert_int_equal(rows[i].flags, readers ? NA_OUTCOME_ALLOWED : NA_OUTCOME_DENIED);
    allowed += readers ? rows[i].count : 0;
    denied += readers ? 0 : rows[i].count;
  }
  assert_int_equal(allowed, 1);
  assert_int_equal(denied, 2);
  close(client);
  close(upstream);
  close(server);
}

/* ---- TCP, and what shows later ---- */

static void connections_are_judged(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_TCP, deny_host(NA_GUARDED_CONNECTION, OTHER), NULL);
  int server = listen_at(false, POD, 8080);
  int refused = dial_from(false, OTHER, POD, 8080);
  expect_reset(refused);
  na_access_record record = get_record(&engine);
  assert_string_equal(record.detail, "rbac_access_denied_matched_policy[no-host]");
  assert_int_equal(record.cluster_tag, 77);
  int client = dial_from(false, CLIENT, POD, 8080), upstream = answer(server);
  put(client, "one");
  expect(upstream, "one");
  expect_silence(server, 20);
  close(refused);
  close(client);
  close(upstream);
  close(server);
}

static void every_connection_is_asked_first(void **state) {
  need_capture(ready);
  int server = listen_at(false, POD, 8080);
  for (int protocol = NA_PROTOCOL_TCP; protocol <= NA_PROTOCOL_DETECT; protocol++) {
    put_in_force((enum na_protocol)protocol, NULL, deny_plaintext());
    int client = dial_from(false, CLIENT, POD, 8080);
    expect_reset(client);
    assert_string_equal(get_record(&engine).detail, "rbac_access_denied_matched_policy[strict]");
    close(client);
  }
  expect_silence(server, 20);
  close(server);
}

static void undeclared_ports_are_judged_by_what_they_speak(void **state) {
  need_capture(ready);
  na_guards *guards = deny_host(NA_GUARDED_CONNECTION, OTHER);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "no-admin"), 0);
  guard_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/admin", 0);
  put_in_force(NA_PROTOCOL_DETECT, guards, NULL);
  int server = listen_at(false, POD, 8080);
  int http = dial_from(false, OTHER, POD, 8080);
  put(http, "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n");
  expect_403(http);
  int tcp = dial_from(false, OTHER, POD, 8080);
  put(tcp, "\x16\x03\x01");
  expect_reset(tcp);
  int silent = dial_from(false, OTHER, POD, 8080);
  expect_reset(silent);
  int http2 = dial_from(false, CLIENT, POD, 8080);
  uint64_t refused = counter(&engine, "guards_http2_refused_total");
  put(http2, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  expect_reset(http2);
  assert_int_equal(counter(&engine, "guards_http2_refused_total"), refused + 1);
  expect_silence(server, 20);
  int allowed = dial_from(false, CLIENT, POD, 8080);
  put(allowed, "EHLO");
  int upstream = answer(server);
  expect(upstream, "EHLO");
  close(http);
  close(tcp);
  close(silent);
  close(http2);
  close(allowed);
  close(upstream);
  close(server);
}

/* ---- when policies change ---- */

static void open_connections_are_asked_again(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_TCP, NULL, NULL);
  int server = listen_at(false, POD, 8080);
  int a = dial_from(false, CLIENT, POD, 8080), a_server = answer(server);
  int b = dial_from(false, OTHER, POD, 8080), b_server = answer(server);
  put(a, "one");
  expect(a_server, "one");
  uint64_t reset = counter(&engine, "guards_reset_total");
  put_in_force(NA_PROTOCOL_TCP, deny_host(NA_GUARDED_CONNECTION, OTHER), NULL);
  expect_reset(b);
  expect_reset(b_server);
  put(a, "two");
  expect(a_server, "two");
  assert_int_equal(counter(&engine, "guards_reset_total"), reset + 1);
  put_in_force(NA_PROTOCOL_TCP, deny_host(NA_GUARDED_CONNECTION, OTHER), deny_plaintext());
  expect_reset(a);
  close(a);
  close(a_server);
  close(b);
  close(b_server);
  close(server);
}

static void kept_connections_are_judged_at_their_next_request(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, NULL, NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  put(client, GET_ROOT);
  int upstream = answer(server);
  expect_head(upstream, "GET / HTTP/1.1");
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/"), NULL);
  put(upstream, OK_HELLO); /* what is on its way ends */
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  put(client, GET_ROOT);
  expect_403(client);
  put_in_force(NA_PROTOCOL_HTTP, NULL, deny_plaintext());
  expect_reset(client);
  close(client);
  close(upstream);
  close(server);
}

static void upgraded_connections_are_asked_again(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/other"), NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  put(client, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
  int upstream = answer(server);
  get_head(upstream);
  put(upstream, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
  expect_head(client, "HTTP/1.1 101 Switching Protocols");
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/others"), NULL);
  put(client, "ping");
  expect(upstream, "ping");
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/chat"), NULL);
  expect_reset(client);
  close(client);
  close(upstream);
  close(server);
}

/* A download may last for days. */
static void who_may_not_connect_is_cut_off_amid_a_request(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/other"), NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080);
  put(client, "POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n");
  int upstream = answer(server);
  assert_has(get_head(upstream), "POST /long");
  put_in_force(NA_PROTOCOL_HTTP, deny_path(NA_MATCH_EXACT, "/long"), NULL);
  put(client, "more");
  expect(upstream, "more"); /* it was let through as a request */
  put_in_force(NA_PROTOCOL_HTTP, NULL, deny_plaintext());
  expect_reset(client);
  close(client);
  close(upstream);
  close(server);
}

static void other_changes_disturb_nobody(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_TCP, deny_host(NA_GUARDED_CONNECTION, OTHER), NULL);
  int server = listen_at(false, POD, 8080);
  int client = dial_from(false, CLIENT, POD, 8080), upstream = answer(server);
  uint64_t allowed = counter(&engine, "rbac_allowed_total");
  rig_change(&engine);
  add_cluster(engine.builder, "unrelated", 1);
  rig_commit(&engine);
  put_in_force(NA_PROTOCOL_TCP, deny_host(NA_GUARDED_CONNECTION, OTHER), NULL);
  put(client, "still there");
  expect(upstream, "still there");
  assert_int_equal(counter(&engine, "rbac_allowed_total"), allowed); /* asking again counts for nothing */
  close(client);
  close(upstream);
  close(server);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(requests_are_judged_one_by_one),
      cmocka_unit_test(no_spelling_slips_past),
      cmocka_unit_test(slashes_are_read_as_wanted),
      cmocka_unit_test(headers_and_hosts_are_judged),
      cmocka_unit_test(paths_grow_within_the_limits),
      cmocka_unit_test(a_refused_body_is_no_request),
      cmocka_unit_test(decisions_are_counted_by_policy),
      cmocka_unit_test(connections_are_judged),
      cmocka_unit_test(every_connection_is_asked_first),
      cmocka_unit_test(undeclared_ports_are_judged_by_what_they_speak),
      cmocka_unit_test(open_connections_are_asked_again),
      cmocka_unit_test(kept_connections_are_judged_at_their_next_request),
      cmocka_unit_test(upgraded_connections_are_asked_again),
      cmocka_unit_test(who_may_not_connect_is_cut_off_amid_a_request),
      cmocka_unit_test(other_changes_disturb_nobody),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
