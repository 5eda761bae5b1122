/* SPDX-License-Identifier: Apache-2.0 */
#include "hbone.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "hbone_sides.h"
#include "mtls.h"
#include "neighbours.h"

/* Targets live as long as they are of use; being in the map is no use. */
static void no_reference(void *target) {}

static const na_map_ops target_ops = {no_reference, no_reference};

int na_hbone_init(na_worker *worker) {
  na_hbone *hbone = calloc(1, sizeof *hbone);
  if (!hbone)
    return -ENOMEM;
  na_link_init(&hbone->accepted);
  na_link_init(&hbone->resting);
  na_map_init(&hbone->targets, &target_ops);
  na_map_init(&hbone->sessions, &na_mtls_memo_ops);
  worker->hbone = hbone;
  worker->gather.bytes = malloc(NA_GATHER_BYTES); /* pages come with use */
  return worker->gather.bytes ? na_tls_memory_init(&worker->tls) : -ENOMEM;
}

void na_hbone_free(na_worker *worker) {
  na_hbone *hbone = worker->hbone;
  if (hbone) {
    na_hbone_client_finish(worker, NULL);
    assert(na_hbone_idle(worker) && hbone->targets.count == 0);
    na_map_clear(&hbone->targets);
    na_map_clear(&hbone->sessions);
    free(hbone);
  }
  worker->hbone = NULL;
  free(worker->gather.bytes);
  na_tls_memory_free(&worker->tls);
}

void na_hbone_drain(na_worker *worker, const na_workload *workload) {
  na_hbone_server_drain(worker, workload);
}

void na_hbone_refresh(na_worker *worker) {
  na_hbone_server_refresh(worker);
}

void na_hbone_finish(na_worker *worker, const na_workload *workload) {
  na_hbone_server_finish(worker, workload);
  na_hbone_client_finish(worker, workload);
}

bool na_hbone_idle(const na_worker *worker) {
  return worker->counters.values[NA_COUNTER_HBONE_ACCEPTED_ACTIVE] == 0 &&
         worker->counters.values[NA_COUNTER_HBONE_DIALED_ACTIVE] == 0;
}

int na_hbone_connect(na_stream *stream, const na_hbone_dial *dial) {
  if (dial->via->mtls)
    return na_mtls_connect(stream, dial);
  int error = na_neighbours_connect(stream, dial);
  return error == -ENOENT ? na_hbone_client_connect(stream, dial) : error;
}

bool na_hbone_peer(const na_stream *stream, na_peer *out) {
  *out = (na_peer){.uri = "", .baggage = "", .traceparent = "", .forwarded = ""};
  if (stream->transport != &na_transport_h2)
    return na_mtls_peer(stream, out) || na_neighbours_peer(stream, out);
  const na_h2_stream *state = stream->state;
  return na_hbone_server_peer(state, out) || na_hbone_client_peer(state, out);
}

bool na_hbone_is_current(const na_stream *stream) {
  if (stream->transport != &na_transport_h2)
    return na_mtls_is_current(stream) && na_neighbours_are_current(stream);
  const na_h2_stream *state = stream->state;
  if (!state->h2 || state->h2->dead)
    return false;
  return state->role->server ? na_hbone_server_is_current(state) : na_hbone_client_is_current(state);
}
