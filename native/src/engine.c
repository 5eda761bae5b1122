/* SPDX-License-Identifier: Apache-2.0
 *
 * The public engine calls: lifecycle, workloads, and what is gathered from the workers.
 */
#include "engine.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dns_server.h"
#include "followed.h"
#include "listener.h"
#include "relay.h"

#ifndef NODEAGENT_VERSION
#error "NODEAGENT_VERSION must be defined by the build"
#endif

na_snapshots *na_engine_snapshots(na_engine *engine) {
  return &engine->snapshots;
}

const char *na_version(void) {
  return NODEAGENT_VERSION;
}

/* ---- configuration ---- */

/* Descriptors that one worker may count on. */
static uint32_t descriptors_per_worker(uint32_t workers) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > UINT32_MAX)
    return UINT32_MAX;
  return (uint32_t)limit.rlim_cur / workers;
}

typedef struct setting {
  uint32_t *value;
  uint32_t fallback;
  uint32_t min;
  uint32_t max;
} setting;

static int complete_config(na_config *c) {
  const setting settings[] = {
      {&c->workers, 1, 1, NA_MAX_WORKERS},
      {&c->max_connections, 8000, 1, 10000000},
      {&c->max_head_bytes, 61440, 1024, 1 << 20},
      {&c->max_headers, 100, 1, NA_H1_MAX_HEADERS},
      {&c->max_request_line, 8192, 64, 1 << 20},
      {&c->buffer_bytes, 65536, 4096, 1 << 24},
      {&c->detect_timeout_ms, 100, 1, NA_NEVER},
      {&c->head_timeout_ms, 10000, 1, NA_NEVER},
      {&c->idle_timeout_ms, 3600000, 1, NA_NEVER},
      {&c->request_idle_timeout_ms, 300000, 1, NA_NEVER},
      {&c->pool_idle_timeout_ms, 60000, 1, NA_NEVER},
      {&c->pool_max_idle, 1024, 1, 100000},
      {&c->on_demand_timeout_ms, 2000, 1, NA_NEVER},
      {&c->max_parked, 1024, 1, 1000000},
      {&c->stat_rows, 4096, 16, 1 << 20},
      {&c->access_records, 2048, 16, 1 << 20},
      {&c->events, 1024, 16, 1 << 20},
      {&c->hbone_max_tunnels, 1024, 1, 1 << 20},
      {&c->hbone_max_handshakes, 256, 1, 1 << 20},
      {&c->hbone_max_streams, 200, 1, 1 << 20},
      {&c->hbone_stream_window, 1 << 20, 65535, 1 << 30},
      {&c->hbone_window, 16 << 20, 65535, 1 << 30},
      {&c->hbone_idle_timeout_ms, 300000, 1, NA_NEVER},
      {&c->hbone_handshake_timeout_ms, 10000, 1, NA_NEVER},
      {&c->hbone_ping_ms, 10000, 1, NA_NEVER},
      {&c->dns_max_questions, 1024, 1, 1 << 16},
      {&c->dns_socket_questions, 256, 1, 1 << 16},
      {&c->dns_max_streams, 256, 1, 1 << 16},
      {&c->dns_workload_streams, 64, 1, 1 << 16},
      {&c->dns_timeout_ms, 5000, 1, NA_NEVER},
      {&c->dns_idle_timeout_ms, 10000, 1, NA_NEVER},
      {&c->jwt_cache_tokens, 1024, 1, 1 << 20},
      {&c->jwt_cache_bytes, 4 << 20, 65536, 1 << 30},
      {&c->callout_max_calls, 1024, 1, 1 << 20},
      {&c->callout_max_channels, 256, 1, 1 << 16},
  };
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
    if (*settings[i].value == 0)
      *settings[i].value = settings[i].fallback;
    if (*settings[i].value < settings[i].min || *settings[i].value > settings[i].max)
      return -EINVAL;
  }
  /* A connection needs two, its own and its upstream's. */
  uint32_t possible = descriptors_per_worker(c->workers) / 2;
  if (c->max_connections > possible)
    c->max_connections = possible > 16 ? possible : 16;
  return 0;
}

/* ---- lifecycle ---- */

static void wake_all(void *context) {
  na_engine *engine = context;
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_wake(&engine->workers[i]);
}

static int init_workers(na_engine *engine) {
  engine->workers = aligned_alloc(NA_CACHE_LINE, engine->config.workers * sizeof *engine->workers);
  if (!engine->workers)
    return -ENOMEM;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    int error = na_worker_init(&engine->workers[i], &engine->config, &engine->snapshots, i, engine->event_fd);
    engine->workers[i].principals = &engine->principals;
    engine->workers[i].neighbours = &engine->neighbours;
    if (!error)
      continue;
    do
      na_worker_free(&engine->workers[i]);
    while (i-- > 0);
    free(engine->workers);
    engine->workers = NULL;
    return error;
  }
  return 0;
}

