/* SPDX-License-Identifier: Apache-2.0
 *
 * Captured connections in a network namespace of their own, redirected by nft: original destinations, sockets opened in
 * the workload's namespace, the client's address kept inbound. The engine's threads live in the namespace that the test
 * started in; the test's own thread moves into the workload's. Needs root and nft.
 */
#include "capture_rig.h"

static const char rules[] =
    CAPTURE_SERVICE "add rule inet capture out tcp sport 40000-60999 tcp dport 80 redirect to :15001\n";

static rig engine;
static int inbound_listener, outbound_listener;
static bool ready;

static void assert_peer(const struct sockaddr_storage *peer, bool v6, int host) {
  socklen_t size;
  struct sockaddr_storage expected = address_of(v6, host, 0, &size);
  uint16_t port;
  if (v6) {
    const struct sockaddr_in6 *a = (const struct sockaddr_in6 *)peer;
    assert_memory_equal(&a->sin6_addr, &((struct sockaddr_in6 *)&expected)->sin6_addr, 16);
    port = ntohs(a->sin6_port);
  } else {
    const struct sockaddr_in *a = (const struct sockaddr_in *)peer;
    assert_memory_equal(&a->sin_addr, &((struct sockaddr_in *)&expected)->sin_addr, 4);
    port = ntohs(a->sin_port);
  }
  assert_in_range(port, 10000, host == POD ? 39999 : 32767); /* never one that the client itself may use */
}

static int set_up(void **state) {
  if (!capture_possible())
    return 0;
  engine = rig_start(&(na_config){.access_log = 1});
  if (!enter_namespace(rules))
    return 0;
  write_file("/proc/sys/net/ipv4/ip_local_port_range", "33000 39999");
  add_pod(&engine, 7, POD, "v");
  inbound_listener = listen_all(15006);
  outbound_listener = listen_all(15001);
  assert_int_equal(na_workload_listen(engine.engine, 7, NA_LISTENER_INBOUND, 0, inbound_listener), 0);
  assert_int_equal(na_workload_listen(engine.engine, 7, NA_LISTENER_OUTBOUND, 0, outbound_listener), 0);
  ready = true;
  return 0;
}

static int tear_down(void **state) {
  if (engine.engine)
    rig_stop(&engine);
  return 0;
}

static void put_in_force(uint16_t protocol) {
  na_inbound_port port = {.port = 8080, .protocol = protocol, .tag = 77};
  assert_int_equal(na_builder_inbound(rig_change(&engine), 7, &port, 1, NA_PROTOCOL_TCP), 0);
  rig_commit(&engine);
}

/* Nobody gets in: HTTP is told, everything else cut off. */
static void expect_closed_port(void) {
  int client = dial_from(false, CLIENT, POD, 8080);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
  assert_int_equal(get_record(&engine).flags, NA_FLAG_NC);
  close(client);
  client = dial_from(false, CLIENT, POD, 8080);
  put(client, "not HTTP");
  expect_reset(client);
  close(client);
}

/* First, before anything is in force. */
static void inbound_fails_closed_until_in_force(void **state) {
  need_capture(ready);
  int server = listen_at(false, POD, 8080);
  expect_closed_port();
  int client = dial_from(false, CLIENT, POD, 8080); /* silent */
  expect_reset(client);
  close(client);
  expect_silence(server, 20);
  assert_int_equal(counter(&engine, "downstream_cx_not_in_force_total"), 3);
  close(server);
  na_access_record rest[4];
  na_engine_drain_access(engine.engine, rest, 4);
}

/* A port whose guards cannot be put in force is closed; the others are not. */
static void inbound_refuses_guarded_ports(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_REFUSE);
  int server = listen_at(false, POD, 8080);
  expect_closed_port();
  expect_silence(server, 20);
  close(server);
  na_access_record rest[4];
  na_engine_drain_access(engine.engine, rest, 4);
}

