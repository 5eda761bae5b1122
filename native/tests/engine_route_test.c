/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests through a running engine: routes, clusters, pools, timeouts and failures.
 */
#include "engine_rig.h"

typedef struct scene {
  rig r;
  int listener;
  uint16_t backend;
  uint16_t port;
  int client;
} scene;

/* Engine and server; the test adds the configuration. */
static scene begin(const na_config *config) {
  scene s = {.client = -1};
  s.r = rig_start(config);
  s.listener = listen_any(&s.backend);
  s.port = rig_listen(&s.r);
  return s;
}

/* Put the configuration in force, and connect. */
static void commit(scene *s) {
  rig_commit(&s->r);
  if (s->client < 0)
    s->client = dial(s->port);
}

static void end(scene *s) {
  close(s->client);
  close(s->listener);
  rig_stop(&s->r);
}

/* Begin a configuration with cluster "c", table "t" and the destination; the caller adds virtual hosts. */
static na_builder *configure(scene *s) {
  na_builder *b = rig_change(&s->r);
  add_cluster(b, "c", s->backend);
  assert_int_equal(na_builder_table(b, "t", TAG_TABLE, 0), 0);
  add_destination(b, s->port, NA_PROTOCOL_HTTP, "t", NULL);
  return b;
}

/* Everything goes to cluster "c". */
static void serve(scene *s) {
  rig_serve(&s->r, s->port, NA_PROTOCOL_HTTP, s->backend);
  s->client = dial(s->port);
}

static void expect_text(int fd, const char *status, const char *text) {
  char length[64];
  const char *head = expect_head(fd, status);
  snprintf(length, sizeof length, "content-length: %zu\r\n", strlen(text));
  assert_has(head, length);
  expect(fd, text);
}

static void answers_404_without_a_route(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "a", "c", &route);
  assert_int_equal(na_route_path(route, NA_MATCH_PREFIX, "/known", 0), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  put(s.client, GET_ROOT "GET /known HTTP/1.1\r\nHost: other\r\n\r\n");
  expect_text(s.client, "HTTP/1.1 404 Not Found", "");
  expect_text(s.client, "HTTP/1.1 404 Not Found", "");
  end(&s);
}

static void splits_by_weight(void **state) {
  scene s = begin(NULL);
  uint16_t other_port;
  int other = listen_any(&other_port);
  na_builder *b = configure(&s);
  add_cluster(b, "d", other_port);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "c", &route);
  assert_int_equal(na_route_forward(route, "d", 3), 1);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  int servers[2] = {-1, -1}, hits[2] = {0, 0}, listeners[2] = {s.listener, other};
  for (int i = 0; i < 200; i++) {
    put(s.client, GET_ROOT);
    struct pollfd wait[4];
    for (int k = 0; k < 2; k++) {
      wait[k] = (struct pollfd){.fd = servers[k], .events = POLLIN};
      wait[2 + k] = (struct pollfd){.fd = servers[k] < 0 ? listeners[k] : -1, .events = POLLIN};
    }
    assert_true(poll(wait, 4, RIG_WAIT_MS) > 0);
    int at = wait[0].revents || wait[2].revents ? 0 : 1;
    if (servers[at] < 0)
      servers[at] = answer(listeners[at]);
    get_head(servers[at]);
    put(servers[at], OK_HELLO);
    expect_head(s.client, "HTTP/1.1 200 OK");
    expect(s.client, "hello");
    hits[at]++;
  }
  /* 50 expected of 200 at 1:3; six standard deviations are 37 */
  assert_in_range(hits[0], 13, 87);
  close(servers[0]);
  close(servers[1]);
  close(other);
  end(&s);
}

