/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "channel.h"
#include "conn_guard.h"
#include "dns_server.h"
#include "hbone.h"
#include "jwt.h"
#include "listener.h"
#include "neighbours.h"
#include "parking.h"
#include "upstream_pool.h"

/* Steps of TLS handshakes per turn: about 2 ms with P-256. */
#define HANDSHAKES_PER_TURN 4

/* A workload's (or everything's) way out: at the deadline its connections are cut. */
typedef struct na_drain {
  na_link link;
  na_timer timer;
  na_worker *worker;
  na_workload *workload; /* reference; NULL: all */
  uint32_t left;         /* its connections; with the last one the drain is over */
} na_drain;

/* ---- turns ---- */

static void begin_turn(void *context) {
  na_worker *worker = context;
  worker->handshakes_left = HANDSHAKES_PER_TURN;
  worker->snapshot = na_snapshots_enter(worker->snapshots, worker->index);
  if (worker->snapshot->generation == worker->generation)
    return;
  worker->generation = worker->snapshot->generation;
  if (worker->snapshot->inbound_generation != worker->inbound_generation)
    na_conns_recheck(worker, worker->inbound_generation);
  worker->inbound_generation = worker->snapshot->inbound_generation;
  na_hbone_refresh(worker);
  na_pools_prune(worker);
  na_parking_retry(worker);
}

static void run_commands(na_worker *worker) {
  na_command *command = atomic_exchange_explicit(&worker->mailbox, NULL, memory_order_acquire);
  while (command) { /* one control thread that waits for each: at most one */
    na_command *next = command->next;
    command->fn(worker, command->argument);
    sem_post(command->done);
    command = next;
  }
}

static void on_mailbox(na_watch *watch, uint32_t events) {
  na_worker *worker = na_container_of(watch, na_worker, mailbox_watch);
  eventfd_t count;
  (void)eventfd_read(watch->fd, &count);
  /* What was published after this turn began has perhaps been announced by what was just read: nobody will say it
   * again. */
  if (na_snapshots_current(worker->snapshots) != worker->snapshot)
    na_loop_again(&worker->loop, watch);
  na_neighbours_tell(worker);
  run_commands(worker);
}

static void *thread_main(void *argument) {
  na_worker *worker = argument;
  while (!worker->stopped) {
    int error = na_loop_turn(&worker->loop);
    if (error) { /* only a bug can bring this about: EBADF, EINVAL */
      fprintf(stderr, "nodeagent: epoll_wait: %s\n", strerror(-error));
      abort();
    }
  }
  return NULL;
}

/* ---- control thread ---- */

void na_worker_wake(na_worker *worker) {
  (void)eventfd_write(worker->mailbox_watch.fd, 1);
}

void na_worker_call(na_worker *worker, void (*fn)(na_worker *worker, void *argument), void *argument) {
  if (!worker->started) {
    fn(worker, argument);
    return;
  }
  sem_t done;
  sem_init(&done, 0, 0);
  na_command command = {.fn = fn, .argument = argument, .done = &done};
  command.next = atomic_load_explicit(&worker->mailbox, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&worker->mailbox, &command.next, &command, memory_order_release,
                                                memory_order_relaxed))
    ;
  na_worker_wake(worker);
  while (sem_wait(&done) < 0 && errno == EINTR)
    ;
  sem_destroy(&done);
}

static void adopt_thread(na_worker *worker, void *argument) {
  *(int *)argument = na_netns_current(&worker->home);
}

