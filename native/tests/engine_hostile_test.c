/* SPDX-License-Identifier: Apache-2.0
 *
 * Hostile and unlucky peers: slow, silent, greedy, malformed. What they get is bounded, counted and named.
 */
#include <malloc.h>
#include <pthread.h>
#include <sys/resource.h>

#include "scene_rig.h"

/* ---- requests that must be refused; none of their bytes may reach the server ---- */

static const struct {
  const char *what, *status, *bytes;
} refused[] = {
    {"TE and CL", "400",
     "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
    {"two CLs", "400", "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde"},
    {"signed CL", "400", "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: +5\r\n\r\nabcde"},
    {"TE not chunked alone", "501", "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
    {"TE in HTTP/1.0", "400", "POST / HTTP/1.0\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
    {"nominated CL", "400",
     "POST / HTTP/1.1\r\nHost: a\r\nconnection: content-length\r\ncontent-length: 5\r\n\r\nabcde"},
    {"space before colon", "400", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"},
    {"folded header", "400", "GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n 2\r\n\r\n"},
    {"bare LF", "400", "GET / HTTP/1.1\nHost: a\n\n"},
    {"bare CR", "400", "GET / HTTP/1.1\r\nHost: a\r\nx: 1\r2\r\n\r\n"},
    {"no Host", "400", "GET / HTTP/1.1\r\n\r\n"},
    {"two Hosts", "400", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
    {"fragment", "400", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"},
    {"CONNECT", "501", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nbytes"},
    {"future version", "505", "GET / HTTP/3.0\r\nHost: a\r\n\r\n"},
};

static void refuses_ambiguous_requests(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  for (size_t i = 0; i < COUNT(refused); i++) {
    int client = dial(s.port);
    char status[32];
    put(client, refused[i].bytes);
    snprintf(status, sizeof status, "HTTP/1.1 %s ", refused[i].status);
    const char *head = get_head(client);
    if (strncmp(head, status, strlen(status)) != 0)
      fail_msg("%s: %s", refused[i].what, head);
    if (strcmp(refused[i].what, "CONNECT") != 0)
      assert_has(head, "connection: close\r\n");
    close(client);
  }
  expect_silence(s.listener, 20);
  scene_end(&s);
}

static void refuses_oversized_heads(void **state) {
  na_config config = {.max_head_bytes = 4096, .max_request_line = 1024, .max_headers = 10};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  char line[2048], *big = malloc(8192);
  memset(line, 'a', sizeof line);
  line[sizeof line - 1] = '\0';
  int client = dial(s.port);
  put(client, "GET /");
  put(client, line);
  assert_has(get_head(client), "HTTP/1.1 414 ");
  close(client);

  client = dial(s.port);
  put(client, "GET / HTTP/1.1\r\nHost: a\r\n");
  for (int i = 0; i < 3; i++) {
    put(client, "x: ");
    put(client, line);
    put(client, "\r\n");
  }
  assert_has(get_head(client), "HTTP/1.1 431 ");
  close(client);

  client = dial(s.port);
  put(client, "GET / HTTP/1.1\r\nHost: a\r\n");
  for (int i = 0; i < 10; i++)
    put(client, "x: y\r\n");
  put(client, "\r\n");
  assert_has(get_head(client), "HTTP/1.1 431 ");
  close(client);
  expect_silence(s.listener, 20);
  free(big);
  scene_end(&s);
}

static void refuses_bad_chunks_on_the_way(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int client = dial(s.port);
  put(client, "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
  int server = answer(s.listener);
  get_head(server);
  expect(server, "3\r\nabc\r\n");
  put(client, "-1\r\nGET /smuggled HTTP/1.1\r\n");
  expect_head(client, "HTTP/1.1 400 Bad Request");
  expect_end(server); /* nothing of it arrived */
  close(client);
  close(server);
  scene_end(&s);
}

static void refuses_oversized_responses(void **state) {
  na_config config = {.max_head_bytes = 4096};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  static const char status[] = "HTTP/1.1 200 OK\r\n";
  enum { LINES = 4, LINE = 1500 };
  char head[sizeof status - 1 + LINES * LINE];
  memset(head, 'a', sizeof head);
  memcpy(head, status, sizeof status - 1);
  for (char *line = head + sizeof status - 1; line < head + sizeof head; line += LINE) {
    memcpy(line, "x: ", 3);
    memcpy(line + LINE - 2, "\r\n", 2);
  }
  int client = dial(s.port);
  put(client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  put_n(server, head, sizeof head); /* at once: the engine hangs up amid it */
  expect_head(client, "HTTP/1.1 502 Bad Gateway");
  close(client);
  close(server);
  scene_end(&s);
}

/* ---- slow peers ---- */

static void times_slow_heads_out(void **state) {
  na_config config = {.head_timeout_ms = 80, .access_log = 1};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  uint64_t start = now_ms();
  int client = dial(s.port);
  put(client, "GET / HTTP/1.1\r\n");
  for (int i = 0; i < 5; i++) { /* a byte now and then does not help */
    sleep_ms(10);
    put(client, "x");
  }
  expect_head(client, "HTTP/1.1 408 Request Timeout");
  assert_in_range(now_ms() - start, 75, 1000);
  assert_int_equal(counter(&s.r, "downstream_rq_head_timeout_total"), 1);
  assert_string_equal(get_record(&s.r).detail, "request_header_timeout");
  close(client);
  /* also for the second request of a connection, and for the very first byte */
  client = dial(s.port);
  put(client, "G");
  expect_head(client, "HTTP/1.1 408 Request Timeout");
  close(client);
  client = dial(s.port);
  put(client, GET_ROOT "GET");
  int server = answer(s.listener);
  get_head(server);
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  expect_head(client, "HTTP/1.1 408 Request Timeout");
  close(client);
  close(server);
  scene_end(&s);
}

static void times_idle_requests_out(void **state) {
  na_config config = {.request_idle_timeout_ms = 80};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  int client = dial(s.port);
  put(client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  expect_head(client, "HTTP/1.1 504 Gateway Timeout"); /* a silent server */
  expect(client, "stream timeout");
  close(server);
  put(client, "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 10\r\n\r\nslow");
  server = answer(s.listener);
  get_head(server);
  expect_head(client, "HTTP/1.1 408 Request Timeout"); /* a silent client */
  close(server);
  close(client);
  client = dial(s.port);
  put(client, GET_ROOT);
  server = answer(s.listener);
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n");
  expect_head(client, "HTTP/1.1 200 OK");
  for (int i = 0; i < 4; i++) { /* slow is not idle */
    sleep_ms(40);
    put(server, "b");
    expect(client, "b");
  }
  expect_reset(client);
  assert_int_equal(counter(&s.r, "downstream_rq_idle_timeout_total"), 3);
  close(client);
  close(server);
  scene_end(&s);
}

static void closes_idle_connections(void **state) {
  na_config config = {.idle_timeout_ms = 60};
  scene s = scene_of(&config, NA_PROTOCOL_HTTP);
  int silent = dial(s.port), used = dial(s.port);
  put(used, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  sleep_ms(80); /* in use: not idle */
  put(server, OK_HELLO);
  expect_head(used, "HTTP/1.1 200 OK");
  expect(used, "hello");
  expect_end(silent);
  expect_end(used);
  assert_int_equal(counter(&s.r, "downstream_cx_idle_timeout_total"), 2);
  close(silent);
  close(used);
  close(server);
  scene_end(&s);
}

/* The sanitizer's allocator, when the test is built with it. */
extern size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t heap_in_use(void) {
  return __sanitizer_get_current_allocated_bytes ? __sanitizer_get_current_allocated_bytes() : mallinfo2().uordblks;
}

static void *respond_big(void *argument) {
  int server = *(int *)argument;
  char block[65536] = {0};
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\ncontent-length: 268435456\r\n\r\n");
  for (int i = 0; i < 4096; i++)
    if (send(server, block, sizeof block, MSG_NOSIGNAL) < 0)
      return NULL; /* the engine does not take it: the send timed out, or it was cut off */
  return argument;
}

/* A client that never reads what it asked for holds back the server, not our memory. */
static void a_client_that_never_reads_costs_little(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int small = 4096, client = dial(s.port);
  pthread_t thread;
  setsockopt(client, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  put(client, GET_ROOT);
  int server = answer(s.listener);
  struct timeval wait = {.tv_usec = 300000};
  setsockopt(server, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  size_t before = heap_in_use();
  assert_true(before > 0);
  pthread_create(&thread, NULL, respond_big, &server);
  void *all_sent;
  pthread_join(thread, &all_sent);
  assert_null(all_sent);
  assert_true(heap_in_use() < before + 512 * 1024);
  close(client);
  await_counter(&s.r, "downstream_rq_active", 0);
  close(server);
  scene_end(&s);
}

/* A flood of pipelined requests is read no further than the one in progress needs. */
static void a_pipelined_flood_is_held_back(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int client = dial(s.port);
  put(client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  size_t sent = 0;
  struct pollfd wait = {.fd = client, .events = POLLOUT};
  while (poll(&wait, 1, 100) == 1) {
    ssize_t n = send(client, GET_ROOT, strlen(GET_ROOT), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0)
      sent += (size_t)n;
    assert_true(sent < 64u * 1024 * 1024);
  }
  assert_int_equal(counter(&s.r, "downstream_rq_total"), 1);
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  get_head(server); /* the next one, and on */
  close(client);
  close(server);
  scene_end(&s);
}

/* ---- bodies ---- */

typedef struct transfer {
  int fd;
  const uint8_t *bytes;
  size_t n;
} transfer;

static void *send_all(void *argument) {
  transfer *t = argument;
  put_n(t->fd, t->bytes, t->n);
  return NULL;
}

static void slow_get(int fd, uint8_t *out, size_t n) {
  for (size_t at = 0; at < n; at += 50000) {
    get_n(fd, out + at, n - at < 50000 ? n - at : 50000);
    sleep_ms(1);
  }
}

static void moves_large_bodies_with_slow_readers(void **state) {
  enum { SIZE = 4 << 20 };
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  uint8_t *sent = malloc(SIZE), *got = malloc(SIZE);
  srand(7);
  for (size_t i = 0; i < SIZE; i++)
    sent[i] = (uint8_t)rand();
  int client = dial(s.port);
  pthread_t thread;
  put(client, "PUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 4194304\r\n\r\n");
  int server = answer(s.listener);
  get_head(server);
  transfer up = {client, sent, SIZE}, down = {server, sent, SIZE};
  pthread_create(&thread, NULL, send_all, &up);
  slow_get(server, got, SIZE);
  pthread_join(thread, NULL);
  assert_memory_equal(sent, got, SIZE);
  put(server, "HTTP/1.1 200 OK\r\ncontent-length: 4194304\r\n\r\n");
  expect_head(client, "HTTP/1.1 200 OK");
  memset(got, 0, SIZE);
  pthread_create(&thread, NULL, send_all, &down);
  slow_get(client, got, SIZE);
  pthread_join(thread, NULL);
  assert_memory_equal(sent, got, SIZE);
  exchange(client, server);
  free(sent);
  free(got);
  close(client);
  close(server);
  scene_end(&s);
}

/* ---- descriptors ---- */

static void survives_running_out_of_descriptors(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  struct rlimit before, tight;
  int clients[8];
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
  for (int i = 0; i < 8; i++)
    clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  tight = before;
  tight.rlim_cur = (rlim_t)clients[7] + 4;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(s.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  for (int i = 0; i < 8; i++)
    assert_int_equal(connect(clients[i], (struct sockaddr *)&address, sizeof address), 0);
  for (int i = 0; i < RIG_WAIT_MS && !counter(&s.r, "downstream_cx_no_descriptor_total"); i++)
    sleep_ms(1);
  assert_true(counter(&s.r, "downstream_cx_no_descriptor_total") > 0);
  for (int i = 0; i < 8; i++)
    close(clients[i]);
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
  await_counter(&s.r, "downstream_cx_active", 0);
  int client = dial(s.port); /* works again */
  put(client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  close(client);
  close(server);
  scene_end(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refuses_ambiguous_requests),
      cmocka_unit_test(refuses_oversized_heads),
      cmocka_unit_test(refuses_bad_chunks_on_the_way),
      cmocka_unit_test(refuses_oversized_responses),
      cmocka_unit_test(times_slow_heads_out),
      cmocka_unit_test(times_idle_requests_out),
      cmocka_unit_test(closes_idle_connections),
      cmocka_unit_test(a_client_that_never_reads_costs_little),
      cmocka_unit_test(a_pipelined_flood_is_held_back),
      cmocka_unit_test(moves_large_bodies_with_slow_readers),
      cmocka_unit_test(survives_running_out_of_descriptors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
