/* SPDX-License-Identifier: Apache-2.0
 *
 * What an engine is made of. Only the control thread works with it; workers know their own na_worker.
 */
#ifndef NODEAGENT_ENGINE_INTERNAL_H
#define NODEAGENT_ENGINE_INTERNAL_H

#include "neighbours.h"
#include "principals.h"
#include "worker.h"

struct na_engine {
  na_snapshots snapshots;
  na_config config; /* defaults filled in */
  na_worker *workers;
  na_workload *workloads;
  int event_fd;
  na_event_filter event_filter;
  na_principals principals;
  na_names policies;
  na_neighbours neighbours;
  struct na_flows *flows; /* connections past the engine; NULL: nobody follows them */
  bool running;
  bool stopped;
};

#endif
