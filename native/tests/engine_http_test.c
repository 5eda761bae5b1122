/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/1 through a running engine: messages and connections.
 */
#include "engine_rig.h"

/* What most tests need: an engine, a server, a client connected to the engine. */
typedef struct scene {
  rig r;
  int listener;
  int client;
  int server; /* when accepted */
  uint16_t port;
} scene;

static scene begin_with(const na_config *config) {
  scene s = {.server = -1};
  uint16_t backend;
  s.r = rig_start(config);
  s.listener = listen_any(&backend);
  s.port = rig_listen(&s.r);
  rig_serve(&s.r, s.port, NA_PROTOCOL_HTTP, backend);
  s.client = dial(s.port);
  return s;
}

static scene begin(void) {
  return begin_with(NULL);
}

static void end(scene *s) {
  close(s->client);
  if (s->server >= 0)
    close(s->server);
  close(s->listener);
  rig_stop(&s->r);
}

static void keeps_connections(void **state) {
  scene s = begin();
  s.server = first_exchange(s.client, s.listener);
  for (int i = 0; i < 5; i++)
    exchange(s.client, s.server);
  assert_int_equal(counter(&s.r, "upstream_cx_total"), 1);
  assert_int_equal(counter(&s.r, "downstream_rq_total"), 6);
  end(&s);
}

static void adds_and_strips_headers(void **state) {
  scene s = begin();
  put(s.client, "GET /p?q=1 HTTP/1.1\r\nHost: Reviews:9080\r\nConnection: keep-alive, x-secret\r\nX-Secret: 1\r\n"
                "Keep-Alive: timeout=5\r\nTE: trailers, deflate\r\nX-Kept: yes\r\n\r\n");
  s.server = answer(s.listener);
  const char *head = expect_head(s.server, "GET /p?q=1 HTTP/1.1");
  assert_has(head, "\r\nX-Kept: yes\r\n");
  assert_has(head, "ost: Reviews:9080\r\n");
  assert_has(head, "\r\nx-forwarded-proto: http\r\n");
  assert_has(head, "\r\nx-request-id: ");
  assert_has(head, "\r\nte: trailers\r\n");
  assert_lacks(head, "ecret");
  assert_lacks(head, "deflate");
  assert_lacks(head, "onnection:");
  assert_lacks(head, "eep-alive");
  assert_lacks(head, "x-envoy-original-path");
  put(s.server, "HTTP/1.1 200 Fine\r\nServer: mine\r\nConnection: x-hop\r\nX-Hop: 1\r\ncontent-length: 0\r\n\r\n");
  head = expect_head(s.client, "HTTP/1.1 200 Fine");
  assert_has(head, "\r\nServer: mine\r\n");
  assert_has(head, "\r\nx-envoy-upstream-service-time: ");
  assert_lacks(head, "op: 1");
  end(&s);
}

/* The sidecar of the server has measured too; the client sees the time of the last proxy. */
static void replaces_the_service_time_of_another_proxy(void **state) {
  scene s = begin();
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Service-Time: 77777\r\ncontent-length: 0\r\n\r\n");
  const char *head = expect_head(s.client, "HTTP/1.1 200 OK");
  assert_has(head, "\r\nx-envoy-upstream-service-time: ");
  assert_lacks(head, "77777");
  end(&s);
}

static void keeps_the_clients_request_id(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nX-Forwarded-Proto: https\r\n\r\n");
  s.server = answer(s.listener);
  const char *head = get_head(s.server);
  assert_has(head, "X-Request-Id: mine\r\n");
  assert_lacks(head, "x-request-id: ");
  assert_lacks(head, "x-forwarded-proto: http\r\n");
  end(&s);
}

/* Whoever reads x-forwarded-client-cert takes it for what a proxy has verified. */
static void passes_on_no_certificate_that_a_client_claims(void **state) {
  scene s = begin();
  put(s.client, "GET /1 HTTP/1.1\r\nX-Forwarded-Client-Cert: URI=spiffe://td/ns/a/sa/boss\r\nHost: a\r\n"
                "X-Kept: yes\r\nx-forwarded-client-cert: By=x\r\n\r\n");
  s.server = answer(s.listener);
  const char *head = expect_head(s.server, "GET /1 HTTP/1.1");
  assert_has(head, "\r\nX-Kept: yes\r\n");
  assert_lacks(head, "lient-");
  assert_lacks(head, "spiffe");
  assert_lacks(head, "By=x");
  put(s.server, "HTTP/1.1 200 OK\r\nX-Forwarded-Client-Cert: mine\r\ncontent-length: 0\r\n\r\n");
  assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "X-Forwarded-Client-Cert: mine\r\n");
  end(&s);
}

