/* SPDX-License-Identifier: Apache-2.0
 *
 * Istio's mTLS between proxies, both sides: workload "a" (10.1.0.1) is a proxy whose only endpoint is at "b"
 * (10.1.0.2), to be reached by mTLS; b is captured, and terminates it. Plaintext is let in beside. Needs root and nft.
 */
#include "capture_rig.h"
#include "guard_rig.h"
#include "hbone_rig.h"

enum { A = POD, B = CLIENT, STRANGER = OTHER };
enum { WORKLOAD_A = 5, WORKLOAD_B = 7, SERVICE = 8080 };

/* What comes from an ephemeral port is captured; the engine connects to the application from lower ones. */
static const char rules[] = "add table inet capture\n"
                            "add chain inet capture out { type nat hook output priority -100; }\n"
                            "add rule inet capture out tcp sport 40000-60999 tcp dport 8080 redirect to :15006\n";
/* A ClientHello of the application's own TLS: ALPN offers h2. */
static const char hello[] =
    "\x16\x03\x01\x00\x3f\x01\x00\x00\x3b\x03\x03"
    "0123456789abcdef0123456789abcdef"
    "\x00\x00\x02\x13\x01\x01\x00\x00\x10\x00\x10\x00\x05\x00\x03\x02h2\x00\x15\x00\x03\x00\x00\x00";

static rig r;
static credential ca, a, b;
static uint16_t proxy;
static bool ready;

static void configure(enum na_protocol protocol, const char *identities) {
  na_endpoint endpoint = {.port = SERVICE, .healthy = 1, .weight = 1, .tag = TAG_ENDPOINT};
  na_tunnel_config way = {.kind = NA_TUNNEL_MTLS, .identities = identities};
  na_inbound_port port = {.port = SERVICE, .protocol = (uint16_t)protocol, .tag = 77};
  uint32_t via = 1;
  set_identity(&r, ID_A, &a, &ca);
  set_identity(&r, ID_B, &b, &ca);
  rig_serve(&r, proxy, protocol, SERVICE);
  sixteen_bytes(false, B, endpoint.address);
  na_builder *builder = rig_change(&r);
  assert_int_equal(na_builder_tunnelled_endpoints(builder, "c", &endpoint, 1, &via, &way, 1), 0);
  assert_int_equal(na_builder_inbound(builder, WORKLOAD_B, &port, 1, NA_PROTOCOL_TCP), 0);
  rig_commit(&r);
}

static int set_up(void **state) {
  if (!capture_possible())
    return 0;
  r = rig_start(&(na_config){.access_log = 1});
  if (!enter_namespace(rules))
    return 0;
  write_file("/proc/sys/net/ipv4/ip_local_port_range", "40000 60999");
  /* What a dials comes from a's address, although b's is one of this machine, too. */
  if (!run("ip -batch -", "route replace local 10.1.0.2 dev lo table local proto kernel scope host src 10.1.0.1\n"))
    return 0;
  add_pod(&r, WORKLOAD_A, A, "v");
  add_pod(&r, WORKLOAD_B, B, "w");
  assert_int_equal(na_workload_identity(r.engine, WORKLOAD_A, ID_A), 0);
  assert_int_equal(na_workload_identity(r.engine, WORKLOAD_B, ID_B), 0);
  assert_int_equal(na_workload_listen(r.engine, WORKLOAD_A, NA_LISTENER_PLAIN, 0, listen_any(&proxy)), 0);
  assert_int_equal(na_workload_listen(r.engine, WORKLOAD_B, NA_LISTENER_INBOUND, 0, listen_all(15006)), 0);
  ca = new_ca("root");
  a = new_leaf(&ca, &(leaf_spec){.uris = {ID_A}});
  b = new_leaf(&ca, &(leaf_spec){.uris = {ID_B}});
  ready = true;
  return 0;
}

static int tear_down(void **state) {
  if (r.engine)
    rig_stop(&r);
  if (ready) {
    free_credential(&ca);
    free_credential(&a);
    free_credential(&b);
  }
  return 0;
}

static na_access_record record_of(int inbound) {
  for (;;) {
    na_access_record record = get_record(&r);
    if (record.inbound == inbound)
      return record;
  }
}

static void forget_records(void) {
  na_access_record rest[16];
  sleep_ms(20);
  na_engine_drain_access(r.engine, rest, COUNT(rest));
}

static void assert_known(const na_access_record *record) {
  assert_int_equal(record->mutual_tls, 1);
  assert_int_equal(record->flags, 0);
  assert_string_equal(na_engine_principal(r.engine, record->principal), record->inbound ? ID_A : ID_B);
}

static void tcp_is_carried_and_each_is_known(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_TCP, "spiffe://cluster.local/ns/x/sa/z " ID_B);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial(proxy);
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
  na_access_record records[2] = {get_record(&r), get_record(&r)};
  assert_known(&records[0]);
  assert_known(&records[1]);
  assert_int_not_equal(records[0].inbound, records[1].inbound);
  assert_int_equal(counter(&r, "mtls_dialed_total"), 1);
  assert_int_equal(counter(&r, "mtls_accepted_total"), 1);
  assert_int_equal(counter(&r, "hbone_dialed_total"), 0);
}

