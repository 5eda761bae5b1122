/* SPDX-License-Identifier: Apache-2.0
 *
 * Tunnels with peers that do not keep to the rules, or not to what they should ask for. The peer has a valid
 * certificate unless the test is about that; whatever it does, the engine serves others afterwards.
 */
#include <signal.h>

#include "h2_peer.h"

static hbone_scene begin(void) {
  const na_config config = {.access_log = 1};
  return hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
}

/* The engine still does its work. */
static void end(hbone_scene *s) {
  int client = dial(s->port), server = answer(s->listener);
  put(client, "still there");
  expect(server, "still there");
  close(client);
  close(server);
  hbone_end(s);
}

/* ---- who comes in ---- */

static void expect_refused(const hbone_scene *s, const h2_tls *tls, const char *why) {
  h2_peer peer;
  uint64_t failed = counter(&s->r, "hbone_handshake_fail_total");
  if (h2_handshake(&peer, dial(s->tunnel), tls)) { /* in TLS 1.3 the client hears of its certificate later */
    (void)h2_write(&peer, H2_PREFACE, strlen(H2_PREFACE));
    assert_false(h2_next(&peer));
  }
  await_counter(&s->r, "hbone_handshake_fail_total", failed + 1);
  na_access_record record = get_record((rig *)&s->r);
  assert_has(record.upstream_failure, why);
  assert_string_equal(record.detail, "downstream_transport_failure");
  h2_close(&peer);
}

static void refuses_peers_without_the_right_certificate(void **state) {
  hbone_scene s = begin();
  credential other = new_ca("other");
  const struct {
    leaf_spec spec;
    const char *why;
  } cases[] = {
      {{.uris = {"spiffe://other/ns/x/sa/a"}}, "SAN spiffe://other/ns/x/sa/a is of another trust domain"},
      {{.uris = {"spiffe://cluster.local/x/a"}}, "SAN spiffe://cluster.local/x/a is not of the form"},
      {{.uris = {"spiffe://cluster.local"}}, "is not of the form"},
      {{.uris = {ID_A, "spiffe://cluster.local/ns/x/sa/z"}}, "more than one URI SAN"},
      {{.uris = {ID_A "\0.evil"}, .uri_bytes = sizeof ID_A + 5}, "NUL"},
      {{.uris = {NULL}}, "no URI SAN"},
      {{.uris = {ID_A}, .from = -100, .to = -10}, "certificate expired"},
      {{.uris = {ID_A}, .is_ca = true}, "a CA's"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    credential leaf = new_leaf(&s.ca, &cases[i].spec);
    expect_refused(&s, &(h2_tls){.own = &leaf, .ca = &s.ca}, cases[i].why);
    free_credential(&leaf);
  }
  credential foreign = new_leaf(&other, &(leaf_spec){.uris = {ID_A}});
  expect_refused(&s, &(h2_tls){.own = &foreign, .ca = &s.ca}, "unknown CA");
  expect_refused(&s, &(h2_tls){.ca = &s.ca}, "peer did not return a certificate");
  free_credential(&foreign);
  free_credential(&other);
  end(&s);
}

static void refuses_other_protocols(void **state) {
  hbone_scene s = begin();
  expect_refused(&s, &(h2_tls){.own = &s.a, .ca = &s.ca, .version = TLS1_2_VERSION}, "unsupported protocol");
  expect_refused(&s, &(h2_tls){.own = &s.a, .ca = &s.ca, .protocol = "http/1.1"}, "no application protocol");
  int plain = dial(s.tunnel);
  put(plain, GET_ROOT);
  char buffer[64];
  while (recv(plain, buffer, sizeof buffer, 0) > 0)
    ;
  close(plain);
  await_counter(&s.r, "hbone_handshake_fail_total", 3);
  (void)get_record(&s.r);
  end(&s);
}

static void limits_silent_handshakes(void **state) {
  const na_config config = {.hbone_handshake_timeout_ms = 200, .hbone_max_handshakes = 2};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int silent[2] = {dial(s.tunnel), dial(s.tunnel)};
  await_counter(&s.r, "hbone_handshakes_active", 2);
  int third = dial(s.tunnel);
  expect_reset(third);
  close(third);
  assert_int_equal(counter(&s.r, "hbone_handshake_overflow_total"), 1);
  expect_end(silent[0]);
  expect_end(silent[1]);
  assert_int_equal(counter(&s.r, "hbone_handshake_timeout_total"), 2);
  close(silent[0]);
  close(silent[1]);
  end(&s);
}

/* ---- what they ask for ---- */

static void answers_bad_requests(void **state) {
  hbone_scene s = begin();
  char other[48], own[48];
  snprintf(other, sizeof other, "127.0.0.2:%u", s.backend);
  snprintf(own, sizeof own, "service.x:%u", s.backend);
  const char *authorities[] = {other,       own,           "127.0.0.1:15001", "127.0.0.1:15006", "127.0.0.1:15008",
                               "127.0.0.1", "127.0.0.1:0", "[::1]:80",        "nonsense"};
  for (size_t i = 0; i < COUNT(authorities); i++) {
    h2_peer peer;
    h2_dial(&peer, &s);
    assert_true(h2_connect_to(&peer, 1, authorities[i]));
    assert_int_equal(h2_status(&peer, 1), 400);
    assert_true(h2_connect(&peer, 3, &s)); /* the tunnel is none the worse for it */
    assert_int_equal(h2_status(&peer, 3), 200);
    close(answer(s.listener));
    h2_close(&peer);
  }
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_headers(
      &peer, 1, H2_END_STREAM,
      (const char *const[]){":method", "GET", ":scheme", "https", ":authority", "127.0.0.1:80", ":path", "/", NULL}));
  assert_int_equal(h2_status(&peer, 1), 400);
  h2_close(&peer);
  assert_int_equal(counter(&s.r, "hbone_bad_request_total"), COUNT(authorities) + 1);
  end(&s);
}

