/* SPDX-License-Identifier: Apache-2.0
 *
 * Ending: draining and removing workloads, stopping engines.
 */
#include <fcntl.h>
#include <pthread.h>

#include "scene_rig.h"

static void await_gone(rig *r, uint32_t id) {
  for (int i = 0; i < RIG_WAIT_MS && !na_workload_gone(r->engine, id); i++)
    sleep_ms(1);
  assert_int_equal(na_workload_gone(r->engine, id), 1);
}

static void expect_refused(uint16_t port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), -1);
  assert_int_equal(errno, ECONNREFUSED);
  close(fd);
}

static void a_removed_workload_finishes_its_requests(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int busy = dial(s.port), idle = dial(s.port);
  put(busy, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  await_counter(&s.r, "downstream_cx_active", 2);
  assert_int_equal(na_workload_remove(s.r.engine, 1, 60000), 0);
  assert_int_equal(na_workload_remove(s.r.engine, 1, 60000), -ENOENT);
  assert_int_equal(na_workload_listen(s.r.engine, 1, NA_LISTENER_PLAIN, 0, dup(s.listener)), -ENOENT);
  expect_end(idle);
  expect_refused(s.port);
  assert_int_equal(na_workload_gone(s.r.engine, 1), 0);
  assert_int_equal(na_workload_add(s.r.engine, 1, -1, "v", NULL, 0), -EEXIST);
  put(server, OK_HELLO);
  assert_has(expect_head(busy, "HTTP/1.1 200 OK"), "connection: close\r\n");
  expect(busy, "hello");
  expect_end(busy);
  expect_end(server); /* not kept for anybody */
  await_gone(&s.r, 1);
  assert_int_equal(na_workload_add(s.r.engine, 1, -1, "v", NULL, 0), 0);
  close(busy);
  close(idle);
  close(server);
  scene_end(&s);
}

/* One request that waits for a new connection to the server. */
static void serve_next(const scene *s) {
  int server = answer(s->listener);
  get_head(server);
  put(server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
  close(server);
}

/* Requests that are there when the workload is told to go are served, whatever the worker has heard of first. */
static void a_removed_workload_answers_what_waits_to_be_read(void **state) {
  enum { N = 64 };
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int clients[N];
  for (int i = 0; i < N; i++) {
    clients[i] = dial(s.port);
    put(clients[i], GET_ROOT);
    serve_next(&s);
    expect_head(clients[i], "HTTP/1.1 200 OK");
    expect(clients[i], "hello");
  }
  for (int i = 0; i < N; i++)
    put(clients[i], GET_ROOT);
  assert_int_equal(na_workload_remove(s.r.engine, 1, 60000), 0);
  for (int i = 0; i < N; i++)
    serve_next(&s);
  for (int i = 0; i < N; i++) {
    expect_head(clients[i], "HTTP/1.1 200 OK");
    expect(clients[i], "hello");
    expect_end(clients[i]);
    close(clients[i]);
  }
  await_gone(&s.r, 1);
  scene_end(&s);
}

/* The client was not told with the answer: it may ask once more. */
static void who_was_told_to_come_again_may_do_so(void **state) {
  for (int again = 0; again < 2; again++) {
    scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
    int client = dial(s.port);
    put(client, GET_ROOT);
    int server = answer(s.listener);
    get_head(server);
    put(server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel");
    expect_head(client, "HTTP/1.1 200 OK");
    assert_int_equal(na_workload_remove(s.r.engine, 1, 60000), 0);
    put(server, "lo");
    expect(client, "hello");
    if (again) {
      put(client, GET_ROOT);
      serve_next(&s);
      assert_has(expect_head(client, "HTTP/1.1 200 OK"), "connection: close\r\n");
      expect(client, "hello");
    }
    expect_end(client); /* nobody sits out the 60 s */
    await_gone(&s.r, 1);
    close(client);
    close(server);
    scene_end(&s);
  }
}

static void a_drain_ends_at_its_deadline(void **state) {
  for (int protocol = NA_PROTOCOL_TCP; protocol <= NA_PROTOCOL_HTTP; protocol++) {
    scene s = scene_of(NULL, (enum na_protocol)protocol);
    int client = dial(s.port);
    put(client, GET_ROOT);
    int server = answer(s.listener);
    get_head(server);
    uint64_t start = now_ms();
    assert_int_equal(na_workload_remove(s.r.engine, 1, 100), 0);
    expect_reset(client);
    assert_in_range(now_ms() - start, 90, 2000);
    await_gone(&s.r, 1);
    assert_int_equal(counter(&s.r, "downstream_cx_drain_cut_total"), 1);
    close(client);
    close(server);
    scene_end(&s);
  }
}

static void removing_frees_the_namespace(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), next = dup(netns);
  close(next);
  assert_int_equal(na_workload_add(s.r.engine, 2, netns, "v", NULL, 0), 0);
  assert_int_equal(fcntl(next, F_GETFD), FD_CLOEXEC); /* the engine's own copy */
  assert_int_equal(na_workload_remove(s.r.engine, 2, 1000), 0);
  await_gone(&s.r, 2);
  assert_int_equal(fcntl(next, F_GETFD), -1);
  assert_int_equal(na_workload_add(s.r.engine, 3, s.listener, "v", NULL, 0), -EINVAL); /* no namespace at all */
  close(netns);
  scene_end(&s);
}

static void *stop_engine(void *argument) {
  return (void *)(intptr_t)na_engine_stop(argument, 60000);
}

static void stopping_lets_requests_end(void **state) {
  scene s = scene_of(NULL, NA_PROTOCOL_HTTP);
  int client = dial(s.port);
  pthread_t stopper;
  put(client, GET_ROOT);
  int server = answer(s.listener);
  get_head(server);
  uint64_t start = now_ms();
  assert_int_equal(pthread_create(&stopper, NULL, stop_engine, s.r.engine), 0);
  sleep_ms(50);
  expect_refused(s.port);
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  expect_end(client);
  void *result;
  pthread_join(stopper, &result);
  assert_null(result);
  assert_true(now_ms() - start < 5000); /* it does not sit out the 60 s */
  na_engine_free(s.r.engine);
  close(client);
  close(server);
  close(s.listener);
}

/* Descriptors of one socket on two workers: closing one must not leave its worker hearing of the other's connections.
 */
static void workers_may_share_a_socket(void **state) {
  na_config config = {.workers = 2};
  rig r = rig_start(&config);
  uint16_t port, backend;
  int listener = listen_any(&backend), shared = listen_any(&port);
  int kept = dup(shared);
  rig_serve(&r, port, NA_PROTOCOL_HTTP, backend);
  assert_int_equal(na_workload_add(r.engine, 2, -1, "v", NULL, 0), 0);
  assert_int_equal(na_workload_listen(r.engine, 1, NA_LISTENER_PLAIN, 0, dup(shared)), 0);
  assert_int_equal(na_workload_listen(r.engine, 2, NA_LISTENER_PLAIN, 1, shared), 0);
  assert_int_equal(na_workload_remove(r.engine, 2, 0), 0);
  await_gone(&r, 2);
  for (int i = 0; i < 10; i++) {
    int client = dial(port);
    put(client, GET_ROOT);
    int server = answer(listener);
    get_head(server);
    close(client);
    close(server);
  }
  assert_int_equal(na_workload_remove(r.engine, 1, 0), 0);
  await_gone(&r, 1);
  int unheard = dial(port); /* the socket still listens, but for us */
  sleep_ms(20);
  assert_int_equal(counter(&r, "downstream_cx_total"), 10);
  close(unheard);
  close(kept);
  close(listener);
  rig_stop(&r);
}

static void checks_its_arguments(void **state) {
  na_engine *engine;
  uint16_t port;
  na_config bad = {.workers = 1000}, good = {.workers = 2};
  assert_int_equal(na_engine_new(&bad, &engine), -EINVAL);
  assert_int_equal(na_engine_new(&good, &engine), 0);
  assert_int_equal(na_workload_add(engine, 0, -1, "v", NULL, 0), -EINVAL);
  assert_int_equal(na_workload_add(engine, 1, -1, "v", NULL, 0), 0);
  assert_int_equal(na_workload_add(engine, 1, -1, "v", NULL, 0), -EEXIST);
  /* listeners may come before the start */
  assert_int_equal(na_workload_listen(engine, 1, NA_LISTENER_PLAIN, 1, listen_any(&port)), 0);
  assert_int_equal(na_workload_listen(engine, 1, NA_LISTENER_PLAIN, 2, listen_any(&port)), -EINVAL);
  assert_int_equal(na_workload_listen(engine, 9, NA_LISTENER_PLAIN, 0, listen_any(&port)), -ENOENT);
  assert_int_equal(na_engine_start(engine), 0);
  assert_int_equal(na_engine_start(engine), -EALREADY);
  assert_int_equal(na_workload_gone(engine, 42), 1);
  na_engine_free(engine); /* stops by itself */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_removed_workload_finishes_its_requests),
      cmocka_unit_test(a_removed_workload_answers_what_waits_to_be_read),
      cmocka_unit_test(who_was_told_to_come_again_may_do_so),
      cmocka_unit_test(a_drain_ends_at_its_deadline),
      cmocka_unit_test(removing_frees_the_namespace),
      cmocka_unit_test(stopping_lets_requests_end),
      cmocka_unit_test(workers_may_share_a_socket),
      cmocka_unit_test(checks_its_arguments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