static void answers_pipelined_requests_in_order(void **state) {
  scene s = begin();
  put(s.client, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\n\r\nabc"
                "GET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
  s.server = answer(s.listener);
  expect_head(s.server, "GET /1 HTTP/1.1");
  expect_silence(s.server, 30); /* the second waits for the first */
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1");
  expect_head(s.server, "POST /2 HTTP/1.1");
  expect(s.server, "abc");
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2");
  expect_head(s.server, "GET /3 HTTP/1.1");
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n3");
  static const char *const bodies[] = {"1", "2", "3"};
  for (size_t i = 0; i < COUNT(bodies); i++) {
    expect_head(s.client, "HTTP/1.1 200 OK");
    expect(s.client, bodies[i]);
  }
  end(&s);
}

static void passes_chunks_and_trailers(void **state) {
  scene s = begin();
  put(s.client, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhel");
  s.server = answer(s.listener);
  const char *head = expect_head(s.server, "POST / HTTP/1.1");
  assert_has(head, "\r\ntransfer-encoding: chunked\r\n");
  expect(s.server, "5\r\nhel");
  put(s.client, "lo\r\n0\r\nx-sum: 1\r\n\r\n");
  expect(s.server, "lo\r\n0\r\nx-sum: 1\r\n\r\n");
  put(s.server, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\nx-end: 2\r\n\r\n");
  assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "\r\ntransfer-encoding: chunked\r\n");
  expect(s.client, "3;ext=1\r\nabc\r\n0\r\nx-end: 2\r\n\r\n");
  exchange(s.client, s.server);
  end(&s);
}

static void reads_a_head_in_pieces(void **state) {
  scene s = begin();
  for (const char *p = "GET /slow HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n"; *p; p++) {
    put_n(s.client, p, 1);
    if (*p == '\n')
      sleep_ms(2);
  }
  s.server = answer(s.listener);
  expect_head(s.server, "GET /slow HTTP/1.1");
  for (const char *p = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"; *p; p++) {
    put_n(s.server, p, 1);
    if (*p == '\n')
      sleep_ms(2);
  }
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "hel");
  put(s.server, "lo");
  expect(s.client, "lo");
  exchange(s.client, s.server);
  end(&s);
}

static void knows_bodiless_responses(void **state) {
  scene s = begin();
  put(s.client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  s.server = answer(s.listener);
  expect_head(s.server, "HEAD / HTTP/1.1");
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
  assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "content-length: 1000\r\n");
  put(s.client, GET_ROOT);
  get_head(s.server);
  put(s.server, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n");
  expect_head(s.client, "HTTP/1.1 304 Not Modified");
  put(s.client, GET_ROOT);
  get_head(s.server);
  put(s.server, "HTTP/1.1 204 No Content\r\n\r\n");
  expect_head(s.client, "HTTP/1.1 204 No Content");
  exchange(s.client, s.server);
  end(&s);
}

static void relays_100_continue(void **state) {
  scene s = begin();
  put(s.client, "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
  s.server = answer(s.listener);
  assert_has(get_head(s.server), "Expect: 100-continue\r\n");
  put(s.server, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
  assert_lacks(expect_head(s.client, "HTTP/1.1 100 Continue"), "x-envoy");
  assert_has(expect_head(s.client, "HTTP/1.1 103 Early Hints"), "link: x\r\n");
  put(s.client, "body");
  expect(s.server, "body");
  put(s.server, OK_HELLO);
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "hello");
  exchange(s.client, s.server);
  end(&s);
}

/* The client was not told to go on: nobody knows whether the body will come, so the connection ends. */
static void ends_after_a_final_answer_to_expect(void **state) {
  scene s = begin();
  put(s.client, "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n");
  assert_has(expect_head(s.client, "HTTP/1.1 417 Expectation Failed"), "connection: close\r\n");
  expect_end(s.client);
  expect_end(s.server);
  end(&s);
}

static void relays_an_early_answer(void **state) {
  scene s = begin();
  put(s.client, "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 1000000\r\n\r\nsome");
  s.server = answer(s.listener);
  get_head(s.server);
  expect(s.server, "some");
  put(s.server, "HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig");
  expect_head(s.client, "HTTP/1.1 413 Too Large");
  expect(s.client, "big");
  expect_end(s.client);
  end(&s);
}

static void serves_http10_clients(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.0\r\nHost: a\r\n\r\n");
  s.server = answer(s.listener);
  expect_head(s.server, "GET / HTTP/1.1");
  /* chunks are decoded, in pieces as they come */
  put(s.server, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
  const char *head = expect_head(s.client, "HTTP/1.1 200 OK");
  assert_has(head, "connection: close\r\n");
  assert_lacks(head, "chunked");
  expect(s.client, "he");
  put(s.server, "llo\r\n1");
  expect(s.client, "llo");
  put(s.server, "0\r\n0123456789abcdef\r\n0\r\n\r\n");
  expect(s.client, "0123456789abcdef");
  expect_end(s.client);
  end(&s);
}

static void keeps_http10_connections_alive_on_request(void **state) {
  scene s = begin();
  for (int i = 0; i < 2; i++) {
    put(s.client, "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    if (i == 0)
      s.server = answer(s.listener);
    get_head(s.server);
    put(s.server, OK_HELLO);
    assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "connection: keep-alive\r\n");
    expect(s.client, "hello");
  }
  end(&s);
}

static void honours_connection_close(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  s.server = answer(s.listener);
  assert_lacks(get_head(s.server), "lose");
  put(s.server, OK_HELLO);
  assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "connection: close\r\n");
  expect(s.client, "hello");
  expect_end(s.client);
  /* the upstream connection lives on */
  close(s.client);
  s.client = dial(s.port);
  exchange(s.client, s.server);
  end(&s);
}

/* Such a client may end its side while it waits: it has said that it will not ask again. */
static void answers_a_half_closed_client(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  shutdown(s.client, SHUT_WR);
  s.server = answer(s.listener);
  get_head(s.server);
  sleep_ms(20);
  put(s.server, OK_HELLO);
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "hello");
  expect_end(s.client);
  end(&s);
}

/* So does `nc -N` with requests on its input. */
static void answers_a_client_that_half_closes_at_once(void **state) {
  scene s = begin();
  put(s.client, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
  shutdown(s.client, SHUT_WR);
  s.server = answer(s.listener);
  expect_head(s.server, "GET /1 HTTP/1.1");
  sleep_ms(150);
  put(s.server, OK_HELLO);
  expect_head(s.server, "GET /2 HTTP/1.1");
  put(s.server, OK_HELLO);
  for (int i = 0; i < 2; i++) {
    expect_head(s.client, "HTTP/1.1 200 OK");
    expect(s.client, "hello");
  }
  expect_end(s.client);
  assert_int_equal(counter(&s.r, "downstream_rq_aborted_total"), 0);
  end(&s);
}

static void names_the_destination_for_a_client_without_host(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.0\r\n\r\n");
  s.server = answer(s.listener);
  char host[64];
  snprintf(host, sizeof host, "host: 127.0.0.1:%u\r\n", s.port);
  assert_has(expect_head(s.server, "GET / HTTP/1.1"), host);
  end(&s);
}

static void frames_a_body_that_ends_with_the_connection(void **state) {
  scene s = begin();
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.0 200 OK\r\n\r\nabc");
  assert_has(expect_head(s.client, "HTTP/1.1 200 OK"), "transfer-encoding: chunked\r\n");
  expect(s.client, "3\r\nabc");
  put(s.server, "defg");
  expect(s.client, "\r\n4\r\ndefg");
  close(s.server);
  expect(s.client, "\r\n0\r\n\r\n");
  put(s.client, GET_ROOT); /* the client's connection lives on */
  s.server = answer(s.listener);
  get_head(s.server);
  end(&s);
}

static void leaves_a_body_open_for_http10(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.0\r\n\r\n");
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.0 200 OK\r\n\r\nabc");
  assert_lacks(expect_head(s.client, "HTTP/1.1 200 OK"), "chunked");
  expect(s.client, "abc");
  close(s.server);
  s.server = -1;
  expect_end(s.client);
  end(&s);
}

static void tunnels_after_101(void **state) {
  scene s = begin();
  put(s.client, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly");
  s.server = answer(s.listener);
  const char *head = expect_head(s.server, "GET /chat HTTP/1.1");
  assert_has(head, "connection: upgrade\r\n");
  assert_has(head, "upgrade: websocket\r\n");
  expect_silence(s.server, 30); /* nothing is let through before the 101 */
  put(s.server, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
  head = expect_head(s.client, "HTTP/1.1 101 Switching Protocols");
  assert_has(head, "upgrade: websocket\r\n");
  expect(s.client, "first");
  expect(s.server, "early");
  put(s.client, "ping");
  expect(s.server, "ping");
  shutdown(s.client, SHUT_WR); /* half-close */
  expect_end(s.server);
  put(s.server, "bye");
  close(s.server);
  s.server = -1;
  expect(s.client, "bye");
  expect_end(s.client);
  await_counter(&s.r, "downstream_rq_active", 0);
  assert_int_equal(counter(&s.r, "upgrades_total"), 1);
  end(&s);
}

static void goes_on_when_an_upgrade_is_refused(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, OK_HELLO);
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "hello");
  exchange(s.client, s.server);
  end(&s);
}

static void does_not_pass_h2c_upgrades(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, H2C\r\n"
                "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n");
  s.server = answer(s.listener);
  const char *head = get_head(s.server);
  assert_lacks(head, "2C");
  assert_lacks(head, "pgrade");
  assert_lacks(head, "HTTP2-Settings");
  put(s.server, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n");
  expect_head(s.client, "HTTP/1.1 502 Bad Gateway"); /* nobody asked */
  end(&s);
}

static void closes_upstream_when_the_client_leaves(void **state) {
  na_config config = {.access_log = 1};
  scene s = begin_with(&config);
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  sleep_ms(150); /* at once it could still wait for the answer */
  close(s.client);
  s.client = dial(s.port);
  expect_end(s.server);
  na_access_record record = get_record(&s.r);
  assert_int_equal(record.flags, NA_FLAG_DC);
  assert_int_equal(record.status, 0);
  assert_string_equal(record.detail, "downstream_remote_disconnect");
  assert_int_equal(counter(&s.r, "downstream_rq_aborted_total"), 1);
  end(&s);
}

/* One that was to have no other request: nothing more of it is awaited but its end. */
static void notices_that_a_one_shot_client_leaves(void **state) {
  scene s = begin();
  put(s.client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  s.server = answer(s.listener);
  get_head(s.server);
  struct linger linger = {.l_onoff = 1, .l_linger = 0};
  assert_int_equal(setsockopt(s.client, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
  close(s.client);
  s.client = dial(s.port);
  expect_end(s.server);
  assert_int_equal(counter(&s.r, "downstream_rq_aborted_total"), 1);
  end(&s);
}

static void cuts_a_broken_response(void **state) {
  scene s = begin();
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
  expect_head(s.client, "HTTP/1.1 200 OK");
  expect(s.client, "half");
  close(s.server);
  s.server = -1;
  expect_reset(s.client); /* so that no client takes half for the whole */
  end(&s);
}

/* Some servers say that they are busy without hearing what about. */
static void passes_on_an_answer_that_comes_with_the_connection(void **state) {
  for (int i = 0; i < 20; i++) {
    scene s = begin();
    put(s.client, GET_ROOT);
    int server = answer(s.listener);
    put(server, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    expect_head(s.client, "HTTP/1.1 503 Service Unavailable");
    close(server);
    end(&s);
  }
}

static void answers_502_for_a_malformed_response(void **state) {
  scene s = begin();
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  put(s.server, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
  expect_head(s.client, "HTTP/1.1 502 Bad Gateway");
  expect_end(s.server);
  assert_int_equal(counter(&s.r, "upstream_rq_protocol_error_total"), 1);
  end(&s);
}

static void answers_503_when_the_upstream_closes(void **state) {
  scene s = begin();
  put(s.client, GET_ROOT);
  s.server = answer(s.listener);
  get_head(s.server);
  close(s.server);
  s.server = -1;
  assert_has(expect_head(s.client, "HTTP/1.1 503 Service Unavailable"), "content-length: 95\r\n");
  expect(s.client, "upstream connect error or disconnect/reset before headers. reset reason: connection termination");
  put(s.client, GET_ROOT); /* the client's connection lives on */
  s.server = answer(s.listener);
  get_head(s.server);
  end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(keeps_connections),
      cmocka_unit_test(adds_and_strips_headers),
      cmocka_unit_test(replaces_the_service_time_of_another_proxy),
      cmocka_unit_test(keeps_the_clients_request_id),
      cmocka_unit_test(passes_on_no_certificate_that_a_client_claims),
      cmocka_unit_test(answers_pipelined_requests_in_order),
      cmocka_unit_test(passes_chunks_and_trailers),
      cmocka_unit_test(reads_a_head_in_pieces),
      cmocka_unit_test(knows_bodiless_responses),
      cmocka_unit_test(relays_100_continue),
      cmocka_unit_test(ends_after_a_final_answer_to_expect),
      cmocka_unit_test(relays_an_early_answer),
      cmocka_unit_test(serves_http10_clients),
      cmocka_unit_test(keeps_http10_connections_alive_on_request),
      cmocka_unit_test(honours_connection_close),
      cmocka_unit_test(answers_a_half_closed_client),
      cmocka_unit_test(answers_a_client_that_half_closes_at_once),
      cmocka_unit_test(names_the_destination_for_a_client_without_host),
      cmocka_unit_test(frames_a_body_that_ends_with_the_connection),
      cmocka_unit_test(leaves_a_body_open_for_http10),
      cmocka_unit_test(tunnels_after_101),
      cmocka_unit_test(goes_on_when_an_upgrade_is_refused),
      cmocka_unit_test(does_not_pass_h2c_upgrades),
      cmocka_unit_test(closes_upstream_when_the_client_leaves),
      cmocka_unit_test(notices_that_a_one_shot_client_leaves),
      cmocka_unit_test(cuts_a_broken_response),
      cmocka_unit_test(passes_on_an_answer_that_comes_with_the_connection),
      cmocka_unit_test(answers_502_for_a_malformed_response),
      cmocka_unit_test(answers_503_when_the_upstream_closes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