/* Put guards in force at workload 2: connections that the check of `principal` holds for are denied. */
static void deny_principal(hbone_scene *s, const char *principal) {
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_CONNECTION, NA_RULE_DENY, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "ns[x]-policy[no a]-rule[0]"), 0);
  assert_int_equal(na_check_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, principal, 0), 0);
  na_builder *b = rig_change(&s->r);
  const na_inbound_config config = {.fallback = NA_PROTOCOL_TCP, .every = 1};
  assert_int_equal(na_builder_guarded_inbound(b, 2, NULL, 0, &config, &guards, 1), 0);
  na_guards_free(guards);
  rig_commit(&s->r);
}

static void answers_401_when_policy_denies(void **state) {
  hbone_scene s = begin();
  deny_principal(&s, ID_A);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  assert_int_equal(h2_status(&peer, 1), 401);
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags, 0);
  assert_string_equal(record.detail, "rbac_access_denied_matched_policy[ns[x]-policy[no_a]-rule[0]]");
  assert_string_equal(na_engine_principal(s.r.engine, record.principal), ID_A);
  h2_close(&peer);
  int client = dial(s.port);
  expect_reset(client);
  close(client);
  for (record = get_record(&s.r); record.inbound; record = get_record(&s.r))
    ;
  assert_string_equal(record.upstream_failure, "HBONE: the peer answered 401: its policy does not allow it");
  expect_silence(s.listener, 20);
  assert_int_equal(counter(&s.r, "hbone_denied_total"), 2); /* nobody asks again */
  deny_principal(&s, ID_B);
  end(&s);
}

static void answers_503_for_a_dead_application(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  char authority[32];
  snprintf(authority, sizeof authority, "127.0.0.1:%u", closed_port());
  h2_dial(&peer, &s);
  assert_true(h2_connect_to(&peer, 1, authority));
  assert_int_equal(h2_status(&peer, 1), 503);
  h2_close(&peer);
  end(&s);
}

/* CVE-2025-64763: bytes behind a CONNECT that is not answered yet must not be lost, nor believed to be accepted. */
static void holds_early_data_until_it_is_open(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  char authority[32];
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "early", 5));
  int server = answer(s.listener);
  expect(server, "early");
  close(server);
  snprintf(authority, sizeof authority, "127.0.0.1:%u", closed_port());
  assert_true(h2_connect_to(&peer, 3, authority));
  assert_true(h2_send(&peer, H2_DATA, H2_END_STREAM, 3, "early", 5));
  assert_int_equal(h2_status(&peer, 3), 503);
  h2_close(&peer);
  end(&s);
}

/* ---- floods ---- */

static void ends_resets_in_a_row(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  uint32_t cancel = htonl(8), stream = 1;
  h2_dial(&peer, &s);
  for (; stream < 400000; stream += 2) /* CVE-2023-44487 */
    if (!h2_connect(&peer, stream, &s) || !h2_send(&peer, H2_RST_STREAM, 0, stream, &cancel, 4))
      break;
  assert_in_range(stream, 1000, 399999);
  await_counter(&s.r, "hbone_abuse_total", 1);
  assert_in_range(counter(&s.r, "hbone_streams_total"), 500, 1100); /* of those that came, it took few */
  await_counter(&s.r, "downstream_cx_active", 0);
  h2_close(&peer);
  while (readable_within(s.listener, 50)) /* those that got through */
    close(accept(s.listener, NULL, NULL));
  end(&s);
}

