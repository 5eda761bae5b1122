/* SPDX-License-Identifier: Apache-2.0
 *
 * Istio's mTLS between proxies, both sides: workload "a" (10.1.0.1) is a proxy whose only endpoint is at "b"
 * (10.1.0.2), to be reached by mTLS; b is captured, and terminates it. Plaintext is let in beside. Needs root and nft.
 */
#include "guard_rig.h"
#include "pair_rig.h"

/* A ClientHello of the application's own TLS: ALPN offers h2. */
static const char hello[] =
    "\x16\x03\x01\x00\x3f\x01\x00\x00\x3b\x03\x03"
    "0123456789abcdef0123456789abcdef"
    "\x00\x00\x02\x13\x01\x01\x00\x00\x10\x00\x10\x00\x05\x00\x03\x02h2\x00\x15\x00\x03\x00\x00\x00";

static pair_rig p;

static void configure(enum na_protocol protocol, const char *identities) {
  na_endpoint endpoint = {.port = SERVICE, .healthy = 1, .weight = 1, .tag = TAG_ENDPOINT};
  na_tunnel_config way = {.kind = NA_TUNNEL_MTLS, .identities = identities};
  na_inbound_port port = {.port = SERVICE, .protocol = (uint16_t)protocol, .tag = 77};
  uint32_t via = 1;
  pair_identify(&p);
  rig_serve(&p.r, p.proxy, protocol, SERVICE);
  sixteen_bytes(false, B, endpoint.address);
  na_builder *builder = rig_change(&p.r);
  assert_int_equal(na_builder_tunnelled_endpoints(builder, "c", &endpoint, 1, &via, &way, 1), 0);
  assert_int_equal(na_builder_inbound(builder, WORKLOAD_B, &port, 1, NA_PROTOCOL_TCP), 0);
  rig_commit(&p.r);
}

static int set_up(void **state) {
  p = pair_start(&(na_config){.access_log = 1}, 0);
  /* What a dials comes from a's address, although b's is one of this machine, too. */
  if (p.ready)
    assert_true(
        run("ip -batch -", "route replace local 10.1.0.2 dev lo table local proto kernel scope host src 10.1.0.1\n"));
  return 0;
}

static int tear_down(void **state) {
  pair_stop(&p);
  return 0;
}

static void assert_known(const na_access_record *record) {
  assert_int_equal(record->mutual_tls, 1);
  assert_int_equal(record->flags, 0);
  assert_string_equal(na_engine_principal(p.r.engine, record->principal), record->inbound ? ID_A : ID_B);
}

static void tcp_is_carried_and_each_is_known(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_TCP, "spiffe://cluster.local/ns/x/sa/z " ID_B);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  put(client, "hello");
  int upstream = answer_from(server, &peer);
  expect(upstream, "hello");
  put(upstream, "back");
  expect(client, "back");
  shutdown(client, SHUT_WR); /* half-close goes through */
  expect_end(upstream);
  put(upstream, "last");
  expect(client, "last");
  close(upstream);
  expect_end(client);
  close(client);
  close(server);
  na_access_record records[2] = {get_record(&p.r), get_record(&p.r)};
  assert_known(&records[0]);
  assert_known(&records[1]);
  assert_int_not_equal(records[0].inbound, records[1].inbound);
  assert_int_equal(counter(&p.r, "mtls_dialed_total"), 1);
  assert_int_equal(counter(&p.r, "mtls_accepted_total"), 1);
  assert_int_equal(counter(&p.r, "hbone_dialed_total"), 0);
}

static void http_is_pooled_and_sessions_are_resumed(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  uint64_t before = counter(&p.r, "mtls_dialed_total");
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  int upstream = first_exchange(client, server);
  exchange(client, upstream);
  assert_int_equal(counter(&p.r, "mtls_dialed_total"), before + 1);
  uint64_t resumed = counter(&p.r, "mtls_resumed_total");
  int second = dial(p.proxy); /* while the pooled connection is busy */
  put(client, GET_ROOT);
  expect_head(upstream, "GET / HTTP/1.1");
  int other = first_exchange(second, server);
  assert_int_equal(counter(&p.r, "mtls_resumed_total"), resumed + 1);
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  for (int i = 0; i < 8; i++) {
    na_access_record record = get_record(&p.r);
    assert_known(&record);
  }
  close(client);
  close(second);
  close(upstream);
  close(other);
  close(server);
}

static void a_certificate_that_is_taken_away_ends_it(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  int upstream = first_exchange(client, server);
  assert_int_equal(na_identity_remove(p.r.engine, ID_A), 0);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
  close(client);
  close(upstream);
  close(server);
  forget_records(&p.r);
}

static void who_it_may_not_be_is_refused(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_TCP, "spiffe://cluster.local/ns/x/sa/z");
  int client = dial(p.proxy);
  expect_reset(client);
  close(client);
  na_access_record record = record_of(&p.r, 0);
  assert_true(record.flags & NA_FLAG_UF);
  assert_non_null(strstr(record.upstream_failure, ID_B));
  credential foreign = new_leaf(&p.ca, &(leaf_spec){.uris = {"spiffe://elsewhere/ns/x/sa/a"}});
  configure(NA_PROTOCOL_TCP, ID_B);
  set_identity(&p.r, ID_A, &foreign, &p.ca); /* whom b does not trust */
  uint64_t failed = counter(&p.r, "mtls_handshake_fail_total"), accepted = counter(&p.r, "mtls_accepted_total");
  client = dial(p.proxy);
  expect_reset(client);
  close(client);
  free_credential(&foreign);
  await_counter(&p.r, "mtls_handshake_fail_total", failed + 1);
  assert_int_equal(counter(&p.r, "mtls_accepted_total"), accepted);
  await_counter(&p.r, "downstream_cx_active", 0);
  assert_int_equal(counter(&p.r, "hbone_handshakes_active"), 0);
  forget_records(&p.r);
}

