/* SPDX-License-Identifier: Apache-2.0
 *
 * What tunnel peers may ask a workload for besides its own address: its services by name, and, of one with an
 * application tunnel, anything.
 */
#include "h2_peer.h"

/* b's inbound configuration; the back end is port 80 of service "db.shop". */
static void configure(hbone_scene *s, enum na_protocol protocol, uint32_t tunnel, uint16_t tunnel_port) {
  const na_inbound_name names[] = {{"other.shop", 80, 1}, {"db.shop", 81, 1}, {"db.shop", 80, s->backend}};
  const na_inbound_config config = {
      .fallback = protocol, .names = names, .n_names = COUNT(names), .tunnel = tunnel, .tunnel_port = tunnel_port};
  hbone_configure(s, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  assert_int_equal(na_builder_guarded_inbound(rig_change(&s->r), 2, NULL, 0, &config, NULL, 0), 0);
  rig_commit(&s->r);
}

static void expect_echo(h2_peer *peer, int server) {
  assert_true(h2_send(peer, H2_DATA, 0, 1, "hello", 5));
  expect(server, "hello");
  put(server, "back");
  assert_true(h2_await(peer, H2_DATA, 1));
  assert_int_equal(peer->n, 4);
  assert_memory_equal(peer->payload, "back", 4);
}

static void a_service_may_be_asked_for_by_name(void **state) {
  hbone_scene s = hbone_begin(NULL);
  h2_peer peer;
  configure(&s, NA_PROTOCOL_TCP, 0, 0);
  h2_dial(&peer, &s);
  assert_true(h2_connect_to(&peer, 1, "DB.shop:80"));
  int server = answer(s.listener);
  assert_int_equal(h2_status(&peer, 1), 200);
  expect_echo(&peer, server);
  close(server);
  h2_close(&peer);
  hbone_end(&s);
}

/* Other ports of the namespace are other workloads', with policies of their own. */
static void one_that_shares_its_namespace_is_asked_for_its_ports_only(void **state) {
  hbone_scene s = hbone_begin(NULL);
  h2_peer peer;
  uint16_t other;
  char authority[32];
  int listener = listen_any(&other);
  snprintf(authority, sizeof authority, "127.0.0.1:%u", other);
  configure(&s, NA_PROTOCOL_TCP, 0, 0);
  assert_int_equal(na_workload_share(s.r.engine, 99, &s.backend, 1), -ENOENT);
  assert_int_equal(na_workload_share(s.r.engine, 2, &s.backend, 1), 0);
  h2_dial(&peer, &s);
  assert_true(h2_connect_to(&peer, 1, authority));
  assert_int_equal(h2_status(&peer, 1), 400);
  assert_true(h2_connect_to(&peer, 3, "other.shop:80"));
  assert_int_equal(h2_status(&peer, 3), 400);
  expect_silence(listener, 20);
  assert_true(h2_connect_to(&peer, 5, "db.shop:80"));
  close(answer(s.listener));
  assert_int_equal(h2_status(&peer, 5), 200);
  h2_close(&peer);
  close(listener);
  hbone_end(&s);
}

static void names_of_others_are_refused(void **state) {
  static const char *const others[] = {"db.shop:82", "db.shop.:80", "db:80", "db.shop2:80", "x.db.shop:80"};
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_begin(&config);
  h2_peer peer;
  configure(&s, NA_PROTOCOL_TCP, 0, 0);
  h2_dial(&peer, &s);
  for (uint32_t i = 0; i < COUNT(others); i++) {
    assert_true(h2_connect_to(&peer, 2 * i + 1, others[i]));
    assert_int_equal(h2_status(&peer, 2 * i + 1), 400);
    na_access_record record = get_record(&s.r);
    assert_string_equal(record.detail, "hbone_bad_request");
    assert_has(record.upstream_failure, others[i]);
  }
  expect_silence(s.listener, 20);
  assert_int_equal(counter(&s.r, "hbone_bad_request_total"), COUNT(others));
  h2_close(&peer);
  hbone_end(&s);
}

static void bad_names_are_explained(void **state) {
  hbone_scene s = hbone_begin(NULL);
  const na_inbound_name names[] = {{"db.shop", 0, 1}};
  const na_inbound_config config = {.names = names, .n_names = 1}, tunnel = {.tunnel = 2};
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_guarded_inbound(b, 2, NULL, 0, &config, NULL, 0), -EINVAL);
  assert_string_equal(na_builder_error(b), "workload 2: name 'db.shop' stands for port 1 as 0");
  assert_int_equal(na_builder_guarded_inbound(b, 2, NULL, 0, &tunnel, NULL, 0), -EINVAL);
  assert_string_equal(na_builder_error(b), "workload 2: application tunnel 2 to port 0");
  na_builder_abort(b);
  hbone_end(&s);
}

