/* SPDX-License-Identifier: Apache-2.0
 *
 * What a running engine tells of its traffic: statistics and access records to the byte, usage, connections.
 */
#include "scene_rig.h"

static scene begin(enum na_protocol protocol) {
  return scene_of(&(na_config){.access_log = 1}, protocol);
}

static void counts_requests(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  uint8_t ip[16];
  int n, client = dial(s.port);
  v4_mapped(ip, "127.0.0.1");
  put(client,
      "POST /p?q HTTP/1.1\r\nHost: h\r\nUser-Agent: ua\r\nX-Forwarded-For: 1.2.3.4\r\ncontent-length: 3\r\n\r\nabc");
  int server = answer(s.listener);
  get_head(server);
  expect(server, "abc");
  sleep_ms(20);
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  for (int i = 0; i < 2; i++)
    exchange(client, server);
  await_counter(&s.r, "downstream_rq_active", 0);

  na_stat_row *rows = get_stats(&s.r, &n);
  assert_int_equal(n, 1);
  assert_int_equal(rows->kind, NA_STAT_HTTP);
  assert_int_equal(rows->workload, 1);
  assert_int_equal(rows->cluster_tag, TAG_CLUSTER);
  assert_int_equal(rows->endpoint_tag, TAG_ENDPOINT);
  assert_int_equal(rows->flags, 0);
  assert_int_equal(rows->status, 200);
  assert_int_equal(rows->inbound, 0);
  assert_int_equal(rows->protocol, 1);
  assert_memory_equal(rows->peer, ip, 16);
  assert_int_equal(rows->count, 3);
  assert_int_equal(rows->bytes_in, 3);
  assert_int_equal(rows->bytes_out, 15);
  assert_true(rows->duration_us >= 20000);
  assert_int_equal(rows->request_size[0], 2);
  assert_int_equal(rows->request_size[1], 1);
  assert_int_equal(rows->response_size[2], 3);
  get_stats(&s.r, &n);
  assert_int_equal(n, 0);

  na_access_record record = get_record(&s.r);
  assert_string_equal(record.method, "POST");
  assert_string_equal(record.path, "/p?q");
  assert_string_equal(record.authority, "h");
  assert_string_equal(record.user_agent, "ua");
  assert_string_equal(record.forwarded_for, "1.2.3.4");
  assert_int_equal(strlen(record.request_id), 36);
  assert_int_equal(record.request_id[14], '4');
  assert_string_equal(record.route, "r");
  assert_string_equal(record.cluster, "c");
  assert_string_equal(record.detail, "via_upstream");
  assert_int_equal(record.status, 200);
  assert_int_equal(record.flags, 0);
  assert_int_equal(record.http_minor, 1);
  assert_int_equal(record.bytes_in, 3);
  assert_int_equal(record.bytes_out, 5);
  assert_int_equal(record.route_tag, TAG_ROUTE);
  assert_int_equal(record.upstream_remote_port, s.backend);
  assert_int_equal(record.downstream_local_port, s.port);
  assert_int_equal(record.downstream_remote_port, port_of(client));
  assert_true(record.upstream_local_port != 0);
  assert_in_range(record.upstream_us, 20000, record.duration_us);
  assert_true(llabs((long long)(record.start_us / 1000000) - (long long)time(NULL)) <= 2);
  close(client);
  close(server);
  scene_end(&s);
}

static void counts_chunked_payload_without_framing(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  int n, client = dial(s.port);
  put(client, "POST / HTTP/1.1\r\nHost: h\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n");
  int server = answer(s.listener);
  get_head(server);
  expect(server, "4\r\nabcd\r\n0\r\n\r\n");
  put(server, "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n");
  expect_head(client, "HTTP/1.1 201 Created");
  expect(client, "6\r\nabcdef\r\n0\r\n\r\n");
  await_counter(&s.r, "downstream_rq_active", 0);
  na_stat_row *rows = get_stats(&s.r, &n);
  assert_int_equal(n, 1);
  assert_int_equal(rows->status, 201);
  assert_int_equal(rows->bytes_in, 4);
  assert_int_equal(rows->bytes_out, 6);
  close(client);
  close(server);
  scene_end(&s);
}

