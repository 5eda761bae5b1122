/* SPDX-License-Identifier: Apache-2.0
 *
 * The two sides of HBONE as hbone.c puts them together.
 */
#ifndef NODEAGENT_HBONE_SIDES_H
#define NODEAGENT_HBONE_SIDES_H

#include "hbone.h"

typedef struct na_hbone_target na_hbone_target;

/* na_hbone_connect() through a tunnel. */
int na_hbone_client_connect(na_stream *stream, const na_hbone_dial *dial);
void na_hbone_client_finish(na_worker *worker, const na_workload *workload);
bool na_hbone_client_peer(const na_h2_stream *stream, na_peer *out);
/* Of a stream of this side. */
bool na_hbone_client_is_current(const na_h2_stream *stream);

void na_hbone_server_drain(na_worker *worker, const na_workload *workload);
void na_hbone_server_finish(na_worker *worker, const na_workload *workload);
bool na_hbone_server_peer(const na_h2_stream *stream, na_peer *out);
bool na_hbone_server_is_current(const na_h2_stream *stream);
void na_hbone_server_refresh(na_worker *worker);

#endif
