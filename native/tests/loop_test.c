/* SPDX-License-Identifier: Apache-2.0
 *
 * The event loop: descriptors that epoll is told of late, if at all.
 */
#include "loop.h"

#include <sys/socket.h>
#include <unistd.h>

#include "cmocka_common.h"

typedef struct probe {
  na_watch watch;
  int calls;
  uint32_t events;
  int ends[2]; /* the watched one, its peer */
} probe;

static na_loop loop;

static void nothing(void *context) {}

static void note(na_watch *watch, uint32_t events) {
  probe *p = na_container_of(watch, probe, watch);
  p->calls++;
  p->events |= events;
}

static void begin(void) {
  assert_int_equal(na_loop_init(&loop, nothing, NULL), 0);
}

static void watch_late(probe *p) {
  *p = (probe){0};
  na_watch_init(&p->watch, note);
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p->ends), 0);
  assert_int_equal(na_loop_watch_late(&loop, &p->watch, p->ends[0]), 0);
}

static void end_probe(probe *p) {
  na_loop_unwatch(&loop, &p->watch);
  close(p->ends[0]);
  close(p->ends[1]);
}

/* A turn that does not wait for anything. */
static void turn_now(void) {
  probe soon = {0};
  na_watch_init(&soon.watch, note);
  na_loop_again(&loop, &soon.watch);
  assert_int_equal(na_loop_turn(&loop), 0);
}

static void tells_of_late_ones_in_their_time(void **state) {
  probe p;
  begin();
  watch_late(&p);
  assert_int_equal(write(p.ends[1], "x", 1), 1);
  uint64_t start = loop.now_us;
  for (int i = 0; i < 3 && !p.calls; i++)
    assert_int_equal(na_loop_turn(&loop), 0); /* without an end of its own the wait would be for ever */
  assert_int_equal(p.calls, 1);
  assert_true(p.events & EPOLLIN);
  assert_true(loop.now_us - start >= (NA_LOOP_LATE_MS - 1) * 1000);
  end_probe(&p);
  na_loop_close(&loop);
}

static void tells_at_once_when_settled(void **state) {
  probe p;
  begin();
  watch_late(&p);
  na_loop_settle(&loop, &p.watch);
  na_loop_settle(&loop, &p.watch);
  assert_int_equal(write(p.ends[1], "x", 1), 1);
  turn_now();
  assert_int_equal(p.calls, 1);
  end_probe(&p);
  na_loop_close(&loop);
}

static void hears_of_room_when_asked(void **state) {
  probe p;
  begin();
  watch_late(&p);
  assert_int_equal(na_loop_watch_writable(&loop, &p.watch), 0);
  turn_now();
  assert_true(p.events & EPOLLOUT);
  end_probe(&p);
  na_loop_close(&loop);
}

static void forgets_what_is_unwatched(void **state) {
  probe p, other;
  begin();
  watch_late(&p);
  watch_late(&other);
  end_probe(&p);
  assert_int_equal(write(other.ends[1], "x", 1), 1);
  for (int i = 0; i < 3 && !other.calls; i++)
    assert_int_equal(na_loop_turn(&loop), 0);
  assert_int_equal(other.calls, 1);
  assert_int_equal(p.calls, 0);
  assert_int_equal(loop.late_n, 0);
  end_probe(&other);
  na_loop_close(&loop);
}

static void tells_at_once_when_there_are_too_many(void **state) {
  static probe probes[NA_LOOP_LATE + 1];
  probe *last = &probes[NA_LOOP_LATE];
  begin();
  for (int i = 0; i <= NA_LOOP_LATE; i++)
    watch_late(&probes[i]);
  assert_int_equal(last->watch.late, 0);
  assert_int_equal(write(last->ends[1], "x", 1), 1);
  turn_now();
  assert_int_equal(last->calls, 1);
  for (int i = 0; i <= NA_LOOP_LATE; i++)
    end_probe(&probes[i]);
  na_loop_close(&loop);
}

static void tells_of_failures(void **state) {
  probe p;
  begin();
  watch_late(&p);
  close(p.ends[0]);
  na_loop_settle(&loop, &p.watch);
  assert_int_equal(na_loop_turn(&loop), 0);
  assert_int_equal(p.events, EPOLLERR);
  na_loop_unwatch(&loop, &p.watch);
  close(p.ends[1]);
  na_loop_close(&loop);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tells_of_late_ones_in_their_time),
      cmocka_unit_test(tells_at_once_when_settled),
      cmocka_unit_test(hears_of_room_when_asked),
      cmocka_unit_test(forgets_what_is_unwatched),
      cmocka_unit_test(tells_at_once_when_there_are_too_many),
      cmocka_unit_test(tells_of_failures),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
