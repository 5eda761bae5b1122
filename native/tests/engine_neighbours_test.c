/* SPDX-License-Identifier: Apache-2.0
 *
 * Two workloads of one engine that meet without a tunnel: "a" (10.1.0.1) is a proxy whose only endpoint is at "b"
 * (10.1.0.2), which is captured. Each side must know the other, and nobody else must be taken for it. Needs root and
 * nft.
 */
#include <openssl/ssl.h>

#include "guard_rig.h"
#include "pair_rig.h"

enum { UNCAPTURED = 8081 };

static pair_rig p;
static uint32_t accepting; /* the worker that takes b's connections; a's are the first one's */

/* a's endpoint is a port of b, which has to be one of the identities. */
static void route_to(uint16_t port, bool v6, const char *identities) {
  na_endpoint endpoint = {.port = port, .healthy = 1, .weight = 1, .tag = TAG_ENDPOINT};
  na_tunnel_config tunnel = {.identities = identities}; /* nobody listens on 15008 */
  uint32_t via = 1;
  sixteen_bytes(v6, B, endpoint.address);
  assert_int_equal(na_builder_tunnelled_endpoints(rig_change(&p.r), "c", &endpoint, 1, &via, &tunnel, 1), 0);
  rig_commit(&p.r);
}

static void route(bool v6, const char *identities) {
  route_to(SERVICE, v6, identities);
}

static void serve(enum na_protocol protocol) {
  na_inbound_port port = {.port = SERVICE, .protocol = (uint16_t)protocol, .tag = 77};
  rig_serve(&p.r, p.proxy, protocol, SERVICE);
  assert_int_equal(na_builder_inbound(rig_change(&p.r), WORKLOAD_B, &port, 1, NA_PROTOCOL_TCP), 0);
  rig_commit(&p.r);
}

static int set_up(void **state) {
  p = pair_start(&(na_config){.access_log = 1, .workers = 2}, accepting);
  if (p.ready)
    assert_int_equal(na_workload_baggage(p.r.engine, WORKLOAD_A, BAG_A), 0);
  return 0;
}

static int set_up_apart(void **state) {
  accepting = 1;
  return set_up(state);
}

static int tear_down(void **state) {
  pair_stop(&p);
  return 0;
}

static void each_knows_the_other(void **state) {
  need_capture(p.ready);
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  for (int v6 = 0; v6 < 2; v6++) {
    struct sockaddr_storage peer;
    uint64_t before = counter(&p.r, "neighbour_accepted_total");
    route(v6, "spiffe://cluster.local/ns/x/sa/z " ID_B);
    int server = listen_at(v6, B, SERVICE), client = dial(p.proxy);
    int upstream = answer_from(server, &peer);
    put(client, "hello");
    expect(upstream, "hello");
    put(upstream, "back");
    expect(client, "back");
    close(client);
    expect_end(upstream);
    close(upstream);
    close(server);
    na_access_record records[2] = {get_record(&p.r), get_record(&p.r)};
    for (int i = 0; i < 2; i++) {
      const na_access_record *record = &records[i];
      assert_int_equal(record->mutual_tls, 1);
      assert_int_equal(record->flags, 0);
      assert_string_equal(na_engine_principal(p.r.engine, record->principal), record->inbound ? ID_A : ID_B);
      assert_string_equal(record->peer_baggage, record->inbound ? BAG_A : "");
    }
    assert_int_not_equal(records[0].inbound, records[1].inbound);
    assert_int_equal(counter(&p.r, "neighbour_accepted_total"), before + 1);
  }
  assert_int_equal(counter(&p.r, "neighbour_cx_total"), 2);
  assert_int_equal(counter(&p.r, "hbone_dialed_total"), 0);
}

/* A connection to b that the engine did not make: nobody knows who that is. */
static void expect_stranger(int from, uint16_t port, int server) {
  socklen_t size;
  struct sockaddr_storage source = address_of(false, from, port, &size), target = address_of(false, B, SERVICE, &size);
  struct sockaddr_storage peer;
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  limit_waits(fd);
  assert_int_equal(bind(fd, (struct sockaddr *)&source, size), 0);
  assert_int_equal(connect(fd, (struct sockaddr *)&target, size), 0);
  close(answer_from(server, &peer));
  expect_end(fd);
  close(fd);
  na_access_record record = record_of(&p.r, 1);
  assert_int_equal(record.downstream_remote_port, port);
  assert_int_equal(record.mutual_tls, 0);
  assert_int_equal(record.principal, 0);
  assert_string_equal(record.peer_baggage, "");
}

