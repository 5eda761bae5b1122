/* SPDX-License-Identifier: Apache-2.0
 *
 * Workers that share a listening socket share its connections.
 */
#include <pthread.h>

#include "engine.h"
#include "engine_rig.h"

enum { WORKERS = 2, HELD = 24, CLIENTS = 8, CONNECTIONS = 60 };

typedef struct scene {
  rig r;
  uint16_t port;
} scene;

static scene begin(void) {
  const na_config config = {.workers = WORKERS};
  scene s = {.r = rig_start(&config)};
  int shared = listen_any(&s.port);
  rig_serve(&s.r, s.port, NA_PROTOCOL_HTTP, closed_port());
  for (uint32_t i = 0; i < WORKERS; i++)
    assert_int_equal(na_workload_listen(s.r.engine, 1, NA_LISTENER_PLAIN, i, i ? shared : dup(shared)), 0);
  return s;
}

static uint64_t accepted_by(const scene *s, uint32_t worker) {
  return s->r.engine->workers[worker].counters.values[NA_COUNTER_DOWNSTREAM_CX];
}

static void assert_shared(const scene *s, uint64_t all, uint64_t each) {
  await_counter(&s->r, "downstream_cx_total", all);
  for (uint32_t i = 0; i < WORKERS; i++)
    if (accepted_by(s, i) < each)
      fail_msg("worker %u got %u of %u connections", i, (unsigned)accepted_by(s, i), (unsigned)all);
}

/* Both always wait when a connection comes: the kernel alone would wake the same one each time. */
static void take_turns_at_rest(void **state) {
  scene s = begin();
  int held[HELD];
  for (uint64_t i = 0; i < HELD; i++) {
    held[i] = dial(s.port);
    await_counter(&s.r, "downstream_cx_total", i + 1);
    sleep_ms(2); /* until it has gone back to waiting */
  }
  assert_shared(&s, HELD, HELD / 3);
  for (int i = 0; i < HELD; i++)
    close(held[i]);
  rig_stop(&s.r);
}

/* A client that opens one connection after the other, and is told that nobody is there. */
static void *ask_and_close(void *argument) {
  char answer[512];
  for (int i = 0; i < CONNECTIONS; i++) {
    int fd = dial(*(const uint16_t *)argument);
    put(fd, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    while (recv(fd, answer, sizeof answer, 0) > 0)
      ;
    close(fd);
  }
  return NULL;
}

static void share_under_load(void **state) {
  scene s = begin();
  pthread_t clients[CLIENTS];
  for (int i = 0; i < CLIENTS; i++)
    assert_int_equal(pthread_create(&clients[i], NULL, ask_and_close, &s.port), 0);
  for (int i = 0; i < CLIENTS; i++)
    pthread_join(clients[i], NULL);
  assert_shared(&s, CLIENTS * CONNECTIONS, CLIENTS * CONNECTIONS / 5);
  rig_stop(&s.r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(take_turns_at_rest),
      cmocka_unit_test(share_under_load),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