/* Send frames until the connection is closed. */
static void flood(h2_peer *peer, int type, uint32_t stream, const void *payload, size_t n, int most) {
  int sent = 0;
  while (sent < most && h2_send(peer, type, 0, stream, payload, n))
    sent++;
  assert_in_range(sent, 0, most - 1);
}

static void ends_floods_of_frames(void **state) {
  hbone_scene s = begin();
  const struct {
    int type;
    uint32_t stream;
    const char *payload;
    size_t n;
  } cases[] = {
      {H2_PING, 0, "12345678", 8},          {H2_SETTINGS, 0, "", 0},
      {H2_PRIORITY, 1, "\0\0\0\0\1", 5},    {H2_WINDOW_UPDATE, 0, "\0\0\0\1", 4},
      {H2_WINDOW_UPDATE, 1, "\0\0\0\1", 4}, {H2_DATA, 1, "", 0},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    h2_peer peer;
    h2_dial(&peer, &s);
    assert_true(h2_connect(&peer, 1, &s));
    int server = answer(s.listener);
    assert_int_equal(h2_status(&peer, 1), 200);
    flood(&peer, cases[i].type, cases[i].stream, cases[i].payload, cases[i].n, 1000000);
    await_counter(&s.r, "hbone_abuse_total", i + 1);
    expect_reset(server);
    close(server);
    h2_close(&peer);
  }
  end(&s);
}

static void ends_endless_header_blocks(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  uint8_t block[64];
  size_t n = h2_literal(block, "x", "y");
  h2_dial(&peer, &s);
  assert_true(h2_send(&peer, H2_HEADERS, 0, 1, block, n)); /* CVE-2024-27919: END_HEADERS never comes */
  flood(&peer, H2_CONTINUATION, 1, block, n, 1000000);
  await_counter(&s.r, "hbone_abuse_total", 1);
  h2_close(&peer);
  end(&s);
}

/* One header of 4000 bytes is put into HPACK's table and then named by one byte, again and again. */
static void charges_headers_as_decoded(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  static uint8_t block[16384];
  size_t n = h2_literal(block, ":method", "CONNECT");
  n += h2_literal(block + n, ":authority", "127.0.0.1:80");
  block[n++] = 0x40; /* with incremental indexing */
  block[n++] = 1;
  block[n++] = 'x';
  block[n++] = 0x7f; /* 127 + 3873 */
  block[n++] = 0xa1;
  block[n++] = 0x1e;
  memset(block + n, 'v', 4000);
  n += 4000;
  memset(block + n, 0xbe, 30); /* index 62: 30 times more, 120 KiB */
  n += 30;
  h2_dial(&peer, &s);
  assert_true(h2_send(&peer, H2_HEADERS, H2_END_HEADERS, 1, block, n));
  assert_int_equal(h2_status(&peer, 1), 0); /* that stream alone */
  assert_true(counter(&s.r, "hbone_headers_too_large_total") > 0);
  assert_true(h2_connect(&peer, 3, &s));
  assert_int_equal(h2_status(&peer, 3), 200);
  close(answer(s.listener));
  memset(block + n, 0xbe, 8000); /* 32 MB */
  assert_true(h2_send(&peer, H2_HEADERS, H2_END_HEADERS, 5, block, n + 8000));
  assert_int_equal(h2_status(&peer, 5), 0);
  h2_close(&peer);
  end(&s);
}

static void ends_breaches_of_protocol(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  const char large[70000] = {0};
  h2_dial(&peer, &s);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "x", 1)); /* a stream that is not open */
  h2_expect_goaway(&peer, 1);
  h2_close(&peer);
  h2_dial(&peer, &s);
  (void)h2_send(&peer, H2_DATA, 0, 1, large, sizeof large); /* larger than what was said */
  h2_expect_goaway(&peer, 6);
  h2_close(&peer);
  assert_true(h2_handshake(&peer, dial(s.tunnel), &(h2_tls){.own = &s.a, .ca = &s.ca}));
  assert_true(h2_write(&peer, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 28));
  assert_false(h2_await(&peer, -1, 0));
  h2_close(&peer);
  await_counter(&s.r, "hbone_abuse_total", 3);
  end(&s);
}