/* The application gets just what the client sent, and nobody is vouched for. */
static void expect_passed_on(const char *bytes, size_t n) {
  struct sockaddr_storage peer;
  char got[128];
  int server = listen_at(false, B, SERVICE), client = dial_from(false, STRANGER, B, SERVICE);
  assert_int_equal(send(client, bytes, n, 0), n);
  int upstream = answer_from(server, &peer);
  assert_int_equal(recv(upstream, got, n, MSG_WAITALL), n);
  assert_memory_equal(got, bytes, n);
  close(client);
  expect_end(upstream);
  close(upstream);
  close(server);
  na_access_record record = record_of(&p.r, 1);
  assert_int_equal(record.mutual_tls, 0);
  assert_int_equal(record.principal, 0);
}

static void others_come_in_as_they_are(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_TCP, ID_B);
  forget_records(&p.r);
  expect_passed_on("hello", 5);
  expect_passed_on(hello, sizeof hello - 1);
  expect_passed_on("\x16\x03\x01\x40\x00\x02", 6); /* like TLS, but it is not */
}

/* What the greeting was recognised by is the beginning of a request. */
static void plain_requests_are_answered(void **state) {
  static const char *const first[] = {GET_ROOT, "G", "GET / HT"};
  need_capture(p.ready);
  for (int i = 0; i < 6; i++) {
    configure(i < 3 ? NA_PROTOCOL_HTTP : NA_PROTOCOL_DETECT, ID_B);
    struct sockaddr_storage peer;
    int server = listen_at(false, B, SERVICE), client = dial_from(false, STRANGER, B, SERVICE);
    put(client, first[i % 3]);
    usleep(5000);
    if (i % 3)
      put(client, &GET_ROOT[strlen(first[i % 3])]);
    int upstream = answer_from(server, &peer);
    expect_head(upstream, "GET / HTTP/1.1");
    put(upstream, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    expect(client, "hello");
    close(client);
    close(upstream);
    close(server);
  }
  forget_records(&p.r);
}

static void a_server_may_speak_first(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_TCP, ID_B);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial_from(false, STRANGER, B, SERVICE);
  int upstream = answer_from(server, &peer);
  put(upstream, "welcome");
  expect(client, "welcome");
  close(client);
  expect_end(upstream);
  close(upstream);
  close(server);
  forget_records(&p.r);
}

static void a_client_that_only_connects_is_let_go(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  int client = dial_from(false, STRANGER, B, SERVICE);
  shutdown(client, SHUT_WR);
  expect_end(client);
  close(client);
  await_counter(&p.r, "downstream_cx_active", 0);
  forget_records(&p.r);
}

/* Who shows no certificate is denied at every port of b. */
static void be_strict(enum na_protocol protocol) {
  na_guards *guards = new_guards(NA_GUARDED_CONNECTION, NA_RULE_DENY, "strict");
  assert_int_equal(na_check_not(guards), 0);
  guard_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, ID_A, 0);
  guard_workload(&p.r, WORKLOAD_B, SERVICE, protocol, NULL, guards);
}

static void guards_know_the_peer(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_TCP, ID_B);
  be_strict(NA_PROTOCOL_TCP);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  put(client, "hello");
  int upstream = answer_from(server, &peer);
  expect(upstream, "hello");
  int stranger = dial_from(false, STRANGER, B, SERVICE);
  expect_reset(stranger);
  close(stranger);
  close(client);
  close(upstream);
  close(server);
  forget_records(&p.r);
}

/* Nobody is judged by a new policy before it is known who it is. */
static void newcomers_are_judged_once_they_are_known(void **state) {
  need_capture(p.ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  int server = listen_at(false, B, SERVICE);
  int stranger = dial_from(false, STRANGER, B, SERVICE);
  uint64_t reset = counter(&p.r, "guards_reset_total");
  sleep_ms(20);
  be_strict(NA_PROTOCOL_HTTP);
  expect_silence(stranger, 50);
  put(stranger, GET_ROOT);
  expect_reset(stranger);
  assert_int_equal(counter(&p.r, "guards_reset_total"), reset);
  expect_silence(server, 20);
  close(stranger);
  close(server);
  forget_records(&p.r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tcp_is_carried_and_each_is_known),
      cmocka_unit_test(http_is_pooled_and_sessions_are_resumed),
      cmocka_unit_test(a_certificate_that_is_taken_away_ends_it),
      cmocka_unit_test(who_it_may_not_be_is_refused),
      cmocka_unit_test(others_come_in_as_they_are),
      cmocka_unit_test(plain_requests_are_answered),
      cmocka_unit_test(a_server_may_speak_first),
      cmocka_unit_test(a_client_that_only_connects_is_let_go),
      cmocka_unit_test(guards_know_the_peer),
      cmocka_unit_test(newcomers_are_judged_once_they_are_known),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