static void rewrites_and_changes_headers(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "c", &route);
  assert_int_equal(na_route_path(route, NA_MATCH_PREFIX, "/api", 0), 0);
  assert_int_equal(na_route_rewrite_prefix(route, "/v2"), 0);
  assert_int_equal(na_route_rewrite_authority(route, "inner"), 0);
  assert_int_equal(na_route_header(route, NA_REQUEST, NA_HEADER_SET, "x-set", "1"), 0);
  assert_int_equal(na_route_header(route, NA_RESPONSE, NA_HEADER_REMOVE, "x-gone", NULL), 0);
  assert_int_equal(na_route_destination_header(route, 0, NA_RESPONSE, NA_HEADER_ADD, "x-dest", "d"), 0);
  assert_int_equal(na_vhost_header(vhost, NA_REQUEST, NA_HEADER_ADD, "x-vh", "v"), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  put(s.client, "GET /api/x?q=1 HTTP/1.1\r\nHost: outer\r\nx-set: 0\r\n\r\n");
  int server = answer(s.listener);
  const char *head = expect_head(server, "GET /v2/x?q=1 HTTP/1.1");
  assert_has(head, "ost: inner\r\n");
  assert_lacks(head, "outer");
  assert_has(head, "x-set: 1\r\n");
  assert_lacks(head, "x-set: 0\r\n");
  assert_has(head, "x-vh: v\r\n");
  assert_has(head, "x-envoy-original-path: /api/x?q=1\r\n");
  put(server, "HTTP/1.1 200 OK\r\nx-gone: 1\r\ncontent-length: 0\r\n\r\n");
  head = expect_head(s.client, "HTTP/1.1 200 OK");
  assert_lacks(head, "x-gone");
  assert_has(head, "x-dest: d\r\n");
  close(server);
  end(&s);
}

/* Operations apply to what the proxy adds, too. */
static void changes_the_proxys_own_headers(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "c", &route);
  assert_int_equal(na_route_header(route, NA_REQUEST, NA_HEADER_SET, "X-Request-Id", "fixed"), 0);
  assert_int_equal(na_route_header(route, NA_REQUEST, NA_HEADER_REMOVE, "x-forwarded-proto", NULL), 0);
  assert_int_equal(na_route_header(route, NA_RESPONSE, NA_HEADER_REMOVE, "x-envoy-upstream-service-time", NULL), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  const char *head = expect_head(server, "GET / HTTP/1.1");
  assert_has(head, "X-Request-Id: fixed\r\n");
  assert_lacks(head, "x-request-id: ");
  assert_lacks(head, "x-forwarded-proto");
  put(server, OK_HELLO);
  assert_lacks(expect_head(s.client, "HTTP/1.1 200 OK"), "service-time");
  close(server);
  end(&s);
}

static void redirects_and_answers_directly(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_route *redirect;
  na_vhost *vhost = new_vhost("vh", "*", NULL, &redirect);
  assert_int_equal(na_route_path(redirect, NA_MATCH_EXACT, "/old", 0), 0);
  assert_int_equal(na_route_redirect(redirect, 302, "https", "new.example", 0, "/new", NULL, 0), 0);
  na_route *direct = na_vhost_route(vhost, "direct", 8);
  assert_int_equal(na_route_respond(direct, 418, (const uint8_t *)"teapot", 6), 0);
  assert_int_equal(na_route_header(direct, NA_RESPONSE, NA_HEADER_SET, "x-pot", "tea"), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  put(s.client, "GET /old?q=1 HTTP/1.1\r\nHost: a\r\n\r\n");
  assert_has(expect_head(s.client, "HTTP/1.1 302 Found"), "location: https://new.example/new?q=1\r\n");
  put(s.client, "GET /x HTTP/1.1\r\nHost: a\r\n\r\nHEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
  const char *head = get_head(s.client);
  assert_has(head, "HTTP/1.1 418 ");
  assert_has(head, "x-pot: tea\r\n");
  expect(s.client, "teapot");
  assert_has(get_head(s.client), "content-length: 6\r\n");
  expect_silence(s.client, 20); /* no body for HEAD */
  /* the answer does not wait for the body, and the connection does not outlive it */
  put(s.client, "POST /x HTTP/1.1\r\nHost: a\r\ncontent-length: 10\r\n\r\nabc");
  assert_has(get_head(s.client), "connection: close\r\n");
  expect(s.client, "teapot");
  expect_end(s.client);
  end(&s);
}

static void times_out(void **state) {
  na_config config = {.access_log = 1};
  scene s = begin(&config);
  na_builder *b = configure(&s);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "c", &route);
  assert_int_equal(na_route_timeout(route, 50), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  uint64_t start = now_ms();
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  expect_text(s.client, "HTTP/1.1 504 Gateway Timeout", "upstream request timeout");
  assert_in_range(now_ms() - start, 45, 1000);
  expect_end(server);
  close(server);
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags, NA_FLAG_UT);
  assert_string_equal(record.detail, "response_timeout");
  /* the time begins with the end of the request */
  put(s.client, "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\n\r\nab");
  server = answer(s.listener);
  get_head(server);
  sleep_ms(80);
  put(s.client, "cd");
  expect(server, "abcd");
  put(server, OK_HELLO);
  expect_text(s.client, "HTTP/1.1 200 OK", "hello");
  close(server);
  end(&s);
}

static void cuts_a_response_that_takes_too_long(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "c", &route);
  assert_int_equal(na_route_timeout(route, 60), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "half");
  expect_reset(s.client);
  close(server);
  end(&s);
}