static void nobody_else_is_taken_for_it(void **state) {
  need_capture(p.ready);
  struct sockaddr_storage peer;
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route(false, ID_B);
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy), upstream = answer_from(server, &peer);
  expect_stranger(A, 50001, server); /* from a's own address, beside a's connection */
  expect_stranger(STRANGER, 50001, server);
  close(client);
  expect_end(upstream);
  close(upstream);
  na_access_record record = record_of(&p.r, 0);
  uint16_t port = record.upstream_local_port;
  assert_in_range(port, 40000, 60999);
  forget_records(&p.r);
  expect_stranger(A, port, server); /* from the very port that the engine had */
  assert_int_equal(counter(&p.r, "neighbour_accepted_total"), counter(&p.r, "neighbour_cx_total"));
  close(server);
}

static void http_is_pooled_by_who_asks(void **state) {
  need_capture(p.ready);
  pair_identify(&p);
  serve(NA_PROTOCOL_HTTP);
  route(false, ID_B);
  uint64_t before = counter(&p.r, "neighbour_cx_total");
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  int upstream = first_exchange(client, server);
  exchange(client, upstream);
  assert_int_equal(counter(&p.r, "neighbour_cx_total"), before + 1);
  for (int i = 0; i < 4; i++) {
    na_access_record record = get_record(&p.r);
    assert_string_equal(na_engine_principal(p.r.engine, record.principal), record.inbound ? ID_A : ID_B);
    assert_int_equal(record.mutual_tls, 1);
  }
  assert_int_equal(na_identity_remove(p.r.engine, ID_A), 0); /* what is pooled is of no more use */
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
  assert_string_equal(record_of(&p.r, 0).upstream_failure, "HBONE: no own certificate of " ID_A);
  close(client);
  close(upstream);
  close(server);
  forget_records(&p.r);
}

/* The first bytes of somebody who speaks Istio's mTLS. */
static size_t mesh_hello(uint8_t *out, size_t size) {
  SSL_CTX *context = SSL_CTX_new(TLS_client_method());
  SSL *ssl = SSL_new(context);
  BIO *in = BIO_new(BIO_s_mem()), *written = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl, in, written);
  assert_int_equal(SSL_set_alpn_protos(ssl, (const uint8_t *)"\x5istio", 6), 0);
  assert_true(SSL_connect(ssl) < 0);
  int n = BIO_read(written, out, (int)size);
  assert_true(n > 0);
  SSL_free(ssl);
  SSL_CTX_free(context);
  return (size_t)n;
}

/* An application of the mesh that does mTLS by itself talks to the other application, not to its agent. */
static void what_the_application_speaks_is_its_own(void **state) {
  need_capture(p.ready);
  struct sockaddr_storage peer;
  uint8_t hello[4096], got[sizeof hello];
  size_t n = mesh_hello(hello, sizeof hello);
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route(false, ID_B);
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  put_n(client, hello, n);
  int upstream = answer_from(server, &peer);
  get_n(upstream, got, n);
  assert_memory_equal(got, hello, n);
  close(client);
  expect_end(upstream);
  close(upstream);
  close(server);
  forget_records(&p.r);
}

/* What cannot be vouched for goes by a tunnel, which says what is wrong. */
static void who_it_may_not_be_is_not_met(void **state) {
  need_capture(p.ready);
  uint64_t before = counter(&p.r, "neighbour_cx_total");
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route(false, ID_B "x spiffe://cluster.local/ns/x/sa/z");
  int server = listen_at(false, B, SERVICE), client = dial(p.proxy);
  expect_reset(client);
  close(client);
  assert_string_equal(record_of(&p.r, 0).upstream_failure, "HBONE: Connection refused");
  route(false, ID_B);
  assert_int_equal(na_identity_remove(p.r.engine, ID_B), 0);
  client = dial(p.proxy);
  expect_reset(client);
  close(client);
  assert_string_equal(record_of(&p.r, 0).upstream_failure, "HBONE: Connection refused");
  credential foreign = new_leaf(&p.ca, &(leaf_spec){.uris = {"spiffe://elsewhere/ns/x/sa/a"}});
  set_identity(&p.r, ID_A, &foreign, &p.ca);
  set_identity(&p.r, ID_B, &p.b, &p.ca);
  client = dial(p.proxy);
  expect_reset(client);
  close(client);
  free_credential(&foreign);
  expect_silence(server, 20);
  close(server);
  assert_int_equal(counter(&p.r, "neighbour_cx_total"), before);
  forget_records(&p.r);
}

