/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <time.h>
#include <unistd.h>

#include "syscalls.h"

void na_loop_update_clock(na_loop *loop) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  loop->now_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
  loop->now_ms = loop->now_us / 1000;
}

int na_loop_init(na_loop *loop, void (*begin)(void *context), void *context) {
  *loop = (na_loop){.begin = begin, .context = context};
  na_link_init(&loop->again);
  na_loop_update_clock(loop);
  na_wheel_init(&loop->wheel, loop->now_ms);
  loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  return loop->epoll_fd < 0 ? -errno : 0;
}

static void reap(na_loop *loop) {
  while (loop->graves) {
    na_grave *grave = loop->graves;
    loop->graves = grave->next;
    grave->fn(grave);
  }
}

void na_loop_close(na_loop *loop) {
  reap(loop);
  if (loop->epoll_fd >= 0)
    close(loop->epoll_fd);
  loop->epoll_fd = -1;
}

/* Tell epoll of those whose time has come. */
static void settle_due(na_loop *loop) {
  while (loop->late_n) {
    const na_late *late = &loop->late[loop->late_first];
    if (late->watch && late->due_ms > loop->now_ms)
      return;
    if (late->watch)
      na_loop_settle(loop, late->watch);
    loop->late_first = (loop->late_first + 1) % NA_LOOP_LATE;
    loop->late_n--;
  }
}

static int wait_ms(na_loop *loop) {
  settle_due(loop);
  if (!na_list_empty(&loop->again))
    return 0;
  uint64_t next = na_wheel_next(&loop->wheel);
  if (loop->late_n && loop->late[loop->late_first].due_ms < next)
    next = loop->late[loop->late_first].due_ms;
  if (next == NA_WHEEL_IDLE)
    return -1;
  if (next <= loop->now_ms)
    return 0;
  return next - loop->now_ms < INT_MAX ? (int)(next - loop->now_ms) : INT_MAX;
}

static void run_again(na_loop *loop) {
  na_link queue;
  na_list_take(&queue, &loop->again);
  while (!na_list_empty(&queue)) {
    na_watch *watch = na_container_of(queue.next, na_watch, again);
    uint32_t told = watch->told;
    na_link_remove(&watch->again);
    watch->told = 0;
    watch->fn(watch, told);
  }
}

int na_loop_turn(na_loop *loop) {
  struct epoll_event events[NA_LOOP_EVENTS];
  int n = na_sys_epoll_wait(loop->epoll_fd, events, NA_LOOP_EVENTS, wait_ms(loop));
  if (n < 0 && errno != EINTR)
    return -errno;
  na_loop_update_clock(loop);
  loop->begin(loop->context);
  for (int i = 0; i < n; i++) {
    na_watch *watch = events[i].data.ptr;
    if (watch->fd >= 0)
      watch->fn(watch, events[i].events);
  }
  na_wheel_advance(&loop->wheel, loop->now_ms);
  run_again(loop);
  reap(loop);
  return 0;
}

void na_watch_init(na_watch *watch, na_watch_fn *fn) {
  *watch = (na_watch){.fn = fn, .fd = -1};
  na_link_init(&watch->again);
}

int na_loop_watch(na_loop *loop, na_watch *watch, int fd, uint32_t interest) {
  assert(watch->fd < 0 && fd >= 0);
  watch->interest = EPOLLIN | EPOLLET | interest;
  if (!(interest & EPOLLEXCLUSIVE)) /* they exclude each other */
    watch->interest |= EPOLLRDHUP;
  struct epoll_event event = {.events = watch->interest, .data.ptr = watch};
  if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
    return -errno;
  watch->fd = fd;
  return 0;
}

int na_loop_watch_shared(na_loop *loop, na_watch *watch, int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
    return -errno;
  return na_loop_watch(loop, watch, fd, EPOLLEXCLUSIVE);
}

int na_loop_watch_late(na_loop *loop, na_watch *watch, int fd) {
  assert(watch->fd < 0 && fd >= 0);
  if (loop->late_n == NA_LOOP_LATE)
    return na_loop_watch(loop, watch, fd, 0);
  uint32_t at = (loop->late_first + loop->late_n++) % NA_LOOP_LATE;
  loop->late[at] = (na_late){watch, loop->now_ms + NA_LOOP_LATE_MS};
  watch->fd = fd;
  watch->late = at + 1;
  watch->interest = 0;
  return 0;
}

static void no_longer_late(na_loop *loop, na_watch *watch) {
  loop->late[watch->late - 1].watch = NULL;
  watch->late = 0;
}

void na_loop_settle(na_loop *loop, na_watch *watch) {
  if (!watch->late)
    return;
  int fd = watch->fd;
  no_longer_late(loop, watch);
  watch->fd = -1;
  if (na_loop_watch(loop, watch, fd, 0) == 0)
    return;
  watch->fd = fd; /* for its owner to close */
  na_loop_tell(loop, watch, EPOLLERR);
}

int na_loop_watch_writable(na_loop *loop, na_watch *watch) {
  na_loop_settle(loop, watch);
  if (watch->interest & EPOLLOUT)
    return 0;
  watch->interest |= EPOLLOUT;
  struct epoll_event event = {.events = watch->interest, .data.ptr = watch};
  return epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event) < 0 ? -errno : 0;
}

int na_loop_requeue(na_loop *loop, na_watch *watch) {
  struct epoll_event event = {.events = watch->interest, .data.ptr = watch};
  (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
  return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event) < 0 ? -errno : 0;
}

void na_loop_unwatch(na_loop *loop, na_watch *watch) {
  na_link_remove(&watch->again);
  watch->told = 0;
  /* Closing would not do: a listener's descriptor may have duplicates, and a child that the process is just starting
   * holds a copy of every one until it executes its program. epoll would go on telling of it. */
  if (watch->late)
    no_longer_late(loop, watch);
  else if (watch->fd >= 0)
    (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
  watch->fd = -1;
}

void na_loop_again(na_loop *loop, na_watch *watch) {
  if (!na_link_in_list(&watch->again))
    na_list_push_back(&loop->again, &watch->again);
}

void na_loop_tell(na_loop *loop, na_watch *watch, uint32_t events) {
  watch->told |= events;
  na_loop_again(loop, watch);
}

void na_loop_bury(na_loop *loop, na_grave *grave, void (*fn)(na_grave *grave)) {
  grave->fn = fn;
  grave->next = loop->graves;
  loop->graves = grave;
}