static void inbound_http_keeps_the_clients_address(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_HTTP);
  for (int v6 = 0; v6 < 2; v6++) {
    struct sockaddr_storage peer;
    uint8_t expected[16];
    int n, server = listen_at(v6, POD, 8080);
    int client = dial_from(v6, CLIENT, POD, 8080);
    put(client, GET_ROOT);
    int upstream = answer_from(server, &peer);
    assert_peer(&peer, v6, CLIENT);
    assert_has(get_head(upstream), "x-request-id");
    put(upstream, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    expect(client, "hello");
    exchange(client, upstream);
    /* another client's requests go by a connection of its own */
    int other = dial_from(v6, OTHER, POD, 8080);
    put(other, GET_ROOT);
    int upstream2 = answer_from(server, &peer);
    assert_peer(&peer, v6, OTHER);
    sleep_ms(150); /* at once it could still wait for the answer */
    close(other);
    await_counter(&engine, "downstream_cx_active", 1);

    na_access_record record = get_record(&engine);
    assert_int_equal(record.inbound, 1);
    assert_int_equal(record.cluster_tag, 77);
    sixteen_bytes(v6, POD, expected);
    assert_memory_equal(record.downstream_local, expected, 16);
    assert_memory_equal(record.upstream_remote, expected, 16);
    assert_int_equal(record.downstream_local_port, 8080);
    sixteen_bytes(v6, CLIENT, expected);
    assert_memory_equal(record.downstream_remote, expected, 16);
    assert_memory_equal(record.upstream_local, expected, 16);
    na_stat_row *rows = get_stats(&engine, &n);
    bool found = false;
    for (int i = 0; i < n; i++)
      found = found || (rows[i].inbound && rows[i].cluster_tag == 77 && rows[i].count == 2 &&
                        memcmp(rows[i].peer, expected, 16) == 0);
    assert_true(found);
    close(client);
    close(upstream);
    close(upstream2);
    close(server);
    await_counter(&engine, "downstream_cx_active", 0);
    na_access_record rest[8];
    na_engine_drain_access(engine.engine, rest, 8);
  }
}

static void inbound_tcp_keeps_the_clients_address(void **state) {
  need_capture(ready);
  put_in_force(NA_PROTOCOL_TCP);
  for (int v6 = 0; v6 < 2; v6++) {
    struct sockaddr_storage peer;
    int server = listen_at(v6, POD, 8080);
    int client = dial_from(v6, CLIENT, POD, 8080);
    int upstream = answer_from(server, &peer);
    assert_peer(&peer, v6, CLIENT);
    put(upstream, "220 hi");
    expect(client, "220 hi");
    close(client);
    expect_end(upstream);
    close(upstream);
    /* the pod to itself: nothing to keep */
    client = dial_from(v6, POD, POD, 8080);
    upstream = answer_from(server, &peer);
    assert_peer(&peer, v6, POD);
    close(client);
    close(upstream);
    close(server);
    await_counter(&engine, "downstream_cx_active", 0);
  }
}

static void outbound_passes_through_to_the_original_destination(void **state) {
  need_capture(ready);
  for (int v6 = 0; v6 < 2; v6++) {
    struct sockaddr_storage peer;
    int server = listen_at(v6, OTHER, 80);
    int client = dial_from(v6, POD, OTHER, 80);
    int upstream = answer_from(server, &peer);
    put(client, "hello");
    expect(upstream, "hello");
    put(upstream, "back");
    expect(client, "back");
    close(client);
    close(upstream);
    close(server);
    client = dial_from(v6, POD, OTHER, 80); /* nobody there: the client sees a reset, not an end */
    expect_reset(client);
    close(client);
    await_counter(&engine, "downstream_cx_active", 0);
  }
}