static void http_is_pooled_and_sessions_are_resumed(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  struct sockaddr_storage peer;
  uint64_t before = counter(&r, "mtls_dialed_total");
  int server = listen_at(false, B, SERVICE), client = dial(proxy);
  put(client, GET_ROOT);
  int upstream = answer_from(server, &peer);
  expect_head(upstream, "GET / HTTP/1.1");
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  exchange(client, upstream);
  assert_int_equal(counter(&r, "mtls_dialed_total"), before + 1);
  uint64_t resumed = counter(&r, "mtls_resumed_total");
  int second = dial(proxy); /* while the pooled connection is busy */
  put(client, GET_ROOT);
  expect_head(upstream, "GET / HTTP/1.1");
  put(second, GET_ROOT);
  int other = answer_from(server, &peer);
  expect_head(other, "GET / HTTP/1.1");
  put(other, OK_HELLO);
  expect_head(second, "HTTP/1.1 200 OK");
  assert_int_equal(counter(&r, "mtls_resumed_total"), resumed + 1);
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  for (int i = 0; i < 8; i++) {
    na_access_record record = get_record(&r);
    assert_known(&record);
  }
  close(client);
  close(second);
  close(upstream);
  close(other);
  close(server);
}

static void a_certificate_that_is_taken_away_ends_it(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial(proxy);
  put(client, GET_ROOT);
  int upstream = answer_from(server, &peer);
  expect_head(upstream, "GET / HTTP/1.1");
  put(upstream, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  assert_int_equal(na_identity_remove(r.engine, ID_A), 0);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
  close(client);
  close(upstream);
  close(server);
  forget_records();
}

static void who_it_may_not_be_is_refused(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_TCP, "spiffe://cluster.local/ns/x/sa/z");
  int client = dial(proxy);
  expect_reset(client);
  close(client);
  na_access_record record = record_of(0);
  assert_true(record.flags & NA_FLAG_UF);
  assert_non_null(strstr(record.upstream_failure, ID_B));
  credential foreign = new_leaf(&ca, &(leaf_spec){.uris = {"spiffe://elsewhere/ns/x/sa/a"}});
  configure(NA_PROTOCOL_TCP, ID_B);
  set_identity(&r, ID_A, &foreign, &ca); /* whom b does not trust */
  uint64_t failed = counter(&r, "mtls_handshake_fail_total"), accepted = counter(&r, "mtls_accepted_total");
  client = dial(proxy);
  expect_reset(client);
  close(client);
  free_credential(&foreign);
  await_counter(&r, "mtls_handshake_fail_total", failed + 1);
  assert_int_equal(counter(&r, "mtls_accepted_total"), accepted);
  await_counter(&r, "downstream_cx_active", 0);
  assert_int_equal(counter(&r, "hbone_handshakes_active"), 0);
  forget_records();
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
  na_access_record record = record_of(1);
  assert_int_equal(record.mutual_tls, 0);
  assert_int_equal(record.principal, 0);
}

static void others_come_in_as_they_are(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_TCP, ID_B);
  forget_records();
  expect_passed_on("hello", 5);
  expect_passed_on(hello, sizeof hello - 1);
  expect_passed_on("\x16\x03\x01\x40\x00\x02", 6); /* like TLS, but it is not */
}

/* What the greeting was recognised by is the beginning of a request. */
static void plain_requests_are_answered(void **state) {
  static const char *const first[] = {GET_ROOT, "G", "GET / HT"};
  need_capture(ready);
  for (int i = 0; i < 6; i++) {
    configure(i < 3 ? NA_PROTOCOL_HTTP : NA_PROTOCOL_DETECT, ID_B);
    struct sockaddr_storage peer;
    int server = listen_at(false, B, SERVICE), client = dial_from(false, STRANGER, B, SERVICE);
    put(client, first[i % 3]);
    usleep(5000);
    if (i % 3)
      put(client, GET_ROOT + strlen(first[i % 3]));
    int upstream = answer_from(server, &peer);
    expect_head(upstream, "GET / HTTP/1.1");
    put(upstream, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    expect(client, "hello");
    close(client);
    close(upstream);
    close(server);
  }
  forget_records();
}

static void a_server_may_speak_first(void **state) {
  need_capture(ready);
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
  forget_records();
}

static void a_client_that_only_connects_is_let_go(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  int client = dial_from(false, STRANGER, B, SERVICE);
  shutdown(client, SHUT_WR);
  expect_end(client);
  close(client);
  await_counter(&r, "downstream_cx_active", 0);
  forget_records();
}

/* Who shows no certificate is denied at every port of b. */
static void be_strict(enum na_protocol protocol) {
  na_guards *guards = new_guards(NA_GUARDED_CONNECTION, NA_RULE_DENY, "strict");
  assert_int_equal(na_check_not(guards), 0);
  guard_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, ID_A, 0);
  guard_workload(&r, WORKLOAD_B, SERVICE, protocol, NULL, guards);
}

static void guards_know_the_peer(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_TCP, ID_B);
  be_strict(NA_PROTOCOL_TCP);
  struct sockaddr_storage peer;
  int server = listen_at(false, B, SERVICE), client = dial(proxy);
  put(client, "hello");
  int upstream = answer_from(server, &peer);
  expect(upstream, "hello");
  int stranger = dial_from(false, STRANGER, B, SERVICE);
  expect_reset(stranger);
  close(stranger);
  close(client);
  close(upstream);
  close(server);
  forget_records();
}

/* Nobody is judged by a new policy before it is known who it is. */
static void newcomers_are_judged_once_they_are_known(void **state) {
  need_capture(ready);
  configure(NA_PROTOCOL_HTTP, ID_B);
  int server = listen_at(false, B, SERVICE);
  int stranger = dial_from(false, STRANGER, B, SERVICE);
  uint64_t reset = counter(&r, "guards_reset_total");
  sleep_ms(20);
  be_strict(NA_PROTOCOL_HTTP);
  expect_silence(stranger, 50);
  put(stranger, GET_ROOT);
  expect_reset(stranger);
  assert_int_equal(counter(&r, "guards_reset_total"), reset);
  expect_silence(server, 20);
  close(stranger);
  close(server);
  forget_records();
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
