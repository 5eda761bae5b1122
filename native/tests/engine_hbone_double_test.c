/* SPDX-License-Identifier: Apache-2.0
 *
 * Double HBONE within one engine: a's endpoint is service "db.shop" of another network. Its gateway (workload 3) takes
 * tunnels for that name and passes what is in them on to b's own HBONE port; within is a second tunnel, to b.
 */
#include "hbone_rig.h"

#define ID_GATE "spiffe://cluster.local/ns/x/sa/gate"
#define SERVICE "db.shop:80"

typedef struct double_scene {
  hbone_scene s;
  credential gate;
  uint16_t gate_port;
} double_scene;

static void name(rig *r, uint32_t workload, const char *host, uint16_t target) {
  const na_inbound_name names[] = {{host, 80, target}};
  const na_inbound_config config = {.names = names, .n_names = 1};
  assert_int_equal(na_builder_guarded_inbound(rig_change(r), workload, NULL, 0, &config, NULL, 0), 0);
  rig_commit(r);
}

static void route(double_scene *d, const char *gate, const char *inner) {
  na_endpoint endpoint = endpoint_at(80);
  na_tunnel_config tunnel = {
      .port = d->gate_port, .identities = gate, .inner = inner, .authority = SERVICE, .network = "near"};
  uint32_t via = 1;
  v4_mapped(tunnel.address, "127.0.0.1");
  v4_mapped(endpoint.address, "192.0.2.1"); /* nobody is asked there */
  assert_int_equal(na_builder_tunnelled_endpoints(rig_change(&d->s.r), "c", &endpoint, 1, &via, &tunnel, 1), 0);
  rig_commit(&d->s.r);
}

static double_scene begin(const na_config *config) {
  double_scene d = {.s = hbone_scene_of(config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP)};
  uint8_t own[16];
  v4_mapped(own, "10.9.9.7");
  assert_int_equal(na_workload_add(d.s.r.engine, 3, -1, "g", own, 1), 0);
  assert_int_equal(na_workload_identity(d.s.r.engine, 3, ID_GATE), 0);
  d.gate = new_leaf(&d.s.ca, &(leaf_spec){.uris = {ID_GATE}});
  set_identity(&d.s.r, ID_GATE, &d.gate, &d.s.ca);
  assert_int_equal(na_workload_listen(d.s.r.engine, 3, NA_LISTENER_HBONE, 0, listen_any(&d.gate_port)), 0);
  name(&d.s.r, 3, "db.shop", d.s.tunnel);
  name(&d.s.r, 2, "db.shop", d.s.backend);
  route(&d, ID_GATE, ID_B);
  return d;
}

static void end(double_scene *d) {
  free_credential(&d->gate);
  hbone_end(&d->s);
}

static void carries_connections_through_both_tunnels(void **state) {
  double_scene d = begin(NULL);
  int clients[3], servers[3];
  for (int i = 0; i < 3; i++) {
    clients[i] = dial(d.s.port);
    servers[i] = answer(d.s.listener);
    put(clients[i], "one");
    expect(servers[i], "one");
    put(servers[i], "two");
    expect(clients[i], "two");
  }
  assert_int_equal(counter(&d.s.r, "hbone_dialed_total"), 2); /* one to the gateway, one within */
  for (int i = 0; i < 3; i++) {
    shutdown(clients[i], SHUT_WR);
    expect_end(servers[i]);
    put(servers[i], "still");
    expect(clients[i], "still");
    close(servers[i]);
    expect_end(clients[i]);
    close(clients[i]);
  }
  await_counter(&d.s.r, "downstream_cx_active", 1); /* the gateway's, of the inner tunnel */
  end(&d);
}

static void carries_bulk(void **state) {
  enum { BULK = 4 << 20, PART = 65536 };
  static char block[PART], got[PART];
  double_scene d = begin(NULL);
  int client = dial(d.s.port), server = answer(d.s.listener);
  for (size_t i = 0; i < PART; i++)
    block[i] = (char)(i * 31);
  for (size_t at = 0; at < BULK; at += PART) {
    put_n(client, block, PART);
    get_n(server, got, PART);
    assert_memory_equal(got, block, PART);
    put_n(server, block, PART);
    get_n(client, got, PART);
    assert_memory_equal(got, block, PART);
  }
  close(client);
  close(server);
  end(&d);
}

static void expect_failure(double_scene *d, const char *why) {
  int client = dial(d->s.port);
  expect_reset(client);
  close(client);
  for (;;) {
    na_access_record record = get_record(&d->s.r);
    if (record.inbound || record.workload != 1)
      continue;
    assert_string_equal(record.upstream_failure, why);
    break;
  }
  expect_silence(d->s.listener, 20);
}

static void says_who_is_wrong(void **state) {
  const na_config config = {.access_log = 1};
  double_scene d = begin(&config);
  route(&d, ID_GATE, ID_A);
  expect_failure(&d, "HBONE: SAN " ID_B " not in {" ID_A "}");
  route(&d, ID_A, ID_B);
  expect_failure(&d, "HBONE: gateway: SAN " ID_GATE " not in {" ID_A "}");
  route(&d, ID_GATE, ID_B);
  name(&d.s.r, 3, "other.shop", d.s.tunnel);
  expect_failure(&d, "HBONE: gateway: the peer answered 400: it does not take the request");
  end(&d);
}

static void ends_with_the_gateway(void **state) {
  double_scene d = begin(NULL);
  int client = dial(d.s.port), server = answer(d.s.listener);
  put(client, "a");
  expect(server, "a");
  assert_int_equal(na_workload_remove(d.s.r.engine, 3, 0), 0);
  expect_reset(client);
  expect_reset(server);
  close(client);
  close(server);
  await_counter(&d.s.r, "hbone_dialed_active", 0);
  end(&d);
}

static void ends_with_the_workload(void **state) {
  double_scene d = begin(NULL);
  int client = dial(d.s.port), server = answer(d.s.listener);
  assert_int_equal(na_workload_remove(d.s.r.engine, 1, 0), 0);
  for (int i = 0; i < 3000 && !na_workload_gone(d.s.r.engine, 1); i++)
    sleep_ms(1);
  assert_int_equal(na_workload_gone(d.s.r.engine, 1), 1);
  expect_reset(server);
  close(client);
  close(server);
  end(&d);
}

static void stops_with_streams_open(void **state) {
  double_scene d = begin(NULL);
  int client = dial(d.s.port), server = answer(d.s.listener);
  assert_int_equal(na_engine_stop(d.s.r.engine, 0), 0);
  close(client);
  close(server);
  end(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(carries_connections_through_both_tunnels),
      cmocka_unit_test(carries_bulk),
      cmocka_unit_test(says_who_is_wrong),
      cmocka_unit_test(ends_with_the_gateway),
      cmocka_unit_test(ends_with_the_workload),
      cmocka_unit_test(stops_with_streams_open),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
