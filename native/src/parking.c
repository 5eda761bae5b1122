/* SPDX-License-Identifier: Apache-2.0 */
#include "parking.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NEED_BUCKETS   256
#define NEED_REPEAT_MS 1000

struct na_need {
  na_link link;  /* its bucket */
  na_link order; /* parking->needs */
  na_link waiters;
  na_timer repeat;
  na_worker *worker;
  na_event event;
};

struct na_parking {
  na_link buckets[NEED_BUCKETS];
  na_link needs;
  uint32_t waiting;
  uint32_t nneeds;
};

int na_parking_init(na_worker *worker) {
  na_parking *parking = calloc(1, sizeof *parking);
  if (!parking)
    return -ENOMEM;
  na_link_init(&parking->needs);
  for (int i = 0; i < NEED_BUCKETS; i++)
    na_link_init(&parking->buckets[i]);
  worker->parking = parking;
  return 0;
}

static void need_free(na_need *need) {
  na_link_remove(&need->link);
  na_link_remove(&need->order);
  na_timer_disarm(&need->repeat);
  need->worker->parking->nneeds--;
  free(need);
}

void na_parking_free(na_worker *worker) {
  na_parking *parking = worker->parking;
  if (!parking)
    return;
  while (!na_list_empty(&parking->needs))
    need_free(na_container_of(parking->needs.next, na_need, order));
  free(parking);
  worker->parking = NULL;
}

static void raise_event(na_need *need) {
  bool raised = na_events_raise(&need->worker->events, &need->event);
  na_worker_count(need->worker, raised ? NA_COUNTER_EVENTS : NA_COUNTER_EVENTS_DROPPED);
  na_timer_arm(&need->worker->loop.wheel, &need->repeat, need->worker->loop.now_ms + NEED_REPEAT_MS);
}

/* A second after the last event: ask again, or forget the need, which until now kept new waiters from asking. */
static void on_repeat(na_timer *timer) {
  na_need *need = na_container_of(timer, na_need, repeat);
  if (na_list_empty(&need->waiters))
    need_free(need);
  else
    raise_event(need);
}

static bool same_need(const na_event *a, const na_event *b) {
  if (a->kind != b->kind)
    return false;
  if (a->kind == NA_EVENT_HOST)
    return a->tag == b->tag && strcmp(a->host, b->host) == 0 && strcmp(a->view, b->view) == 0;
  return a->port == b->port && memcmp(a->address, b->address, 16) == 0 && strcmp(a->view, b->view) == 0;
}

static na_link *bucket_of(na_parking *parking, const na_event *event) {
  uint64_t hash = event->kind == NA_EVENT_HOST ? na_hash(event->host, strlen(event->host)) + event->tag
                                               : na_hash(event->address, 16) + event->port;
  return &parking->buckets[hash % NEED_BUCKETS];
}

static na_need *need_of(na_worker *worker, const na_event *event) {
  na_parking *parking = worker->parking;
  na_link *bucket = bucket_of(parking, event);
  for (na_link *link = bucket->next; link != bucket; link = link->next) {
    na_need *need = na_container_of(link, na_need, link);
    if (same_need(&need->event, event))
      return need;
  }
  if (parking->nneeds >= worker->config->max_parked)
    return NULL;
  na_need *need = malloc(sizeof *need);
  if (!need)
    return NULL;
  need->worker = worker;
  need->event = *event;
  na_link_init(&need->waiters);
  na_timer_init(&need->repeat, on_repeat);
  na_list_push_front(bucket, &need->link);
  na_list_push_back(&parking->needs, &need->order);
  parking->nneeds++;
  raise_event(need);
  return need;
}

static void on_timeout(na_timer *timer) {
  na_waiter *waiter = na_container_of(timer, na_waiter, timer);
  na_worker_count(waiter->worker, NA_COUNTER_ON_DEMAND_TIMEOUTS);
  na_unpark(waiter);
  waiter->fn(waiter, NA_WAKE_TIMEOUT);
}

void na_waiter_init(na_waiter *waiter, na_worker *worker, void (*fn)(na_waiter *waiter, enum na_wake why)) {
  *waiter = (na_waiter){.worker = worker, .fn = fn};
  na_link_init(&waiter->link);
  na_timer_init(&waiter->timer, on_timeout);
}

bool na_park(na_waiter *waiter, const na_event *event) {
  na_worker *worker = waiter->worker;
  na_parking *parking = worker->parking;
  na_need *need = parking->waiting < worker->config->max_parked ? need_of(worker, event) : NULL;
  if (!need) {
    na_worker_count(worker, NA_COUNTER_ON_DEMAND_OVERFLOW);
    return false;
  }
  if (worker->snapshot->unanswered) {
    na_worker_count(worker, NA_COUNTER_ON_DEMAND_UNANSWERED);
    return false;
  }
  if (waiter->deadline_ms == 0) {
    waiter->deadline_ms = worker->loop.now_ms + worker->config->on_demand_timeout_ms;
    na_worker_count(worker, NA_COUNTER_ON_DEMAND_WAITS);
  }
  parking->waiting++;
  na_worker_count(worker, NA_COUNTER_ON_DEMAND_WAITING);
  waiter->need = need;
  na_list_push_back(&need->waiters, &waiter->link);
  na_timer_arm(&worker->loop.wheel, &waiter->timer, waiter->deadline_ms);
  return true;
}

void na_unpark(na_waiter *waiter) {
  if (!waiter->need)
    return;
  waiter->need = NULL;
  na_link_remove(&waiter->link);
  na_timer_disarm(&waiter->timer);
  waiter->worker->parking->waiting--;
  na_count_down(&waiter->worker->counters, NA_COUNTER_ON_DEMAND_WAITING);
}

/* Move all waiters to one list first: those who find no answer park again, and must not be met twice. */
void na_parking_retry(na_worker *worker) {
  na_parking *parking = worker->parking;
  na_link waiting;
  na_link_init(&waiting);
  for (na_link *link = parking->needs.next; link != &parking->needs; link = link->next) {
    na_need *need = na_container_of(link, na_need, order);
    while (!na_list_empty(&need->waiters)) {
      na_link *waiter = need->waiters.next;
      na_link_remove(waiter);
      na_list_push_back(&waiting, waiter);
    }
  }
  while (!na_list_empty(&waiting)) {
    na_waiter *waiter = na_container_of(waiting.next, na_waiter, link);
    na_unpark(waiter);
    waiter->fn(waiter, NA_WAKE_COMMIT);
  }
}