/* A peer that sends more than it was allowed to. */
static void ends_breaches_of_flow_control(void **state) {
  const na_config config = {.hbone_stream_window = 65535};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer peer;
  static const char block[16384];
  h2_dial(&peer, &s);
  char authority[32];
  uint16_t port;
  int full = listen_any(&port); /* accepts, does not read */
  snprintf(authority, sizeof authority, "127.0.0.1:%u", port);
  assert_true(h2_connect_to(&peer, 1, authority));
  assert_int_equal(h2_status(&peer, 1), 200);
  int sent = 0; /* the sockets to the application take some megabytes first */
  while (sent < 2000 && h2_send(&peer, H2_DATA, 0, 1, block, sizeof block))
    sent++;
  while (h2_next(&peer) && peer.type != H2_GOAWAY && peer.type != H2_RST_STREAM)
    ;
  assert_int_equal(h2_error(&peer), 3);
  close(full);
  h2_close(&peer);
  end(&s);
}

/* ---- silence ---- */

static void pings_and_gives_up(void **state) {
  const na_config config = {.hbone_ping_ms = 100};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  int server = answer(s.listener);
  for (int i = 0; i < 4; i++) { /* answered, it goes on */
    assert_true(h2_await(&peer, H2_PING, 0));
    assert_true(h2_send(&peer, H2_PING, H2_ACK, 0, peer.payload, 8));
  }
  assert_true(h2_await(&peer, H2_PING, 0));
  expect_reset(server);
  assert_int_equal(counter(&s.r, "hbone_ping_timeout_total"), 1);
  close(server);
  h2_close(&peer);
  end(&s);
}

/* The peer opens no window: what the application sends stays with the application. */
static void holds_back_the_application(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  static char block[65536];
  size_t total = 0;
  h2_dial(&peer, &s);
  assert_true(h2_send(&peer, H2_SETTINGS, 0, 0, "\0\4\0\0\0\0", 6)); /* INITIAL_WINDOW_SIZE 0 */
  assert_true(h2_connect(&peer, 1, &s));
  int server = answer(s.listener);
  for (struct pollfd room = {.fd = server, .events = POLLOUT}; poll(&room, 1, 300) == 1;) {
    ssize_t n = send(server, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL);
    total += n > 0 ? (size_t)n : 0;
  }
  assert_in_range(total, 1, 16 * 1024 * 1024);
  close(server);
  h2_close(&peer);
  await_counter(&s.r, "downstream_cx_active", 0);
  end(&s);
}

/* ---- servers that are not what we expect ---- */

static void tries_again_where_it_was_not_looked_at(void **state) {
  hbone_scene s = begin();
  h2_peer peer;
  uint32_t refused = htonl(7);
  int listener = play_server(&s), client = dial(s.port);
  h2_answer(&peer, answer(listener), &s);
  assert_true(h2_await(&peer, H2_HEADERS, 1));
  assert_true(h2_send(&peer, H2_RST_STREAM, 0, 1, &refused, 4));
  assert_true(h2_await(&peer, H2_HEADERS, 3));
  assert_true(h2_send(&peer, H2_HEADERS, H2_END_HEADERS, 3, OK_HEAD, sizeof OK_HEAD));
  assert_true(h2_send(&peer, H2_DATA, 0, 3, "hello", 5));
  expect(client, "hello");
  close(client);
  h2_close(&peer);
  stop_playing(&s, listener);
  end(&s);
}

static void moves_on_after_goaway(void **state) {
  hbone_scene s = begin();
  h2_peer old, fresh;
  int listener = play_server(&s), client = dial(s.port);
  h2_answer(&old, answer(listener), &s);
  assert_true(h2_await(&old, H2_HEADERS, 1));
  assert_true(h2_send(&old, H2_HEADERS, H2_END_HEADERS, 1, OK_HEAD, sizeof OK_HEAD));
  assert_true(h2_send(&old, H2_DATA, 0, 1, "a", 1));
  expect(client, "a");
  assert_true(h2_send(&old, H2_GOAWAY, 0, 0, "\0\0\0\1\0\0\0\0", 8));
  assert_true(h2_send(&old, H2_PING, 0, 0, "12345678", 8)); /* its answer tells that GOAWAY was read */
  while (h2_next(&old) && !(old.type == H2_PING && old.flags & H2_ACK))
    ;
  int second = dial(s.port);
  h2_answer(&fresh, answer(listener), &s);
  assert_true(h2_await(&fresh, H2_HEADERS, 1));
  assert_true(h2_send(&fresh, H2_HEADERS, H2_END_HEADERS, 1, OK_HEAD, sizeof OK_HEAD));
  assert_true(h2_send(&fresh, H2_DATA, 0, 1, "b", 1));
  expect(second, "b");
  assert_true(h2_send(&old, H2_DATA, 0, 1, "c", 1)); /* the old stream goes on */
  expect(client, "c");
  close(client);
  close(second);
  h2_close(&old);
  h2_close(&fresh);
  stop_playing(&s, listener);
  end(&s);
}