/* Envoy's PassthroughCluster: routed, and still to where the client was going. */
static void outbound_routes_to_original_destination_clusters(void **state) {
  need_capture(ready);
  na_cluster_config config = {.tag = 5, .kind = NA_CLUSTER_ORIGINAL_DST};
  na_destination_config destination = {.tag = 6, .protocol = NA_PROTOCOL_HTTP, .table = "80"};
  na_builder *b = rig_change(&engine);
  assert_int_equal(na_builder_cluster(b, "PassthroughCluster", &config), 0);
  assert_int_equal(na_builder_table(b, "80", TAG_TABLE, 0), 0);
  assert_int_equal(na_builder_vhost(b, "80", new_vhost("allow_any", "*", "PassthroughCluster", NULL)), 0);
  assert_int_equal(na_builder_view(b, "v", 0), 0);
  assert_int_equal(na_builder_destination(b, "v", NULL, 80, &destination, NULL, NULL, 0), 0);
  rig_commit(&engine);
  for (int v6 = 0; v6 < 2; v6++) {
    struct sockaddr_storage peer;
    int server = listen_at(v6, OTHER, 80);
    int client = dial_from(v6, POD, OTHER, 80);
    put(client, GET_ROOT);
    int upstream = answer_from(server, &peer);
    assert_has(get_head(upstream), "x-request-id");
    put(upstream, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    close(client);
    close(upstream);
    close(server);
  }
}

/* A service's own cluster goes before that: a Host header that nobody knows does not lead past its tunnels. */
static void outbound_stays_with_the_service_for_unknown_hosts(void **state) {
  need_capture(ready);
  const char *cluster = "svc";
  uint32_t weight = 1;
  na_cluster_config original = {.tag = 5, .kind = NA_CLUSTER_ORIGINAL_DST}, service = {.tag = 7};
  na_destination_config destination = {.tag = 6, .protocol = NA_PROTOCOL_HTTP, .table = "80"};
  na_endpoint endpoint = {.port = 81, .healthy = 1, .weight = 1};
  na_builder *b = rig_change(&engine);
  v4_mapped(endpoint.address, "10.1.0.3");
  assert_int_equal(na_builder_cluster(b, "PassthroughCluster", &original), 0);
  assert_int_equal(na_builder_cluster(b, cluster, &service), 0);
  assert_int_equal(na_builder_endpoints(b, cluster, &endpoint, 1), 0);
  assert_int_equal(na_builder_table(b, "80", TAG_TABLE, 0), 0);
  assert_int_equal(na_builder_vhost(b, "80", new_vhost("allow_any", "*", "PassthroughCluster", NULL)), 0);
  assert_int_equal(na_builder_view(b, "v", 0), 0);
  assert_int_equal(na_builder_destination(b, "v", NULL, 80, &destination, &cluster, &weight, 1), 0);
  rig_commit(&engine);
  int direct = listen_at(false, OTHER, 80), server = listen_at(false, OTHER, 81);
  int client = dial_from(false, POD, OTHER, 80);
  int upstream = first_exchange(client, server);
  expect_silence(direct, 20);
  close(client);
  close(upstream);
  close(server);
  close(direct);
}

static void direct_connections_to_the_listeners_are_refused(void **state) {
  need_capture(ready);
  uint64_t before =
      counter(&engine, "downstream_cx_loop_total") + counter(&engine, "downstream_cx_no_destination_total");
  for (int v6 = 0; v6 < 2; v6++) {
    int client = dial_from(v6, CLIENT, POD, 15006);
    expect_reset(client);
    close(client);
    client = dial_from(v6, POD, POD, 15001);
    expect_reset(client);
    close(client);
  }
  assert_int_equal(counter(&engine, "downstream_cx_loop_total") +
                       counter(&engine, "downstream_cx_no_destination_total"),
                   before + 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(inbound_fails_closed_until_in_force),
      cmocka_unit_test(inbound_refuses_guarded_ports),
      cmocka_unit_test(inbound_http_keeps_the_clients_address),
      cmocka_unit_test(inbound_tcp_keeps_the_clients_address),
      cmocka_unit_test(outbound_passes_through_to_the_original_destination),
      cmocka_unit_test(outbound_routes_to_original_destination_clusters),
      cmocka_unit_test(outbound_stays_with_the_service_for_unknown_hosts),
      cmocka_unit_test(direct_connections_to_the_listeners_are_refused),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
