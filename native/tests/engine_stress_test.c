/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything at once, under the sanitizers: clients of all manners, a configuration that changes all the time,
 * workloads that come and go, two workers. No well-behaved request may fail, no byte may change, nothing may be left
 * over.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "engine_rig.h"

enum { CLIENTS = 6, ROUNDS = 60, MAX_BODY = 200000 };

static uint16_t http_port, backend_port;
static atomic_bool over;

typedef struct message {
  size_t n;
  char *body;
} message;

/* Read a message with content-length; false at the end of data. */
static bool read_message(int fd, char *head, size_t size, message *out) {
  size_t n = 0;
  do {
    if (n == size - 1 || recv(fd, head + n, 1, 0) != 1)
      return false;
    head[++n] = '\0';
  } while (n < 4 || memcmp(head + n - 4, "\r\n\r\n", 4) != 0);
  const char *length = strcasestr(head, "content-length: ");
  out->n = length ? strtoul(length + 16, NULL, 10) : 0;
  for (size_t at = 0; at < out->n;) {
    ssize_t got = recv(fd, out->body + at, out->n - at, 0);
    if (got <= 0)
      return false;
    at += (size_t)got;
  }
  return true;
}

/* ---- the server: a thread per connection, which echoes bodies and closes now and then ---- */

static void *serve_connection(void *argument) {
  int fd = (int)(intptr_t)argument;
  char head[4096], line[64];
  message m = {.body = malloc(MAX_BODY)};
  for (unsigned served = 0; read_message(fd, head, sizeof head, &m); served++) {
    bool last = served % 17 == 16;
    snprintf(line, sizeof line, "HTTP/1.1 200 OK\r\n%scontent-length: %zu\r\n\r\n", last ? "connection: close\r\n" : "",
             m.n);
    if (send(fd, line, strlen(line), MSG_NOSIGNAL | MSG_MORE) < 0)
      break;
    size_t at = 0;
    for (ssize_t n; at < m.n && (n = send(fd, m.body + at, m.n - at, MSG_NOSIGNAL)) > 0;)
      at += (size_t)n;
    if (at < m.n || last)
      break;
  }
  free(m.body);
  close(fd);
  return NULL;
}

static void *serve(void *argument) {
  int listener = *(int *)argument;
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  while (!over) {
    if (!readable_within(listener, 20))
      continue;
    pthread_t thread;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0 && pthread_create(&thread, &detached, serve_connection, (void *)(intptr_t)fd) != 0)
      close(fd);
  }
  pthread_attr_destroy(&detached);
  return NULL;
}

/* ---- clients ---- */

typedef struct client {
  unsigned seed;
  unsigned failures;
} client;