/* It was going to nobody yet: not to where the client meant to connect. */
static void names_no_upstream_when_there_is_none(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_endpoints(b, "c", NULL, 0), 0);
  rig_commit(&s.r);
  int client = dial(s.port);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 503 Service Unavailable");
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags, NA_FLAG_UH);
  assert_string_equal(record.detail, "no_healthy_upstream");
  assert_int_equal(record.cluster_tag, TAG_CLUSTER);
  assert_int_equal(record.upstream_remote_port, 0);
  close(client);
  scene_end(&s);
}

static void counts_refused_requests(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  int n, client = dial(s.port);
  put(client, "GET / HTTP/1.1\r\nHost : h\r\n\r\n");
  expect_head(client, "HTTP/1.1 400 Bad Request");
  await_counter(&s.r, "downstream_rq_active", 0);
  na_stat_row *rows = get_stats(&s.r, &n);
  assert_int_equal(n, 1);
  assert_int_equal(rows->status, 400);
  assert_int_equal(rows->flags, NA_FLAG_DPE);
  assert_int_equal(rows->cluster_tag, 0);
  na_access_record record = get_record(&s.r);
  assert_string_equal(record.detail, "http1.codec_error");
  assert_string_equal(record.method, "");
  close(client);
  scene_end(&s);
}

static const na_stat_row *find(const na_stat_row *rows, int n, uint32_t kind) {
  for (int i = 0; i < n; i++)
    if (rows[i].kind == kind)
      return &rows[i];
  return NULL;
}

static void counts_tcp(void **state) {
  scene s = begin(NA_PROTOCOL_TCP);
  int n, client = dial(s.port), server = answer(s.listener);
  put(client, "12345");
  expect(server, "12345");
  put(server, "123");
  expect(client, "123");
  na_stat_row *rows = get_stats(&s.r, &n); /* a live connection's bytes are in each report */
  assert_int_equal(n, 2);
  assert_int_equal(find(rows, n, NA_STAT_TCP_OPENED)->count, 1);
  assert_int_equal(find(rows, n, NA_STAT_TCP_BYTES)->bytes_in, 5);
  assert_int_equal(find(rows, n, NA_STAT_TCP_BYTES)->bytes_out, 3);
  get_stats(&s.r, &n);
  assert_int_equal(n, 0);
  put(client, "67");
  expect(server, "67");
  close(client);
  expect_end(server);
  close(server);
  await_counter(&s.r, "downstream_cx_active", 0);
  rows = get_stats(&s.r, &n);
  assert_int_equal(n, 2);
  assert_int_equal(find(rows, n, NA_STAT_TCP_BYTES)->bytes_in, 2);
  assert_int_equal(find(rows, n, NA_STAT_TCP_CLOSED)->count, 1);
  assert_int_equal(find(rows, n, NA_STAT_TCP_CLOSED)->cluster_tag, TAG_CLUSTER);
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.bytes_in, 7);
  assert_int_equal(record.bytes_out, 3);
  assert_int_equal(record.protocol, 0);
  assert_int_equal(record.upstream_remote_port, s.backend);
  assert_string_equal(record.cluster, "c");
  scene_end(&s);
}

static void counts_failed_tcp(void **state) {
  scene s = begin(NA_PROTOCOL_TCP);
  int n;
  na_endpoint endpoint = endpoint_at(closed_port());
  assert_int_equal(na_builder_endpoints(rig_change(&s.r), "c", &endpoint, 1), 0);
  rig_commit(&s.r);
  int client = dial(s.port);
  expect_reset(client);
  await_counter(&s.r, "downstream_cx_active", 0);
  na_stat_row *rows = get_stats(&s.r, &n);
  assert_int_equal(n, 2);
  assert_int_equal(find(rows, n, NA_STAT_TCP_OPENED)->count, 1);
  assert_int_equal(find(rows, n, NA_STAT_TCP_CLOSED)->flags, NA_FLAG_UF | NA_FLAG_URX);
  assert_string_equal(get_record(&s.r).upstream_failure, "Connection refused");
  close(client);
  scene_end(&s);
}