int na_engine_new(const na_config *config, na_engine **out) {
  na_config complete = *config;
  int error = complete_config(&complete);
  if (error)
    return error;
  size_t size = (sizeof(na_engine) + NA_CACHE_LINE - 1) / NA_CACHE_LINE * NA_CACHE_LINE;
  na_engine *engine = aligned_alloc(NA_CACHE_LINE, size);
  if (!engine)
    return -ENOMEM;
  memset(engine, 0, size);
  engine->config = complete;
  na_principals_init(&engine->principals);
  na_principals_init(&engine->policies);
  na_neighbours_init(&engine->neighbours);
  engine->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  error = engine->event_fd < 0 ? -errno : na_snapshots_init(&engine->snapshots, complete.workers, wake_all, engine);
  if (error)
    goto fail;
  engine->snapshots.policies = &engine->policies;
  error = init_workers(engine);
  if (!error) {
    *out = engine;
    return 0;
  }
  na_snapshots_free(&engine->snapshots);
fail:
  if (engine->event_fd >= 0)
    close(engine->event_fd);
  na_principals_free(&engine->principals);
  na_principals_free(&engine->policies);
  na_neighbours_free(&engine->neighbours);
  free(engine);
  return error;
}

int na_engine_start(na_engine *engine) {
  if (engine->running || engine->stopped)
    return -EALREADY;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    int error = na_worker_start(&engine->workers[i]);
    if (error) {
      na_engine_stop(engine, 0);
      return error;
    }
  }
  engine->running = true;
  return 0;
}

int na_engine_stop(na_engine *engine, uint32_t drain_ms) {
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_begin_stop(&engine->workers[i], drain_ms);
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_join(&engine->workers[i]);
  engine->running = false;
  engine->stopped = true;
  return 0;
}

void na_engine_free(na_engine *engine) {
  if (!engine)
    return;
  if (engine->running)
    na_engine_stop(engine, 0);
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_free(&engine->workers[i]);
  free(engine->workers);
  na_neighbours_free(&engine->neighbours);
  while (engine->workloads) {
    na_workload *workload = engine->workloads;
    engine->workloads = workload->next;
    na_workload_destroy(workload);
  }
  na_snapshots_free(&engine->snapshots);
  na_principals_free(&engine->principals);
  na_principals_free(&engine->policies);
  close(engine->event_fd);
  free(engine);
}

/* ---- workloads ---- */

static na_workload **find_workload(na_engine *engine, uint32_t id) {
  na_workload **at = &engine->workloads;
  while (*at && (*at)->id != id)
    at = &(*at)->next;
  return at;
}

/* Forget one that is gone; whether it was. */
static bool forget_if_gone(na_engine *engine, na_workload **at) {
  na_workload *workload = *at;
  if (!atomic_load_explicit(&workload->gone, memory_order_acquire))
    return false;
  *at = workload->next;
  na_snapshots_drop_inbound(&engine->snapshots, workload->id);
  na_workload_destroy(workload);
  return true;
}

int na_workload_add(na_engine *engine, uint32_t id, int netns_fd, const char *view, const uint8_t *addresses,
                    size_t n) {
  if (id == 0 || !view || strlen(view) >= sizeof((na_event *)0)->view)
    return -EINVAL;
  na_workload **at = find_workload(engine, id);
  if (*at && !forget_if_gone(engine, at))
    return -EEXIST;
  na_workload *workload;
  int error = na_workload_create(id, netns_fd, view, addresses, n, &workload);
  if (error)
    return error;
  workload->next = engine->workloads;
  engine->workloads = workload;
  return 0;
}

typedef struct listen_call {
  na_workload *workload;
  enum na_listener_kind kind;
  int fd;
  int result;
} listen_call;

static bool is_datagram(int fd) {
  int type = 0;
  socklen_t size = sizeof type;
  return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_DGRAM;
}

static void open_listener(na_worker *worker, void *argument) {
  listen_call *call = argument;
  if (call->kind == NA_LISTENER_DNS && is_datagram(call->fd))
    call->result = na_dns_listen(worker, call->workload, call->fd);
  else
    call->result = na_listener_open(worker, call->workload, call->kind, call->fd);
}

