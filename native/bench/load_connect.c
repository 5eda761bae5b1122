/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections and nothing else: how long connect() takes the program that calls it. Blocking, as most programs connect,
 * one at a time, at a fixed rate: a proxy that cannot keep up would fill the listener's backlog, and dropped SYNs would
 * be measured. Each is reset afterwards, so that neither ports nor tables of connections fill with closed ones.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "load.h"
#include "net.h"

static void connect_once(load *l) {
  const struct linger reset = {.l_onoff = 1, .l_linger = 0};
  const struct sockaddr_in *target = &l->options.target;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    die("socket: %s", strerror(errno));
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  uint64_t before = clock_ns();
  int failed = connect(fd, (const struct sockaddr *)target, sizeof *target);
  uint64_t after = clock_ns();
  l->opened++;
  if (failed) {
    load_fail(l, LOAD_CONNECT, "cannot connect: %s", strerror(errno));
  } else {
    l->requests++;
    histogram_record(&l->latency, after - before);
  }
  close(fd);
}

static void sleep_until(uint64_t when) {
  struct timespec until = {.tv_sec = (time_t)(when / 1000000000), .tv_nsec = (long)(when % 1000000000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
    ;
}

/* What was due while an earlier connect() took its time is not made up for. */
static void connect_for(load *l, double seconds) {
  uint64_t interval = 1000000000 / l->options.rate, next = clock_ns();
  uint64_t end = next + (uint64_t)(seconds * 1e9);
  while (next < end) {
    sleep_until(next);
    connect_once(l);
    for (next += interval; next < clock_ns(); next += interval)
      l->missed++;
  }
}

void load_connects(load *l, void (*begin)(void)) {
  load_forget(l);
  connect_for(l, l->options.warm_up);
  load_forget(l);
  begin();
  connect_for(l, l->options.seconds);
}

const load_protocol load_connect = {.name = "connect", .connects = true};