/* The header of proxy-protocol.txt 2.2 that the application gets, for a peer on 127.0.0.1 that asked for the address.
 */
static void expect_proxy_header(int server, const char *address, uint16_t port) {
  uint8_t head[16], addresses[12], tlv[3], wanted[4];
  char identity[sizeof ID_A] = {0};
  get_n(server, head, sizeof head);
  assert_memory_equal(head, "\r\n\r\n\0\r\nQUIT\n\x21\x11", 14);
  assert_int_equal(head[14] << 8 | head[15], 12 + 3 + strlen(ID_A));
  get_n(server, addresses, sizeof addresses);
  assert_memory_equal(addresses, "\x7f\0\0\x01", 4);
  inet_pton(AF_INET, address, wanted);
  assert_memory_equal(addresses + 4, wanted, 4);
  assert_int_equal(addresses[10] << 8 | addresses[11], port);
  get_n(server, tlv, sizeof tlv);
  assert_int_equal(tlv[0], 0xd0);
  assert_int_equal(tlv[1] << 8 | tlv[2], strlen(ID_A));
  get_n(server, identity, strlen(ID_A));
  assert_string_equal(identity, ID_A);
}

/* Also where HTTP is declared: what comes is no HTTP any more. */
static void an_application_tunnel_begins_with_who_asks_for_what(void **state) {
  for (int http = 0; http < 2; http++) {
    hbone_scene s = hbone_begin(NULL);
    h2_peer peer;
    configure(&s, http ? NA_PROTOCOL_HTTP : NA_PROTOCOL_DETECT, NA_APPLICATION_TUNNEL_PROXY, s.backend);
    h2_dial(&peer, &s);
    assert_true(h2_connect_to(&peer, 1, "10.96.0.1:80"));
    int server = answer(s.listener);
    assert_int_equal(h2_status(&peer, 1), 200);
    expect_proxy_header(server, "10.96.0.1", 80);
    expect_echo(&peer, server);
    close(server);
    h2_close(&peer);
    hbone_end(&s);
  }
}

static void an_application_tunnel_keeps_the_port_if_it_names_none(void **state) {
  hbone_scene s = hbone_begin(NULL);
  h2_peer peer;
  configure(&s, NA_PROTOCOL_TCP, NA_APPLICATION_TUNNEL_PROXY, 0);
  h2_dial(&peer, &s);
  char authority[32];
  snprintf(authority, sizeof authority, "10.96.0.1:%u", s.backend);
  assert_true(h2_connect_to(&peer, 1, authority));
  int server = answer(s.listener);
  expect_proxy_header(server, "10.96.0.1", s.backend);
  assert_true(h2_connect_to(&peer, 3, "10.96.0.1:15006")); /* not to the agent */
  assert_int_equal(h2_status(&peer, 3), 400);
  close(server);
  h2_close(&peer);
  hbone_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_service_may_be_asked_for_by_name),
      cmocka_unit_test(one_that_shares_its_namespace_is_asked_for_its_ports_only),
      cmocka_unit_test(names_of_others_are_refused),
      cmocka_unit_test(bad_names_are_explained),
      cmocka_unit_test(an_application_tunnel_begins_with_who_asks_for_what),
      cmocka_unit_test(an_application_tunnel_keeps_the_port_if_it_names_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
