/* SPDX-License-Identifier: Apache-2.0
 *
 * Traffic through tunnels between two workloads of a running engine.
 */
#include <pthread.h>

#include "conversation.h"
#include "hbone_rig.h"

static void carries_tcp_both_ways_with_half_close(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  talk_until_the_client_ends(client, server);
  await_counter(&s.r, "downstream_cx_active", 0);
  await_counter(&s.r, "upstream_cx_active", 0);
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 1);
  assert_int_equal(counter(&s.r, "hbone_accepted_total"), 1);
  close(client);
  hbone_end(&s);
}

static void carries_the_servers_half_close(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  talk_until_the_server_ends(client, server);
  await_counter(&s.r, "downstream_cx_active", 0);
  hbone_end(&s);
}

static void passes_resets_on(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  struct linger hard = {.l_onoff = 1};
  for (int i = 0; i < 2; i++) {
    int client = dial(s.port), server = answer(s.listener);
    int breaks = i ? client : server, sees = i ? server : client;
    put(client, "a");
    expect(server, "a");
    setsockopt(breaks, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(breaks);
    expect_reset(sees);
    close(sees);
  }
  await_counter(&s.r, "downstream_cx_active", 0);
  assert_int_equal(counter(&s.r, "hbone_dialed_active"), 1); /* the tunnel is as good as ever */
  hbone_end(&s);
}

/* ---- bulk ---- */

enum { BULK = 16 * 1024 * 1024 };

static void *send_and_end(void *fd) {
  send_bulk(*(int *)fd, 1, BULK);
  shutdown(*(int *)fd, SHUT_WR);
  return NULL;
}

static void *echo_bulk(void *fd) {
  if (!check_bulk(*(int *)fd, 1, BULK, 0))
    fail_msg("other bytes than were sent");
  expect_end(*(int *)fd);
  send_bulk(*(int *)fd, 2, BULK);
  shutdown(*(int *)fd, SHUT_WR);
  return NULL;
}

static void carries_bulk(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  pthread_t threads[2];
  pthread_create(&threads[0], NULL, send_and_end, &client);
  pthread_create(&threads[1], NULL, echo_bulk, &server);
  assert_true(check_bulk(client, 2, BULK, 0));
  expect_end(client);
  pthread_join(threads[0], NULL);
  pthread_join(threads[1], NULL);
  close(client);
  close(server);
  hbone_end(&s);
}

static void holds_back_a_fast_sender(void **state) {
  const na_config config = {.hbone_stream_window = 131072};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int small = 65536;
  setsockopt(s.listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  int stuck = dial(s.port), stuck_server = answer(s.listener);
  size_t sent = send_until_blocked(stuck);
  assert_in_range(sent, 131072, 12 * 1024 * 1024); /* sockets take most of it */
  /* Others in the same tunnel go on. */
  int client = dial(s.port), server = answer(s.listener);
  put(client, "one");
  expect(server, "one");
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 1);
  /* All of it arrives in the end. */
  receive_all(stuck_server, sent);
  close(stuck);
  expect_end(stuck_server);
  close(stuck_server);
  close(client);
  close(server);
  hbone_end(&s);
}

/* ---- HTTP ---- */

static void carries_http_over_pooled_streams(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_HTTP, NA_PROTOCOL_HTTP);
  int client = dial(s.port), server = -1;
  for (int i = 0; i < 3; i++) {
    put(client, GET_ROOT);
    if (server < 0)
      server = answer(s.listener);
    expect_head(server, "GET / HTTP/1.1");
    put(server, OK_HELLO);
    expect_head(client, "HTTP/1.1 200 OK");
    expect(client, "hello");
  }
  expect_silence(s.listener, 20); /* one connection did for all */
  assert_int_equal(counter(&s.r, "hbone_streams_total"), 2);
  close(client);
  client = dial(s.port); /* and does for another client */
  exchange(client, server);
  assert_int_equal(counter(&s.r, "hbone_streams_total"), 2);
  close(client);
  close(server);
  hbone_end(&s);
}

/* The row of a kind and side. */
static const na_stat_row *find_row(const na_stat_row *rows, int n, uint32_t kind, int inbound) {
  for (int i = 0; i < n; i++)
    if (rows[i].kind == kind && rows[i].inbound == inbound)
      return &rows[i];
  fail_msg("no row of kind %u, inbound %d", kind, inbound);
  return NULL;
}

