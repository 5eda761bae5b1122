/* SPDX-License-Identifier: Apache-2.0
 *
 * The list of live connections, for people.
 */
#include <string.h>

#include "conn.h"
#include "engine.h"
#include "followed.h"
#include "hbone.h"
#include "http_request.h"
#include "tcp_proxy.h"

typedef struct list_call {
  na_connection_info *out;
  size_t max;
  size_t n;
} list_call;

static const char *cluster_of(const na_conn *conn) {
  if (conn->request && conn->request->cluster)
    return conn->request->cluster->name;
  return na_tcp_cluster(conn);
}

static uint8_t state_of(const na_conn *conn) {
  if (conn->request && conn->request->state == NA_REQUEST_PARKED)
    return NA_CONN_WAITING;
  if (conn->phase == NA_CONN_GUARDED)
    return NA_CONN_WAITING;
  return conn->phase == NA_CONN_CONNECTING ? NA_CONN_TCP : conn->phase;
}

static void describe(const na_conn *conn, na_connection_info *info) {
  const na_worker *worker = conn->worker;
  *info = (na_connection_info){
      .id = conn->id,
      .age_ms = (worker->loop.now_us - conn->start_us) / 1000,
      .workload = conn->workload->id,
      .worker = worker->index,
      .inbound = na_conn_inbound(conn),
      .protocol = conn->protocol,
      .state = state_of(conn),
      .remote_port = conn->peer.port,
      .local_port = conn->local.port,
  };
  na_peer peer;
  if (na_conn_inbound(conn) && na_hbone_peer(&conn->stream, &peer))
    info->principal = peer.principal;
  memcpy(info->remote, conn->peer.ip, 16);
  memcpy(info->local, conn->local.ip, 16);
  na_tcp_bytes(conn, &info->bytes_in, &info->bytes_out);
  strncpy(info->cluster, cluster_of(conn), sizeof info->cluster - 1);
}

static void list(na_worker *worker, void *argument) {
  list_call *call = argument;
  for (na_link *link = worker->conns.next; link != &worker->conns && call->n < call->max; link = link->next)
    describe(na_container_of(link, na_conn, link), &call->out[call->n++]);
}

int na_engine_connections(na_engine *engine, na_connection_info *out, size_t max) {
  list_call call = {out, max, 0};
  for (uint32_t i = 0; i < engine->config.workers; i++)
    na_worker_call(&engine->workers[i], list, &call);
  if (engine->flows)
    call.n += na_flows_list(engine->flows, out + call.n, max - call.n);
  return (int)call.n;
}
