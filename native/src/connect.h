/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening upstream sockets in a workload's namespace.
 */
#ifndef NODEAGENT_CONNECT_H
#define NODEAGENT_CONNECT_H

#include "address.h"
#include "worker.h"

/* Ports from which connections with a client's address are made. They lie below the usual ephemeral range
 * (32768-60999), so that they never meet a port that the client itself has in use towards the same destination. */
#define NA_SOURCE_PORT_FIRST 10000
#define NA_SOURCE_PORT_LAST  32767

/* For connections without a cluster (Envoy's default for clusters, too). */
#define NA_DEFAULT_CONNECT_TIMEOUT_MS 10000

/* Begin to connect to `remote`. With `source` the connection comes from that (foreign) address, any port. Returns the
 * descriptor, or -errno; -EPERM when the address may not be taken. */
int na_connect(na_worker *worker, const na_workload *workload, const na_address *remote, const na_address *source);
/* The same in two steps, for who must know where the connection comes from before it does: a socket bound to the
 * workload's own address *source, at a port that is filled in; then na_connect_begin(), which leaves the descriptor
 * open on errors (-EADDRNOTAVAIL: that port leads to the remote already). */
int na_connect_bind(na_worker *worker, const na_workload *workload, na_address *source);
int na_connect_begin(int fd, const na_address *remote);
/* Where the socket is connected from; zeros when unknown. */
void na_connect_local(int fd, na_address *out);

#endif