int na_workload_listen(na_engine *engine, uint32_t id, enum na_listener_kind kind, uint32_t worker, int fd) {
  na_workload *workload = *find_workload(engine, id);
  int error = 0;
  if (!workload || atomic_load(&workload->removed))
    error = -ENOENT;
  else if (worker >= engine->config.workers || (unsigned)kind > NA_LISTENER_DNS)
    error = -EINVAL;
  else if (engine->stopped)
    error = -ESHUTDOWN;
  if (error) {
    close(fd);
    return error;
  }
  listen_call call = {workload, kind, fd, 0};
  na_worker_call(&engine->workers[worker], open_listener, &call);
  if (call.result == 0 && kind == NA_LISTENER_INBOUND && !workload->shared)
    (void)na_neighbours_add(&engine->neighbours, workload); /* without memory it is reached by tunnels */
  return call.result;
}

typedef struct remove_call {
  na_workload *workload;
  uint32_t drain_ms;
} remove_call;

static void remove_workload(na_worker *worker, void *argument) {
  remove_call *call = argument;
  na_worker_drain(worker, call->workload, call->drain_ms);
}

int na_workload_remove(na_engine *engine, uint32_t id, uint32_t drain_ms) {
  na_workload *workload = *find_workload(engine, id);
  if (!workload || atomic_exchange(&workload->removed, true))
    return -ENOENT;
  na_neighbours_remove(&engine->neighbours, workload);
  remove_call call = {workload, drain_ms};
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_call(&engine->workers[i], remove_workload, &call);
  na_workload_unref(workload);
  return 0;
}

int na_workload_gone(na_engine *engine, uint32_t id) {
  na_workload **at = find_workload(engine, id);
  return !*at || forget_if_gone(engine, at);
}

/* ---- events and counters ---- */

int na_engine_event_fd(na_engine *engine) {
  return engine->event_fd;
}

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int na_engine_events(na_engine *engine, na_event *out, size_t max) {
  eventfd_t count;
  uint64_t now = now_ms();
  size_t n = 0;
  (void)eventfd_read(engine->event_fd, &count); /* before taking: what comes in between makes it readable again */
  for (uint32_t i = 0; i < engine->config.workers; i++)
    n += na_events_take(&engine->workers[i].events, &engine->event_filter, now, out + n, max - n);
  for (uint32_t i = 0; n == max && i < engine->config.workers; i++)
    if (na_events_waiting(&engine->workers[i].events)) {
      (void)eventfd_write(engine->event_fd, 1);
      break;
    }
  return (int)n;
}

uint64_t na_engine_counter(na_engine *engine, size_t index) {
  uint64_t sum = 0;
  for (uint32_t i = 0; index < NA_COUNTER_COUNT && i < engine->config.workers; i++)
    sum += atomic_load_explicit(&engine->workers[i].counters.values[index], memory_order_relaxed);
  if (index < NA_COUNTER_COUNT && engine->flows)
    sum += atomic_load_explicit(&engine->flows->reporter.losses.values[index], memory_order_relaxed);
  return sum;
}

/* ---- statistics and access records ---- */

int na_engine_usage(na_engine *engine, uint32_t *tags, size_t max) {
  size_t room = max < INT_MAX ? max : INT_MAX;
  size_t n = na_snapshots_usage(&engine->snapshots, tags, room);
  if (engine->flows)
    n += na_flows_usage(engine->flows, tags + n, room - n);
  return (int)n;
}

static void swap_stats(na_worker *worker, void *argument) {
  for (na_link *link = worker->reporting.next, *next; link != &worker->reporting; link = next) {
    next = link->next;
    na_relay *relay = na_container_of(link, na_relay, reporting);
    na_link_remove(link);
    relay->report(relay);
  }
  na_stats_swap(&worker->stats);
}

int na_engine_drain_stats(na_engine *engine, na_stat_row *rows, size_t max) {
  size_t n = 0;
  bool left = engine->flows && na_stats_left(&engine->flows->reporter.stats);
  for (uint32_t i = 0; i < engine->config.workers; i++)
    left = left || na_stats_left(&engine->workers[i].stats);
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    na_worker *worker = &engine->workers[i];
    if (!left)
      na_worker_call(worker, swap_stats, NULL);
    n += na_stats_take(&worker->stats, rows + n, max - n);
  }
  if (engine->flows)
    n += na_flows_take_stats(engine->flows, rows + n, max - n);
  return (int)n;
}

int na_engine_drain_access(na_engine *engine, na_access_record *records, size_t max) {
  size_t n = 0;
  for (uint32_t i = 0; i < engine->config.workers; i++)
    n += na_access_take(&engine->workers[i].access, records + n, max - n);
  if (engine->flows)
    n += na_flows_take_access(engine->flows, records + n, max - n);
  return (int)n;
}
