/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting for configuration: connections and requests park under the need that they share. A need raises its event when
 * it comes up, and again each second while somebody waits. Every commit makes all waiters try again.
 */
#ifndef NODEAGENT_PARKING_H
#define NODEAGENT_PARKING_H

#include "worker.h"

typedef struct na_waiter na_waiter;
typedef struct na_need na_need;

enum na_wake { NA_WAKE_COMMIT, NA_WAKE_TIMEOUT };

/* Embedded in what waits. */
struct na_waiter {
  na_link link; /* need->waiters */
  na_timer timer;
  na_need *need; /* NULL: not parked */
  na_worker *worker;
  uint64_t deadline_ms; /* kept when it parks again after a commit that had no answer */
  void (*fn)(na_waiter *waiter, enum na_wake why);
};

int na_parking_init(na_worker *worker);
void na_parking_free(na_worker *worker);

void na_waiter_init(na_waiter *waiter, na_worker *worker, void (*fn)(na_waiter *waiter, enum na_wake why));
/* Wait for what `event` asks for. False (and counted) when too many wait, or nobody answers: go on without. */
bool na_park(na_waiter *waiter, const na_event *event);
/* Wait no longer. Harmless when not parked. */
void na_unpark(na_waiter *waiter);
/* A commit has taken effect. */
void na_parking_retry(na_worker *worker);

#endif