static bool try_dial(int *out) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(http_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct timeval wait = {.tv_sec = 10};
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  *out = fd;
  return connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* A well-behaved request, checked to the byte. */
static bool good_request(int fd, unsigned *seed, message *m, char *sent) {
  char head[4096];
  size_t n = (size_t)rand_r(seed) % 4 ? (size_t)rand_r(seed) % 300 : (size_t)rand_r(seed) % MAX_BODY;
  for (size_t i = 0; i < n; i++)
    sent[i] = (char)(i * 31 + *seed);
  snprintf(head, sizeof head, "PUT /%u HTTP/1.1\r\nHost: h%u\r\ncontent-length: %zu\r\n\r\n", *seed, *seed % 3, n);
  if (send(fd, head, strlen(head), MSG_NOSIGNAL) < 0)
    return false;
  for (size_t at = 0; at < n;) {
    ssize_t done = send(fd, sent + at, n - at, MSG_NOSIGNAL);
    if (done <= 0)
      return false;
    at += (size_t)done;
  }
  return read_message(fd, head, sizeof head, m) && strncmp(head, "HTTP/1.1 200", 12) == 0 && m->n == n &&
         memcmp(m->body, sent, n) == 0;
}

/* Leave at some bad moment. */
static void bad_request(int fd, unsigned *seed) {
  static const char *const starts[] = {
      "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
      "PUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 1000\r\n\r\nsome",
      "GET / HT",
      "garbage\r\n\r\n",
      "PUT / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
      "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
  };
  const char *start = starts[(size_t)rand_r(seed) % COUNT(starts)];
  struct linger hard = {.l_onoff = 1};
  (void)send(fd, start, strlen(start), MSG_NOSIGNAL);
  if (rand_r(seed) % 2)
    sleep_ms(rand_r(seed) % 3);
  if (rand_r(seed) % 2)
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
}

static void *be_client(void *argument) {
  client *c = argument;
  message m = {.body = malloc(MAX_BODY)};
  char *sent = malloc(MAX_BODY);
  for (int round = 0; round < ROUNDS; round++) {
    int fd;
    if (!try_dial(&fd)) {
      c->failures++;
    } else if (rand_r(&c->seed) % 3 == 0) {
      bad_request(fd, &c->seed);
    } else {
      for (int i = 1 + rand_r(&c->seed) % 6; i > 0; i--)
        c->failures += !good_request(fd, &c->seed, &m, sent);
    }
    close(fd);
  }
  free(m.body);
  free(sent);
  return NULL;
}

/* ---- the configuration ---- */

static void change_something(rig *r, unsigned turn) {
  na_builder *b = rig_change(r);
  char name[8], domain[8];
  snprintf(name, sizeof name, "c%u", turn % 4);
  snprintf(domain, sizeof domain, "h%u", turn % 3);
  add_cluster(b, name, backend_port);
  if (turn % 5 == 0) /* endpoints come and go, but one always works */
    assert_int_equal(na_builder_endpoints(b, name, (na_endpoint[]){endpoint_at(backend_port), endpoint_at(1)}, 2), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost(domain, domain, name, NULL)), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", name, NULL)), 0);
  assert_int_equal(na_builder_commit(b), 0);
}

static void come_and_go(rig *r, unsigned turn) {
  static na_stat_row rows[64];
  static na_connection_info infos[64];
  static na_access_record records[64];
  if (turn % 2)
    (void)na_workload_add(r->engine, 2, -1, "v", NULL, 0);
  else
    (void)na_workload_remove(r->engine, 2, 10);
  (void)na_workload_gone(r->engine, 2);
  (void)na_engine_drain_stats(r->engine, rows, COUNT(rows));
  (void)na_engine_drain_access(r->engine, records, COUNT(records));
  (void)na_engine_connections(r->engine, infos, COUNT(infos));
}

static int reuseport_listener(uint16_t *port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(*port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(fd, 256), 0);
  *port = port_of(fd);
  return fd;
}

static void nothing_fails_while_everything_changes(void **state) {
  na_config config = {.workers = 2, .access_log = 1, .access_records = 64, .stat_rows = 64};
  rig r = rig_start(&config);
  int listener = listen_any(&backend_port);
  int first = reuseport_listener(&http_port);
  rig_serve(&r, http_port, NA_PROTOCOL_DETECT, backend_port);
  for (unsigned i = 0; i < 4; i++)
    change_something(&r, i);
  assert_int_equal(na_workload_listen(r.engine, 1, NA_LISTENER_PLAIN, 0, first), 0);
  assert_int_equal(na_workload_listen(r.engine, 1, NA_LISTENER_PLAIN, 1, reuseport_listener(&http_port)), 0);

  pthread_t server, threads[CLIENTS];
  client clients[CLIENTS];
  pthread_create(&server, NULL, serve, &listener);
  for (unsigned i = 0; i < CLIENTS; i++) {
    clients[i] = (client){.seed = i + 1};
    pthread_create(&threads[i], NULL, be_client, &clients[i]);
  }
  for (unsigned turn = 0, left = CLIENTS; left; turn++) {
    change_something(&r, turn);
    come_and_go(&r, turn);
    sleep_ms(2);
    if (pthread_tryjoin_np(threads[CLIENTS - left], NULL) == 0)
      left--;
  }
  for (unsigned i = 0; i < CLIENTS; i++)
    assert_int_equal(clients[i].failures, 0);
  await_counter(&r, "downstream_cx_active", 0);
  await_counter(&r, "downstream_rq_active", 0);
  assert_int_equal(counter(&r, "on_demand_waiting"), 0);
  assert_true(counter(&r, "downstream_rq_total") > CLIENTS * ROUNDS);
  rig_stop(&r);
  over = true;
  pthread_join(server, NULL);
  close(listener);
  sleep_ms(50); /* the server's connections see their end */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_fails_while_everything_changes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