static void reports_who_the_peers_are(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_HTTP, NA_PROTOCOL_DETECT);
  int client = dial(s.port);
  put(client, GET_ROOT);
  int server = answer(s.listener), n;
  expect_head(server, "GET / HTTP/1.1");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  na_access_record records[2] = {get_record(&s.r), get_record(&s.r)};
  const na_stat_row *rows = get_stats(&s.r, &n);
  for (int inbound = 0; inbound < 2; inbound++) {
    const na_stat_row *row = find_row(rows, n, NA_STAT_HTTP, inbound);
    const na_access_record *record = &records[records[0].inbound != inbound];
    assert_int_equal(record->inbound, inbound);
    assert_int_equal(row->mutual_tls, 1);
    assert_string_equal(na_engine_principal(s.r.engine, row->principal), inbound ? ID_A : ID_B);
    assert_int_equal(record->mutual_tls, 1);
    assert_int_equal(record->principal, row->principal);
    assert_string_equal(record->peer_baggage, inbound ? BAG_A : "");
    assert_int_equal(strlen(record->traceparent), inbound ? 55 : 0);
    assert_int_equal(strncmp(record->forwarded_for, "127.0.0.1:", 10) == 0, inbound);
  }
  assert_string_equal(na_engine_principal(s.r.engine, 0), "");
  assert_string_equal(na_engine_principal(s.r.engine, 77), "");
  close(client);
  close(server);
  hbone_end(&s);
}

static void lets_servers_speak_first(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_DETECT);
  int client = dial(s.port), server = answer(s.listener);
  put(server, "220 ready");
  expect(client, "220 ready");
  put(client, "EHLO");
  expect(server, "EHLO");
  close(client);
  close(server);
  hbone_end(&s);
}

/* ---- pooling ---- */

static void opens_another_tunnel_when_one_is_full(void **state) {
  enum { N = 250 };
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int clients[N], servers[N];
  for (int i = 0; i < N; i++) {
    clients[i] = dial(s.port);
    servers[i] = answer(s.listener);
  }
  for (int i = 0; i < N; i++)
    put(clients[i], "x");
  for (int i = 0; i < N; i++)
    expect(servers[i], "x");
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 2);
  for (int i = 0; i < N; i++) {
    close(clients[i]);
    close(servers[i]);
  }
  hbone_end(&s);
}

static void keeps_to_the_peers_limit_of_streams(void **state) {
  const na_config config = {.hbone_max_streams = 3};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int clients[6], servers[6];
  for (int i = 0; i < 6; i++) {
    clients[i] = dial(s.port);
    servers[i] = answer(s.listener);
  }
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 2);
  for (int i = 0; i < 6; i++) {
    close(clients[i]);
    expect_end(servers[i]);
    close(servers[i]);
  }
  hbone_end(&s);
}

static void closes_idle_tunnels(void **state) {
  const na_config config = {.hbone_idle_timeout_ms = 100};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  sleep_ms(400); /* a stream that is only silent keeps it */
  assert_int_equal(counter(&s.r, "hbone_dialed_active"), 1);
  close(client);
  expect_end(server);
  close(server);
  await_counter(&s.r, "hbone_dialed_active", 0);
  await_counter(&s.r, "hbone_accepted_active", 0);
  client = dial(s.port); /* with a session to resume */
  server = answer(s.listener);
  assert_int_equal(counter(&s.r, "hbone_resumed_total"), 1);
  put(client, "x");
  expect(server, "x");
  close(client);
  close(server);
  hbone_end(&s);
}

/* ---- identities ---- */

static void fails_closed_without_identities(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  assert_int_equal(na_identity_remove(s.r.engine, ID_A), 0);
  int client = dial(s.port);
  expect_reset(client);
  close(client);
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags & NA_FLAG_UF, NA_FLAG_UF);
  assert_string_equal(record.upstream_failure, "HBONE: no own certificate of " ID_A);
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 0);
  set_identity(&s.r, ID_A, &s.a, &s.ca);
  assert_int_equal(na_identity_remove(s.r.engine, ID_B), 0);
  client = dial(s.port);
  expect_reset(client);
  close(client);
  expect_silence(s.listener, 20);
  set_identity(&s.r, ID_B, &s.b, &s.ca);
  client = dial(s.port);
  close(answer(s.listener));
  close(client);
  hbone_end(&s);
}

static void goes_on_over_a_renewal(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  credential a = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_A}}), b = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_B}});
  set_identity(&s.r, ID_A, &a, &s.ca);
  set_identity(&s.r, ID_B, &b, &s.ca);
  int second = dial(s.port), second_server = answer(s.listener);
  assert_int_equal(counter(&s.r, "hbone_dialed_total"), 2);
  put(client, "old");
  expect(server, "old");
  put(second, "new");
  expect(second_server, "new");
  close(client);
  expect_end(server);
  close(server);
  await_counter(&s.r, "hbone_dialed_active", 1); /* the old one has nothing left to do */
  await_counter(&s.r, "hbone_accepted_active", 1);
  close(second);
  close(second_server);
  free_credential(&a);
  free_credential(&b);
  hbone_end(&s);
}

