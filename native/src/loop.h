/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's event loop: readiness of descriptors, timers, and work put off to the end of the turn. The interface
 * speaks of readiness only, so that io_uring's poll could take epoll's place behind it.
 *
 * Readiness is edge-triggered: a callback hears once that a descriptor became readable, and must remember it until a
 * read came back short. That spares all epoll_ctl calls after the first (backpressure is "do not read now").
 *
 * Objects must not be freed while the loop may still hold an event for them: na_loop_bury() puts the freeing off to the
 * end of the turn.
 */
#ifndef NODEAGENT_LOOP_H
#define NODEAGENT_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "list.h"
#include "timer.h"

typedef struct na_watch na_watch;
/* `events` are EPOLL* bits. */
typedef void na_watch_fn(na_watch *watch, uint32_t events);

/* A descriptor that the loop watches. */
struct na_watch {
  na_watch_fn *fn;
  na_link again; /* in loop->again */
  int fd;        /* -1: not watched; events still queued for it are dropped */
  uint32_t interest;
  uint32_t told; /* events that na_loop_tell() added, for its turn in loop->again */
  uint32_t late; /* 1 + its place in loop->late; 0: epoll knows the descriptor, or there is none */
};

/* Something to free when the turn is over. */
typedef struct na_grave {
  struct na_grave *next;
  void (*fn)(struct na_grave *grave);
} na_grave;

/* Watches that epoll is to be told of, at most; more are told at once. */
#define NA_LOOP_LATE 256
/* How long it may take. */
#define NA_LOOP_LATE_MS 4

typedef struct na_late {
  na_watch *watch; /* NULL: no longer late */
  uint64_t due_ms;
} na_late;

typedef struct na_loop {
  int epoll_fd;
  na_wheel wheel;
  uint64_t now_us; /* CLOCK_MONOTONIC, read once per turn */
  uint64_t now_ms;
  na_link again;
  na_grave *graves;
  void (*begin)(void *context); /* first thing of each turn */
  void *context;
  uint32_t late_first; /* a ring in order of time */
  uint32_t late_n;
  na_late late[NA_LOOP_LATE];
} na_loop;

/* Events handled per turn at most. */
#define NA_LOOP_EVENTS 256

int na_loop_init(na_loop *loop, void (*begin)(void *context), void *context);
void na_loop_close(na_loop *loop);
/* Wait and handle one turn; returns 0 or -errno of epoll_wait. */
int na_loop_turn(na_loop *loop);
/* Read the clock now (before the first turn). */
void na_loop_update_clock(na_loop *loop);

void na_watch_init(na_watch *watch, na_watch_fn *fn);
/* Watch fd, edge-triggered: EPOLLIN always, EPOLLRDHUP unless EPOLLEXCLUSIVE; more by `interest`. */
int na_loop_watch(na_loop *loop, na_watch *watch, int fd, uint32_t interest);
/* The same for a socket that workers may share, each by a descriptor of its own: one of them shall wake for what comes,
 * not all. Makes the descriptor fit for a loop: it does not block, and is closed on exec. */
int na_loop_watch_shared(na_loop *loop, na_watch *watch, int fd);
/* As na_loop_watch(), but tell epoll only when it has to be: by na_loop_settle(), or NA_LOOP_LATE_MS later. Until then
 * nothing is heard of the descriptor. Spares two calls for one that is closed before. */
int na_loop_watch_late(na_loop *loop, na_watch *watch, int fd);
/* Hear of it from now on. A failure is told as EPOLLERR. */
void na_loop_settle(na_loop *loop, na_watch *watch);
/* Hear of writability as well, from now on. */
int na_loop_watch_writable(na_loop *loop, na_watch *watch);
/* Put the watch behind those that other loops have on the same socket with EPOLLEXCLUSIVE: the kernel wakes the first
 * of those that wait. What is ready is told again. After an error nothing is heard of until it is done again. */
int na_loop_requeue(na_loop *loop, na_watch *watch);
/* Stop watching (before the descriptor is closed; closing is the caller's). */
void na_loop_unwatch(na_loop *loop, na_watch *watch);
/* Call the watch's function with no events at the end of this turn, once. */
void na_loop_again(na_loop *loop, na_watch *watch);
/* The same with events: how a watch that has no descriptor (a stream of a tunnel) hears of its readiness. */
void na_loop_tell(na_loop *loop, na_watch *watch, uint32_t events);
void na_loop_bury(na_loop *loop, na_grave *grave, void (*fn)(na_grave *grave));

#endif