static void fails_with_what_the_server_does(void **state) {
  hbone_scene s = begin();
  int listener = play_server(&s);
  const struct {
    const char *sends; /* after the CONNECT was read; NULL: nothing, it closes */
    size_t n;
    int type;
    const char *why;
  } cases[] = {
      {"\x48\x03"
       "418",
       5, H2_HEADERS, "HBONE: the peer answered 418: unexpected"},
      {"\0\0\0\2", 4, H2_RST_STREAM, "HBONE: the peer reset the stream"},
      {NULL, 0, 0, "HBONE: "},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    h2_peer peer;
    int client = dial(s.port);
    for (int attempt = 0; attempt < 3; attempt++) { /* one endpoint, tried as often as others would be */
      if (attempt == 0 || !cases[i].sends)
        h2_answer(&peer, answer(listener), &s);
      assert_true(h2_await(&peer, H2_HEADERS, 0));
      if (cases[i].sends)
        assert_true(h2_send(&peer, cases[i].type, H2_END_HEADERS, peer.stream, cases[i].sends, cases[i].n));
      else
        h2_close(&peer);
    }
    expect_reset(client);
    close(client);
    if (cases[i].sends)
      h2_close(&peer);
    await_counter(&s.r, "hbone_dialed_active", 0);
    na_access_record record = get_record(&s.r);
    assert_has(record.upstream_failure, cases[i].why);
    assert_int_equal(record.flags & NA_FLAG_UF, NA_FLAG_UF);
  }
  stop_playing(&s, listener);
  end(&s);
}

static void times_out_on_servers_that_say_nothing(void **state) {
  const na_config config = {.access_log = 1};
  hbone_scene s = hbone_scene_of(&config, NA_PROTOCOL_TCP, NA_PROTOCOL_TCP);
  int listener = play_server(&s);
  na_builder *b = rig_change(&s.r);
  na_cluster_config cluster = {.tag = TAG_CLUSTER, .connect_timeout_ms = 100};
  assert_int_equal(na_builder_cluster(b, "c", &cluster), 0);
  rig_commit(&s.r);
  const char *const why[] = {"HBONE: TLS handshake timeout", "HBONE: no answer to the CONNECT in time"};
  for (size_t i = 0; i < COUNT(why); i++) {
    int client = dial(s.port), silent = answer(listener);
    h2_peer peer;
    if (i)
      h2_answer(&peer, silent, &s);
    expect_reset(client);
    na_access_record record = get_record(&s.r);
    assert_string_equal(record.upstream_failure, why[i]);
    assert_int_equal(record.flags, NA_FLAG_UF); /* there is one endpoint, and it has been waited for */
    close(client);
    if (i)
      h2_close(&peer);
    else
      close(silent);
    await_counter(&s.r, "hbone_dialed_active", 0);
  }
  assert_int_equal(counter(&s.r, "upstream_rq_retry_total"), 0);
  stop_playing(&s, listener);
  end(&s);
}

int main(void) {
  signal(SIGPIPE, SIG_IGN); /* OpenSSL's own sockets would raise it */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refuses_peers_without_the_right_certificate),
      cmocka_unit_test(refuses_other_protocols),
      cmocka_unit_test(limits_silent_handshakes),
      cmocka_unit_test(answers_bad_requests),
      cmocka_unit_test(answers_401_when_policy_denies),
      cmocka_unit_test(answers_503_for_a_dead_application),
      cmocka_unit_test(holds_early_data_until_it_is_open),
      cmocka_unit_test(ends_resets_in_a_row),
      cmocka_unit_test(ends_floods_of_frames),
      cmocka_unit_test(ends_endless_header_blocks),
      cmocka_unit_test(charges_headers_as_decoded),
      cmocka_unit_test(ends_breaches_of_protocol),
      cmocka_unit_test(ends_breaches_of_flow_control),
      cmocka_unit_test(pings_and_gives_up),
      cmocka_unit_test(holds_back_the_application),
      cmocka_unit_test(tries_again_where_it_was_not_looked_at),
      cmocka_unit_test(moves_on_after_goaway),
      cmocka_unit_test(fails_with_what_the_server_does),
      cmocka_unit_test(times_out_on_servers_that_say_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