/* Whoever is at b's address, but not b, gets no byte: nobody has taken the introduction. */
static void who_has_the_address_is_not_met(void **state) {
  need_capture(p.ready);
  struct sockaddr_storage peer;
  uint64_t before = counter(&p.r, "neighbour_accepted_total");
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route_to(UNCAPTURED, false, ID_B);
  int server = listen_at(false, B, UNCAPTURED), client = dial(p.proxy), upstream = answer_from(server, &peer);
  put(client, "hello");
  put(upstream, "from somebody else");
  expect_silence(upstream, 50);
  expect_silence(client, 1);
  close(server);
  close(upstream);
  expect_reset(client);
  close(client);
  assert_int_equal(counter(&p.r, "neighbour_accepted_total"), before);
  forget_records(&p.r);
}

/* Nothing listens behind b: the introduction is taken, and both sides end. */
static void an_absent_application_is_a_reset(void **state) {
  need_capture(p.ready);
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route(false, ID_B);
  int client = dial(p.proxy);
  expect_reset(client);
  close(client);
  na_access_record record = record_of(&p.r, 1);
  assert_string_equal(record.upstream_failure, "Connection refused");
  assert_string_equal(na_engine_principal(p.r.engine, record.principal), ID_A);
  await_counter(&p.r, "downstream_cx_active", 0);
  forget_records(&p.r);
}

/* Once: to try again would be refused again. */
static void whom_policy_refuses_is_refused_once(void **state) {
  need_capture(p.ready);
  uint64_t before = counter(&p.r, "neighbour_accepted_total"), denied = counter(&p.r, "rbac_denied_total");
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  na_guards *guards = new_guards(NA_GUARDED_CONNECTION, NA_RULE_DENY, "nobody");
  assert_int_equal(na_check_always(guards), 0);
  guard_workload(&p.r, WORKLOAD_B, SERVICE, NA_PROTOCOL_TCP, NULL, guards);
  route(false, ID_B);
  int client = dial(p.proxy);
  expect_reset(client);
  close(client);
  for (int i = 0; i < 2; i++) { /* each side's, in either order */
    na_access_record record = get_record(&p.r);
    if (record.inbound) {
      assert_string_equal(record.detail, "rbac_access_denied_matched_policy[nobody]");
    } else if (!accepting) { /* another worker may be told of the introduction before it is of the reset */
      assert_int_equal(record.flags, NA_FLAG_UF);
      assert_string_equal(record.upstream_failure, "refused by the policy of its workload");
    }
  }
  await_counter(&p.r, "downstream_cx_active", 0);
  assert_int_equal(counter(&p.r, "neighbour_accepted_total"), before + 1);
  assert_int_equal(counter(&p.r, "rbac_denied_total"), denied + 1);
  forget_records(&p.r);
}

/* Last: b goes. */
static void who_has_left_is_not_met(void **state) {
  need_capture(p.ready);
  uint64_t before = counter(&p.r, "neighbour_cx_total");
  pair_identify(&p);
  serve(NA_PROTOCOL_TCP);
  route(false, ID_B);
  assert_int_equal(na_workload_remove(p.r.engine, WORKLOAD_B, 0), 0);
  for (int i = 0; i < 2000 && !na_workload_gone(p.r.engine, WORKLOAD_B); i++)
    sleep_ms(1);
  assert_int_equal(na_workload_gone(p.r.engine, WORKLOAD_B), 1);
  int client = dial(p.proxy);
  expect_reset(client);
  close(client);
  assert_int_equal(counter(&p.r, "neighbour_cx_total"), before);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_knows_the_other),
      cmocka_unit_test(nobody_else_is_taken_for_it),
      cmocka_unit_test(http_is_pooled_by_who_asks),
      cmocka_unit_test(what_the_application_speaks_is_its_own),
      cmocka_unit_test(who_it_may_not_be_is_not_met),
      cmocka_unit_test(an_absent_application_is_a_reset),
      cmocka_unit_test(whom_policy_refuses_is_refused_once),
      cmocka_unit_test(who_has_the_address_is_not_met),
      cmocka_unit_test(who_has_left_is_not_met),
  };
  int failed = cmocka_run_group_tests_name("one worker", tests, set_up, tear_down);
  return failed + cmocka_run_group_tests_name("two workers", tests, set_up_apart, tear_down);
}