static void says_whom_it_met_instead(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  na_builder *b = rig_change(&s.r);
  hbone_endpoint(b, &s, "spiffe://cluster.local/ns/x/sa/c spiffe://cluster.local/ns/x/sa/d");
  rig_commit(&s.r);
  int client = dial(s.port);
  expect_reset(client);
  close(client);
  for (;;) {
    na_access_record record = get_record(&s.r);
    if (record.inbound)
      continue;
    assert_string_equal(record.upstream_failure,
                        "HBONE: SAN " ID_B
                        " not in {spiffe://cluster.local/ns/x/sa/c spiffe://cluster.local/ns/x/sa/d}");
    assert_int_equal(record.principal, 0);
    break;
  }
  expect_silence(s.listener, 20);
  hbone_end(&s);
}

/* The reason that a side gives when b has another certificate; the client's, or (inbound) the server's. */
static void expect_failure(const leaf_spec *spec, bool foreign, int inbound, const char *why) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  credential ca = new_ca("other"), leaf = new_leaf(foreign ? &ca : &s.ca, spec);
  set_identity(&s.r, inbound ? ID_A : ID_B, &leaf, &s.ca);
  int client = dial(s.port);
  expect_reset(client);
  close(client);
  na_access_record record;
  do
    record = get_record(&s.r);
  while (record.inbound != inbound);
  assert_has(record.upstream_failure, why);
  expect_silence(s.listener, 20);
  free_credential(&leaf);
  free_credential(&ca);
  hbone_end(&s);
}

static void checks_servers(void **state) {
  expect_failure(&(leaf_spec){.uris = {ID_B}}, true, 0, "HBONE: unknown CA (" ID_B ")");
  expect_failure(&(leaf_spec){.uris = {"spiffe://other/ns/x/sa/b"}}, false, 0, "SAN spiffe://other/ns/x/sa/b not in");
  expect_failure(&(leaf_spec){.uris = {ID_B}, .from = 600}, false, 0, "certificate not valid yet");
}

static void checks_clients(void **state) {
  expect_failure(&(leaf_spec){.uris = {ID_A}}, true, 1, "unknown CA");
  expect_failure(&(leaf_spec){.uris = {"spiffe://other/ns/x/sa/a"}}, false, 1, "is of another trust domain");
  expect_failure(&(leaf_spec){.uris = {ID_A}, .from = 600}, false, 1, "certificate not valid yet");
}

static void stops_with_the_certificate(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_begin(&config);
  free_credential(&s.b);
  s.b = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_B}, .to = 2});
  hbone_configure(&s, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  sleep_ms(2100);
  int late = dial(s.port);
  expect_reset(late);
  close(late);
  expect_silence(s.listener, 20);
  assert_true(counter(&s.r, "hbone_no_identity_total") > 0);
  put(client, "open"); /* what is open stays */
  expect(server, "open");
  close(client);
  close(server);
  hbone_end(&s);
}