int na_worker_start(na_worker *worker) {
  sigset_t all, before;
  na_snapshots_online(worker->snapshots, worker->index);
  /* Signals are for the threads of Python. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&worker->thread, NULL, thread_main, worker);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    na_snapshots_offline(worker->snapshots, worker->index);
    return -error;
  }
  char name[16];
  snprintf(name, sizeof name, "na-worker-%u", worker->index % 100);
  pthread_setname_np(worker->thread, name);
  worker->started = true;
  na_worker_call(worker, adopt_thread, &error);
  return error;
}

static void stop_if_idle(na_worker *worker);

static void stop(na_worker *worker, void *argument) {
  worker->stopping = true;
  na_worker_drain(worker, NULL, *(uint32_t *)argument);
  stop_if_idle(worker);
}

void na_worker_begin_stop(na_worker *worker, uint32_t drain_ms) {
  if (worker->started)
    na_worker_call(worker, stop, &drain_ms);
}

void na_worker_join(na_worker *worker) {
  if (!worker->started)
    return;
  pthread_join(worker->thread, NULL);
  worker->started = false;
  na_snapshots_offline(worker->snapshots, worker->index);
}

/* ---- draining ---- */

/* Leave the loop when there is nothing left to wait for. */
static void stop_if_idle(na_worker *worker) {
  if (!worker->stopping || !na_list_empty(&worker->conns))
    return;
  na_hbone_finish(worker, NULL);
  if (na_hbone_idle(worker))
    worker->stopped = true; /* looked at after this turn */
}

void na_worker_tunnel_gone(na_worker *worker) {
  stop_if_idle(worker);
}

static bool concerns(const na_workload *workload, const na_conn *conn) {
  return !workload || conn->workload == workload;
}

static void drain_free(na_drain *drain) {
  na_timer_disarm(&drain->timer);
  na_link_remove(&drain->link);
  if (drain->workload)
    na_workload_unref(drain->workload);
  free(drain);
}

void na_worker_conn_gone(na_worker *worker, const na_workload *workload) {
  stop_if_idle(worker);
  for (na_link *link = worker->drains.next; link != &worker->drains; link = link->next) {
    na_drain *drain = na_container_of(link, na_drain, link);
    if (drain->workload == workload && --drain->left == 0) {
      na_hbone_finish(worker, workload);
      drain_free(drain);
      return;
    }
  }
}

static void cut(na_worker *worker, const na_workload *workload) {
  for (na_link *link = worker->conns.next, *next; link != &worker->conns; link = next) {
    next = link->next;
    na_conn *conn = na_container_of(link, na_conn, link);
    if (concerns(workload, conn))
      na_conn_cut(conn);
  }
  na_hbone_finish(worker, workload);
}

/* The drain frees itself with its last connection; one of all connections ends with the worker. */
static void on_drained(na_timer *timer) {
  na_drain *drain = na_container_of(timer, na_drain, timer);
  na_workload *workload = drain->workload;
  cut(drain->worker, workload);
}

static uint32_t count_conns(const na_worker *worker, const na_workload *workload) {
  uint32_t n = 0;
  for (const na_link *link = worker->conns.next; link != &worker->conns; link = link->next)
    n += concerns(workload, na_container_of(link, na_conn, link));
  return n;
}

static void drain_conns(na_worker *worker, const na_workload *workload) {
  for (na_link *link = worker->conns.next, *next; link != &worker->conns; link = next) {
    next = link->next;
    na_conn *conn = na_container_of(link, na_conn, link);
    if (concerns(workload, conn))
      na_conn_drain(conn);
  }
}

void na_worker_drain(na_worker *worker, na_workload *workload, uint32_t drain_ms) {
  na_listeners_close(worker, workload);
  na_dns_drain(worker, workload);
  na_pools_close(worker, workload);
  na_channels_drain(worker, workload);
  na_hbone_drain(worker, workload);
  drain_conns(worker, workload);
  uint32_t left = count_conns(worker, workload);
  na_drain *drain = left && drain_ms ? calloc(1, sizeof *drain) : NULL;
  if (!drain) {
    cut(worker, workload);
    return;
  }
  drain->worker = worker;
  drain->left = left;
  drain->workload = workload ? na_workload_ref(workload) : NULL;
  na_timer_init(&drain->timer, on_drained);
  na_list_push_back(&worker->drains, &drain->link);
  na_timer_arm(&worker->loop.wheel, &drain->timer, worker->loop.now_ms + drain_ms);
}

/* ---- making and freeing ---- */

static void seed(na_worker *worker) {
  if (getrandom(worker->random, sizeof worker->random, 0) != sizeof worker->random || !worker->random[0])
    worker->random[0] = (uintptr_t)worker ^ 0x9e3779b97f4a7c15;
}

static int init_tables(na_worker *worker, int event_fd) {
  const na_config *config = worker->config;
  int error = na_stats_init(&worker->stats, config->stat_rows, &worker->counters);
  if (!error && config->access_log)
    error = na_access_init(&worker->access, config->access_records);
  if (!error)
    error = na_events_init(&worker->events, config->events, event_fd);
  if (!error)
    error = na_pools_init(worker);
  if (!error)
    error = na_parking_init(worker);
  if (!error)
    error = na_hbone_init(worker);
  return error;
}

static int init_buffers(na_worker *worker) {
  worker->scratch_size = (size_t)worker->config->max_head_bytes * 2 + 32768;
  if (worker->scratch_size < NA_DNS_MAX_MESSAGE)
    worker->scratch_size = NA_DNS_MAX_MESSAGE;
  worker->io_size = worker->config->buffer_bytes;
  worker->io = malloc(worker->io_size);
  worker->scratch = malloc(worker->scratch_size);
  worker->head = malloc(sizeof *worker->head);
  return worker->io && worker->scratch && worker->head ? 0 : -ENOMEM;
}

static int init_mailbox(na_worker *worker) {
  na_watch_init(&worker->mailbox_watch, on_mailbox);
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0)
    return -errno;
  int error = na_loop_watch(&worker->loop, &worker->mailbox_watch, fd, 0);
  if (error)
    close(fd);
  return error;
}