static void drops_records_beyond_the_ring(void **state) {
  na_config config = {.access_log = 1, .access_records = 16};
  rig r = rig_start(&config);
  uint16_t port = rig_listen(&r);
  na_builder *b = rig_change(&r);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", NULL, &route);
  assert_int_equal(na_route_respond(route, 200, NULL, 0), 0);
  assert_int_equal(na_builder_table(b, "t", TAG_TABLE, 0), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  add_destination(b, port, NA_PROTOCOL_HTTP, "t", NULL);
  rig_commit(&r);
  int client = dial(port);
  for (int i = 0; i < 20; i++) {
    put(client, GET_ROOT);
    expect_head(client, "HTTP/1.1 200 OK");
  }
  await_counter(&r, "access_records_dropped_total", 4);
  close(client);
  rig_stop(&r);
}

static void tells_what_was_used(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  uint32_t tags[16];
  bool seen[16] = {false};
  assert_int_equal(na_engine_usage(s.r.engine, tags, 16), 0);
  int client = dial(s.port);
  put(client, GET_ROOT);
  int server = answer(s.listener);
  int n = na_engine_usage(s.r.engine, tags, 16);
  assert_int_equal(n, 3);
  for (int i = 0; i < n; i++)
    seen[tags[i]] = true;
  assert_true(seen[TAG_DESTINATION] && seen[TAG_VHOST] && seen[TAG_CLUSTER]);
  assert_int_equal(na_engine_usage(s.r.engine, tags, 16), 0);
  close(client);
  close(server);
  scene_end(&s);
}

static void lists_connections(void **state) {
  scene s = begin(NA_PROTOCOL_HTTP);
  na_connection_info infos[8];
  int active = dial(s.port), detecting = dial(s.port);
  put(active, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  await_counter(&s.r, "downstream_cx_active", 2);
  assert_int_equal(na_engine_connections(s.r.engine, infos, 1), 1);
  assert_int_equal(na_engine_connections(s.r.engine, infos, 8), 2);
  int at = infos[0].state == 3 ? 0 : 1;
  assert_int_equal(infos[at].state, 3);
  assert_int_equal(infos[!at].state, 0);
  assert_int_equal(infos[at].workload, 1);
  assert_int_equal(infos[at].protocol, 1);
  assert_int_equal(infos[at].remote_port, port_of(active));
  assert_int_equal(infos[at].local_port, s.port);
  assert_string_equal(infos[at].cluster, "c");
  assert_true(infos[0].id != infos[1].id);
  put(server, OK_HELLO);
  expect_head(active, "HTTP/1.1 200 OK");
  expect(active, "hello");
  await_counter(&s.r, "downstream_rq_active", 0);
  assert_int_equal(na_engine_connections(s.r.engine, infos, 8), 2);
  assert_int_equal(infos[at].state, 2);
  assert_int_equal(infos[at].bytes_out, 5);
  close(active);
  close(detecting);
  close(server);
  scene_end(&s);
}

static void names_its_counters(void **state) {
  const na_counter_info *info;
  size_t count = 0;
  for (; (info = na_engine_counter_info(count)); count++) {
    size_t n = strlen(info->name);
    bool total = n > 6 && strcmp(info->name + n - 6, "_total") == 0;
    assert_int_equal(total, !info->gauge);
    assert_true(strlen(info->help) > 10);
  }
  assert_true(count > 30);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(counts_requests),
      cmocka_unit_test(counts_chunked_payload_without_framing),
      cmocka_unit_test(names_no_upstream_when_there_is_none),
      cmocka_unit_test(counts_refused_requests),
      cmocka_unit_test(counts_tcp),
      cmocka_unit_test(counts_failed_tcp),
      cmocka_unit_test(drops_records_beyond_the_ring),
      cmocka_unit_test(tells_what_was_used),
      cmocka_unit_test(lists_connections),
      cmocka_unit_test(names_its_counters),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