static void reports_failed_connects(void **state) {
  na_config config = {.access_log = 1};
  scene s = begin(&config);
  na_builder *b = configure(&s);
  add_cluster(b, "closed", closed_port());
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", "closed", NULL)), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  expect_text(s.client, "HTTP/1.1 503 Service Unavailable",
              "upstream connect error or disconnect/reset before headers. reset reason: connection failure");
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags, NA_FLAG_UF | NA_FLAG_URX);
  assert_string_equal(record.detail, "upstream_reset_before_response_started{connection_failure}");
  assert_string_equal(record.upstream_failure, "Connection refused");
  assert_int_equal(counter(&s.r, "upstream_cx_connect_fail_total"), 3);
  assert_int_equal(counter(&s.r, "upstream_rq_retry_total"), 2);
  end(&s);
}

static void tries_another_endpoint(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_endpoint endpoints[3] = {endpoint_at(closed_port()), endpoint_at(s.backend), endpoint_at(closed_port())};
  assert_int_equal(na_builder_endpoints(b, "c", endpoints, 3), 0);
  na_vhost *vhost = new_vhost("vh", "*", "c", NULL);
  na_vhost_attempt_count(vhost);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  commit(&s);
  unsigned attempts = 0, n;
  for (int i = 0; i < 6; i++) {
    int client = dial(s.port);
    put(client, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\ncontent-length: 4\r\n\r\nbody");
    int server = answer(s.listener);
    const char *counted = strstr(get_head(server), "x-envoy-attempt-count: ");
    assert_true(counted && sscanf(counted, "x-envoy-attempt-count: %u\r\n", &n) == 1);
    attempts += n;
    expect(server, "body");
    put(server, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    expect_head(client, "HTTP/1.1 200 OK");
    close(server);
    close(client);
  }
  assert_true(counter(&s.r, "upstream_rq_retry_total") > 0);
  assert_int_equal(attempts, 6 + counter(&s.r, "upstream_rq_retry_total"));
  end(&s);
}

static void knows_empty_missing_and_black_clusters(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_cluster_config black = {.kind = NA_CLUSTER_BLACKHOLE};
  assert_int_equal(na_builder_cluster(b, "black", &black), 0);
  assert_int_equal(na_builder_endpoints(b, "c", NULL, 0), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", "c", NULL)), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vb", "black", "black", NULL)), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  expect_text(s.client, "HTTP/1.1 503 Service Unavailable", "no healthy upstream");
  put(s.client, "GET / HTTP/1.1\r\nHost: black\r\n\r\n");
  expect_text(s.client, "HTTP/1.1 503 Service Unavailable", "no healthy upstream");
  end(&s);
}

/* An explicit proxy's own address is where its connections "go". */
static void does_not_go_round_in_circles(void **state) {
  scene s = begin(NULL);
  na_builder *b = configure(&s);
  na_cluster_config original = {.kind = NA_CLUSTER_ORIGINAL_DST};
  assert_int_equal(na_builder_cluster(b, "Passthrough", &original), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", "Passthrough", NULL)), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  expect_text(s.client, "HTTP/1.1 503 Service Unavailable", "no healthy upstream");
  assert_int_equal(counter(&s.r, "downstream_cx_loop_total"), 1);
  end(&s);
}

static void enforces_the_limits_of_a_cluster(void **state) {
  na_config settings = {.access_log = 1};
  scene s = begin(&settings);
  na_builder *b = configure(&s);
  na_cluster_config config = {.tag = TAG_CLUSTER, .max_requests = 1};
  assert_int_equal(na_builder_cluster(b, "c", &config), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", "c", NULL)), 0);
  commit(&s);
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  int second = dial(s.port);
  put(second, GET_ROOT);
  assert_has(expect_head(second, "HTTP/1.1 503 Service Unavailable"), "x-envoy-overloaded: true\r\n");
  expect(second, "upstream connect error or disconnect/reset before headers. reset reason: overflow");
  assert_int_equal(get_record(&s.r).flags, NA_FLAG_UO);
  put(server, OK_HELLO);
  expect_text(s.client, "HTTP/1.1 200 OK", "hello");
  exchange(second, server); /* given back */
  close(second);
  close(server);
  end(&s);
}

/* ---- pools ---- */

static void shares_connections_between_clients(void **state) {
  scene s = begin(NULL);
  serve(&s);
  int server = first_exchange(s.client, s.listener);
  int second = dial(s.port);
  exchange(second, server);
  exchange(s.client, server);
  assert_int_equal(counter(&s.r, "upstream_cx_total"), 1);
  assert_int_equal(counter(&s.r, "upstream_cx_idle"), 1);
  close(second);
  close(server);
  await_counter(&s.r, "upstream_cx_idle", 0); /* noticed while idle */
  end(&s);
}

static void lets_connections_leave_the_pool(void **state) {
  na_config config = {.pool_idle_timeout_ms = 50, .pool_max_idle = 1};
  scene s = begin(&config);
  serve(&s);
  int second = dial(s.port), servers[2];
  put(s.client, GET_ROOT);
  servers[0] = answer(s.listener);
  put(second, GET_ROOT);
  servers[1] = answer(s.listener);
  for (int i = 0; i < 2; i++) {
    get_head(servers[i]);
    put(servers[i], OK_HELLO);
    expect_text(i ? second : s.client, "HTTP/1.1 200 OK", "hello");
  }
  expect_end(servers[1]); /* one too many */
  assert_int_equal(counter(&s.r, "upstream_cx_pool_overflow_total"), 1);
  expect_end(servers[0]); /* grown old */
  close(servers[0]);
  close(servers[1]);
  close(second);
  end(&s);
}

/* Give cluster `c` the endpoint. */
static void move_endpoint(scene *s, uint16_t port) {
  na_endpoint endpoint = endpoint_at(port);
  na_builder *b = rig_change(&s->r);
  assert_int_equal(na_builder_endpoints(b, "c", &endpoint, 1), 0);
  rig_commit(&s->r);
}

static void leaves_removed_endpoints(void **state) {
  scene s = begin(NULL);
  uint16_t other;
  int elsewhere = listen_any(&other);
  serve(&s);
  int server = first_exchange(s.client, s.listener);
  move_endpoint(&s, s.backend); /* the same again: it stays */
  exchange(s.client, server);
  assert_int_equal(counter(&s.r, "upstream_cx_total"), 1);
  move_endpoint(&s, other);
  expect_end(server); /* unused */
  put(s.client, GET_ROOT);
  int second = answer(elsewhere);
  get_head(second);
  move_endpoint(&s, s.backend);
  put(second, OK_HELLO); /* the request in progress ends in order */
  expect_text(s.client, "HTTP/1.1 200 OK", "hello");
  expect_end(second);
  assert_int_equal(counter(&s.r, "upstream_cx_idle"), 0);
  close(server);
  close(second);
  close(elsewhere);
  end(&s);
}

static void respects_the_servers_close(void **state) {
  scene s = begin(NULL);
  serve(&s);
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 5\r\n\r\nhello");
  assert_lacks(expect_head(s.client, "HTTP/1.1 200 OK"), "lose");
  expect(s.client, "hello");
  expect_end(server);
  close(server);
  put(s.client, GET_ROOT);
  server = answer(s.listener);
  get_head(server);
  close(server);
  end(&s);
}

/* A pooled connection that the server closes the moment it is used: the client must not notice. */
static void replay(const char *request, const char *line, const char *body, bool replayed) {
  scene s = begin(NULL);
  serve(&s);
  int server = first_exchange(s.client, s.listener);
  put(s.client, request);
  expect_head(server, line);
  close(server);
  if (replayed) {
    server = answer(s.listener);
    expect_head(server, line);
    expect(server, body);
    put(server, OK_HELLO);
    expect_text(s.client, "HTTP/1.1 200 OK", "hello");
    assert_int_equal(counter(&s.r, "upstream_rq_replay_total"), 1);
    close(server);
  } else {
    expect_head(s.client, "HTTP/1.1 503 Service Unavailable");
  }
  end(&s);
}

static void sends_again_when_a_pooled_connection_dies(void **state) {
  replay("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /2 HTTP/1.1", "", true);
  replay("PUT /2 HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\n\r\nbody", "PUT /2 HTTP/1.1", "body", true);
  /* the server's TCP has taken it, so that it may have been acted upon */
  replay("POST /2 HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\n\r\nbody", "POST /2 HTTP/1.1", "body", false);
}

/* The server closes just before a request that must not be sent twice: whether the engine has noticed or not, the
 * client gets its answer. */
static void survives_a_close_that_crosses_a_post(void **state) {
  scene s = begin(NULL);
  serve(&s);
  for (int i = 0; i < 100; i++) {
    put(s.client, "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\n\r\nbody");
    int server = answer(s.listener);
    get_head(server);
    expect(server, "body");
    put(server, OK_HELLO);
    expect_text(s.client, "HTTP/1.1 200 OK", "hello");
    close(server);
  }
  end(&s);
}

/* ---- change under way ---- */

static void swaps_snapshots_under_a_download(void **state) {
  scene s = begin(NULL);
  serve(&s);
  put(s.client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst");
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "first");
  na_builder *b = rig_change(&s.r);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", NULL, &route);
  assert_int_equal(na_route_respond(route, 200, (const uint8_t *)"new", 3), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  add_destination(b, s.port, NA_PROTOCOL_HTTP, "t", NULL);
  assert_int_equal(na_builder_cluster_remove(b, "c"), 0);
  commit(&s);
  put(server, "again");
  expect(s.client, "again");
  put(s.client, GET_ROOT); /* the next request on the same connection goes by the new configuration */
  expect_text(s.client, "HTTP/1.1 200 OK", "new");
  close(server);
  end(&s);
}

static void swaps_snapshots_under_a_tunnel(void **state) {
  scene s = begin(NULL);
  serve(&s);
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
  int server = answer(s.listener);
  get_head(server);
  put(server, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
  expect_head(s.client, "HTTP/1.1 101 Switching Protocols");
  uint8_t ip[16];
  v4_mapped(ip, "127.0.0.1");
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_destination_remove(b, "v", ip, s.port), 0);
  assert_int_equal(na_builder_table_remove(b, "t"), 0);
  assert_int_equal(na_builder_cluster_remove(b, "c"), 0);
  commit(&s);
  put(s.client, "ping");
  expect(server, "ping");
  put(server, "pong");
  expect(s.client, "pong");
  close(server);
  expect_end(s.client);
  end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(answers_404_without_a_route),
      cmocka_unit_test(splits_by_weight),
      cmocka_unit_test(rewrites_and_changes_headers),
      cmocka_unit_test(changes_the_proxys_own_headers),
      cmocka_unit_test(redirects_and_answers_directly),
      cmocka_unit_test(times_out),
      cmocka_unit_test(cuts_a_response_that_takes_too_long),
      cmocka_unit_test(reports_failed_connects),
      cmocka_unit_test(tries_another_endpoint),
      cmocka_unit_test(knows_empty_missing_and_black_clusters),
      cmocka_unit_test(does_not_go_round_in_circles),
      cmocka_unit_test(enforces_the_limits_of_a_cluster),
      cmocka_unit_test(shares_connections_between_clients),
      cmocka_unit_test(lets_connections_leave_the_pool),
      cmocka_unit_test(leaves_removed_endpoints),
      cmocka_unit_test(respects_the_servers_close),
      cmocka_unit_test(sends_again_when_a_pooled_connection_dies),
      cmocka_unit_test(survives_a_close_that_crosses_a_post),
      cmocka_unit_test(swaps_snapshots_under_a_download),
      cmocka_unit_test(swaps_snapshots_under_a_tunnel),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