int na_worker_init(na_worker *worker, const na_config *config, na_snapshots *snapshots, uint32_t index, int event_fd) {
  *worker = (na_worker){.config = config, .snapshots = snapshots, .index = index, .spare_fd = -1};
  worker->home.fd = worker->loop.epoll_fd = worker->mailbox_watch.fd = -1;
  na_link_init(&worker->listeners);
  na_link_init(&worker->conns);
  na_link_init(&worker->reporting);
  na_link_init(&worker->drains);
  na_link_init(&worker->unmet);
  seed(worker);
  int error = na_loop_init(&worker->loop, begin_turn, worker);
  if (!error)
    error = init_mailbox(worker);
  if (!error)
    error = init_tables(worker, event_fd);
  if (!error)
    error = init_buffers(worker);
  if (error)
    return error;
  worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return worker->spare_fd < 0 ? -errno : 0;
}

void na_worker_free(na_worker *worker) {
  assert(!worker->started);
  na_listeners_close(worker, NULL);
  na_dns_free(worker);
  while (!na_list_empty(&worker->drains))
    drain_free(na_container_of(worker->drains.next, na_drain, link));
  assert(na_list_empty(&worker->conns));
  na_pools_free(worker);
  na_callouts_free(worker);
  na_jwt_cache_free(worker->jwts);
  na_hbone_free(worker);
  na_parking_free(worker);
  for (uint32_t i = 0; i < worker->npipes; i++) {
    close(worker->pipes[i][0]);
    close(worker->pipes[i][1]);
  }
  if (worker->mailbox_watch.fd >= 0)
    close(worker->mailbox_watch.fd);
  na_loop_close(&worker->loop);
  na_netns_close(&worker->home);
  if (worker->spare_fd >= 0)
    close(worker->spare_fd);
  na_stats_free(&worker->stats);
  na_access_free(&worker->access);
  na_events_free(&worker->events);
  free(worker->io);
  free(worker->scratch);
  free(worker->head);
}
