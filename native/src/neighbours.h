/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections between workloads of one engine. They need no tunnel: the bytes stay on this node, and both certificates
 * are here. The dialling side connects in plaintext to the other's captured port, and introduces itself: who it is goes
 * into a table of the engine by the connection's exact addresses and ports, before the first packet leaves; the side
 * that accepts takes it out. So it is known, as through a tunnel, who is at the other end. The dialling side is not
 * connected before that: an address may lead to somebody else by now, who would be taken for the workload.
 *
 * An introduction is good for one connection. Nobody else can make that connection: the socket with these addresses is
 * the engine's own while the introduction is there, which is taken back before the socket is closed.
 */
#ifndef NODEAGENT_NEIGHBOURS_H
#define NODEAGENT_NEIGHBOURS_H

#include <pthread.h>

#include "hbone.h"
#include "table.h"

/* Introductions that nobody has taken yet; beyond, a tunnel is used. */
#define NA_MAX_INTRODUCTIONS 16384

/* Of an engine; shared by its workers. */
typedef struct na_neighbours {
  pthread_mutex_t lock;
  na_map workloads;     /* that take captured connections: by address */
  na_map introductions; /* by the two ends of their connection */
} na_neighbours;

void na_neighbours_init(na_neighbours *neighbours);
/* All connections are gone. */
void na_neighbours_free(na_neighbours *neighbours);
/* Control thread: the workload takes captured connections, at all of its addresses; until the removal. -ENOMEM: some of
 * them are reached by tunnels. */
int na_neighbours_add(na_neighbours *neighbours, na_workload *workload);
void na_neighbours_remove(na_neighbours *neighbours, const na_workload *workload);

/* Begin to connect `stream` as na_hbone_connect() does. -ENOENT: the other end is none of this engine's workloads, is
 * not who it must be, or cannot be reached so; a tunnel has to be used (and tells what is wrong). */
int na_neighbours_connect(na_stream *stream, const na_hbone_dial *dial);
/* A captured connection was accepted: if it was introduced, `stream` (open, TCP) knows the peer from now on. */
void na_neighbours_accept(na_worker *worker, const na_workload *workload, na_stream *stream, const na_address *peer,
                          const na_address *local);

/* By the accepting side, before it ends the connection: policy refuses it. The dialling side then fails with
 * -EKEYREJECTED: to try again would be refused and counted again. Nothing happens for any other stream. */
void na_neighbours_refuse(const na_stream *stream);

/* After a wake: go on with what this worker dials and another one has accepted. */
void na_neighbours_tell(na_worker *worker);

/* Who is at the other end; false for any other stream. */
bool na_neighbours_peer(const na_stream *stream, na_peer *out);
/* Whether both identities are still in force, under which the stream was made. */
bool na_neighbours_are_current(const na_stream *stream);

#endif