/* Two workers share identities, names of peers and listeners; certificates change all the while. */
static void serves_from_several_workers(void **state) {
  const na_config config = {.workers = 2};
  hbone_scene s = hbone_begin(&config);
  uint16_t port;
  int listener = listen_any(&port);
  for (uint32_t worker = 0; worker < 2; worker++)
    assert_int_equal(na_workload_listen(s.r.engine, 1, NA_LISTENER_PLAIN, worker, dup(listener)), 0);
  close(listener);
  listener = listen_any(&s.tunnel);
  for (uint32_t worker = 0; worker < 2; worker++)
    assert_int_equal(na_workload_listen(s.r.engine, 2, NA_LISTENER_HBONE, worker, dup(listener)), 0);
  close(listener);
  s.port = port;
  hbone_configure(&s, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  for (int round = 0; round < 10; round++) {
    int clients[10], servers[10];
    for (int i = 0; i < 10; i++)
      clients[i] = dial(s.port);
    set_identity(&s.r, ID_A, &s.a, &s.ca);
    set_identity(&s.r, ID_B, &s.b, &s.ca);
    for (int i = 0; i < 10; i++)
      put(clients[i], "x");
    for (int i = 0; i < 10; i++) { /* in any order */
      servers[i] = answer(s.listener);
      expect(servers[i], "x");
    }
    for (int i = 0; i < 10; i++)
      close(clients[i]);
    for (int i = 0; i < 10; i++) {
      expect_end(servers[i]);
      close(servers[i]);
    }
  }
  int n;
  const na_stat_row *rows = get_stats(&s.r, &n);
  for (int i = 0; i < n; i++)
    assert_string_equal(na_engine_principal(s.r.engine, rows[i].principal), rows[i].inbound ? ID_A : ID_B);
  assert_true(n > 0);
  hbone_end(&s);
}

/* ---- refusals ---- */

static void tells_why_there_is_no_connection(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  close(s.listener);
  int client = dial(s.port);
  expect_reset(client);
  close(client);
  for (int seen = 0; seen != 3;) { /* both sides */
    na_access_record record = get_record(&s.r);
    assert_int_equal(record.flags & NA_FLAG_UF, NA_FLAG_UF);
    assert_string_equal(record.upstream_failure, record.inbound
                                                     ? "Connection refused"
                                                     : "HBONE: the peer answered 503: it cannot reach the application");
    seen |= 1 << record.inbound;
  }
  assert_int_equal(counter(&s.r, "hbone_dialed_active"), 1);
  s.listener = listen_any(&s.backend);
  hbone_end(&s);
}

static void lets_nobody_in_before_its_configuration(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_inbound_remove(b, 2), 0);
  rig_commit(&s.r);
  int client = dial(s.port);
  expect_reset(client);
  expect_silence(s.listener, 20);
  assert_true(counter(&s.r, "downstream_cx_not_in_force_total") > 0);
  close(client);
  hbone_end(&s);
}

/* ---- the end ---- */

static void lets_streams_end_when_a_workload_leaves(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  assert_int_equal(na_workload_remove(s.r.engine, 2, 4000), 0);
  put(client, "still");
  expect(server, "still");
  assert_int_equal(na_workload_gone(s.r.engine, 2), 0);
  shutdown(client, SHUT_WR);
  expect_end(server);
  put(server, "last words");
  close(server);
  expect(client, "last words");
  expect_end(client);
  for (int i = 0; i < 2000 && !na_workload_gone(s.r.engine, 2); i++)
    sleep_ms(1);
  assert_int_equal(na_workload_gone(s.r.engine, 2), 1);
  close(client);
  hbone_end(&s);
}

static void cuts_streams_at_the_end_of_a_drain(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  assert_int_equal(na_workload_remove(s.r.engine, 2, 50), 0);
  expect_reset(client);
  expect_reset(server);
  for (int i = 0; i < 2000 && !na_workload_gone(s.r.engine, 2); i++)
    sleep_ms(1);
  assert_int_equal(na_workload_gone(s.r.engine, 2), 1);
  close(client);
  close(server);
  hbone_end(&s);
}

static void stops_with_streams_open(void **state) {
  hbone_scene s = hbone_scene_of(NULL, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int client = dial(s.port), server = answer(s.listener);
  uint64_t before = now_ms();
  assert_int_equal(na_engine_stop(s.r.engine, 0), 0);
  assert_in_range(now_ms() - before, 0, 1500);
  expect_reset(client);
  close(client);
  close(server);
  na_engine_free(s.r.engine);
  close(s.listener);
  free_credential(&s.ca);
  free_credential(&s.a);
  free_credential(&s.b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(carries_tcp_both_ways_with_half_close),
      cmocka_unit_test(carries_the_servers_half_close),
      cmocka_unit_test(passes_resets_on),
      cmocka_unit_test(carries_bulk),
      cmocka_unit_test(holds_back_a_fast_sender),
      cmocka_unit_test(carries_http_over_pooled_streams),
      cmocka_unit_test(reports_who_the_peers_are),
      cmocka_unit_test(lets_servers_speak_first),
      cmocka_unit_test(opens_another_tunnel_when_one_is_full),
      cmocka_unit_test(keeps_to_the_peers_limit_of_streams),
      cmocka_unit_test(closes_idle_tunnels),
      cmocka_unit_test(fails_closed_without_identities),
      cmocka_unit_test(goes_on_over_a_renewal),
      cmocka_unit_test(says_whom_it_met_instead),
      cmocka_unit_test(checks_servers),
      cmocka_unit_test(checks_clients),
      cmocka_unit_test(stops_with_the_certificate),
      cmocka_unit_test(serves_from_several_workers),
      cmocka_unit_test(tells_why_there_is_no_connection),
      cmocka_unit_test(lets_nobody_in_before_its_configuration),
      cmocka_unit_test(lets_streams_end_when_a_workload_leaves),
      cmocka_unit_test(cuts_streams_at_the_end_of_a_drain),
      cmocka_unit_test(stops_with_streams_open),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
