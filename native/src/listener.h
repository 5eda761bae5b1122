/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening sockets of a worker: accepting, and finding out where a captured connection was going.
 */
#ifndef NODEAGENT_LISTENER_H
#define NODEAGENT_LISTENER_H

#include "worker.h"

/* Worker: accept on fd, which is owned from here on, also on error. */
int na_listener_open(na_worker *worker, na_workload *workload, enum na_listener_kind kind, int fd);
/* Worker: close the listeners of the workload (NULL: all). */
void na_listeners_close(na_worker *worker, const na_workload *workload);

#endif
