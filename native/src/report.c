/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <string.h>
#include <time.h>

#include "hbone.h"
#include "hbone_headers.h"
#include "http_request.h"

/* Who is at the other end: inbound the client, outbound what the connection led to. */
static void set_principal(na_stat_key *key, const na_conn *conn, uint32_t upstream, bool mutual_tls) {
  na_peer peer;
  bool inbound = na_conn_inbound(conn);
  bool tunnelled = inbound && na_hbone_peer(&conn->stream, &peer);
  key->mutual_tls = inbound ? tunnelled : mutual_tls;
  key->principal = inbound ? (tunnelled ? peer.principal : 0) : upstream;
}

static void set_peer(na_stat_key *key, const na_conn *conn, const na_address *remote) {
  key->inbound = na_conn_inbound(conn);
  const uint8_t *ip = remote->port ? remote->ip : conn->local.ip;
  memcpy(key->peer, key->inbound ? conn->peer.ip : ip, sizeof key->peer);
}

/* ---- TCP ---- */

static na_stat_row *tcp_row(na_conn *conn, const na_tcp_report *report, uint32_t kind, uint32_t flags) {
  na_stat_key key = {.kind = kind,
                     .workload = conn->workload->id,
                     .cluster_tag = report->cluster_tag,
                     .endpoint_tag = report->endpoint_tag,
                     .flags = flags,
                     .protocol = conn->protocol == NA_PROTOCOL_HTTP2_FORWARDED ? NA_PROTOCOL_HTTP2_FORWARDED
                                                                               : NA_PROTOCOL_OPAQUE};
  set_peer(&key, conn, &report->remote);
  set_principal(&key, conn, report->principal, report->mutual_tls);
  return na_stats_row(&conn->worker->stats, &key);
}

void na_report_tcp_opened(na_conn *conn, const na_tcp_report *report) {
  conn->tcp_opened = true;
  na_stat_row *row = tcp_row(conn, report, NA_STAT_TCP_OPENED, 0);
  if (row)
    row->count++;
}

void na_report_tcp_bytes(na_conn *conn, const na_tcp_report *report, uint64_t in, uint64_t out) {
  if (in == 0 && out == 0)
    return;
  na_stat_row *row = tcp_row(conn, report, NA_STAT_TCP_BYTES, 0);
  if (!row)
    return;
  row->count++;
  row->bytes_in += in;
  row->bytes_out += out;
}

/* ---- access records ---- */

static uint64_t wall_clock_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* What the other end of a tunnel is, and says. */
static void describe_peer(na_access_record *record, const na_conn *conn, uint32_t upstream, bool mutual_tls) {
  na_peer peer;
  record->principal = upstream;
  record->mutual_tls = mutual_tls;
  if (!na_conn_inbound(conn) || !na_hbone_peer(&conn->stream, &peer))
    return;
  record->principal = peer.principal;
  record->mutual_tls = 1;
  na_access_text(record->peer_baggage, sizeof record->peer_baggage, na_str_of(peer.baggage));
  na_access_text(record->forwarded_for, sizeof record->forwarded_for, na_forwarded_client(na_str_of(peer.forwarded)));
  na_access_text(record->traceparent, sizeof record->traceparent, na_str_of(peer.traceparent));
}

static na_access_record *begin_record(na_conn *conn, uint64_t start_us, const na_address *remote,
                                      const na_address *from) {
  na_worker *worker = conn->worker;
  if (!worker->access.records)
    return NULL;
  na_access_record *record = na_access_begin(&worker->access);
  if (!record) {
    na_worker_count(worker, NA_COUNTER_ACCESS_DROPPED);
    return NULL;
  }
  record->duration_us = worker->loop.now_us - start_us;
  record->start_us = wall_clock_us() - record->duration_us;
  record->workload = conn->workload->id;
  record->inbound = na_conn_inbound(conn);
  memcpy(record->downstream_remote, conn->peer.ip, 16);
  memcpy(record->downstream_local, conn->local.ip, 16);
  memcpy(record->upstream_remote, remote->ip, 16);
  memcpy(record->upstream_local, from->ip, 16);
  record->downstream_remote_port = conn->peer.port;
  record->downstream_local_port = conn->local.port;
  record->upstream_remote_port = remote->port;
  record->upstream_local_port = from->port;
  return record;
}

static void text(char *field, size_t size, const char *s) {
  if (s)
    na_access_text(field, size, na_str_of(s));
}

void na_report_tcp_closed(na_conn *conn, const na_tcp_report *report) {
  na_stat_row *row = tcp_row(conn, report, NA_STAT_TCP_CLOSED, report->flags);
  if (row) {
    row->count++;
    row->duration_us += conn->worker->loop.now_us - conn->start_us;
  }
  na_access_record *record = begin_record(conn, conn->start_us, &report->remote, &report->from);
  if (!record)
    return;
  describe_peer(record, conn, report->principal, report->mutual_tls);
  record->audit = conn->audit;
  record->bytes_in = conn->bytes_in;
  record->bytes_out = conn->bytes_out;
  record->upstream_us = report->connect_us;
  record->cluster_tag = report->cluster_tag;
  record->endpoint_tag = report->endpoint_tag;
  record->flags = report->flags;
  record->protocol = conn->protocol == NA_PROTOCOL_HTTP2_FORWARDED ? NA_PROTOCOL_HTTP2_FORWARDED : NA_PROTOCOL_OPAQUE;
  text(record->detail, sizeof record->detail, report->detail);
  text(record->cluster, sizeof record->cluster, report->cluster);
  text(record->upstream_failure, sizeof record->upstream_failure, report->failure);
  na_access_publish(&conn->worker->access);
}

void na_report_tunnel_refused(na_worker *worker, const na_workload *workload, const na_address *peer,
                              const na_address *local, const char *detail, const char *why) {
  na_access_record *record = worker->access.records ? na_access_begin(&worker->access) : NULL;
  if (!record) {
    if (worker->access.records)
      na_worker_count(worker, NA_COUNTER_ACCESS_DROPPED);
    return;
  }
  record->start_us = wall_clock_us();
  record->workload = workload->id;
  record->inbound = 1;
  record->flags = NA_FLAG_DPE;
  memcpy(record->downstream_remote, peer->ip, 16);
  memcpy(record->downstream_local, local->ip, 16);
  record->downstream_remote_port = peer->port;
  record->downstream_local_port = local->port;
  text(record->detail, sizeof record->detail, detail);
  text(record->upstream_failure, sizeof record->upstream_failure, why);
  na_access_publish(&worker->access);
}

/* ---- HTTP ---- */

static void request_stats(const na_http_request *request) {
  const na_conn *conn = request->conn;
  na_worker *worker = request->worker;
  na_stat_key key = {.kind = NA_STAT_HTTP,
                     .workload = conn->workload->id,
                     .cluster_tag = request->cluster_tag,
                     .endpoint_tag = request->endpoint_tag,
                     .flags = request->flags,
                     .status = request->status,
                     .protocol = request->grpc ? NA_PROTOCOL_GRPC : NA_PROTOCOL_HTTP1};
  set_peer(&key, conn, &request->remote);
  set_principal(&key, conn, request->principal, request->mutual_tls);
  na_stat_row *row = na_stats_row(&worker->stats, &key);
  if (row)
    na_stats_request(row, worker->loop.now_us - request->start_us, request->bytes_in, request->bytes_out);
}

static void describe_request(na_access_record *record, const na_request_texts *texts) {
  na_access_text(record->method, sizeof record->method, texts->method);
  na_access_text(record->authority, sizeof record->authority, texts->authority);
  na_access_text(record->path, sizeof record->path, texts->path);
  na_access_text(record->user_agent, sizeof record->user_agent, texts->user_agent);
  if (texts->forwarded_for.n) /* else what the tunnel says */
    na_access_text(record->forwarded_for, sizeof record->forwarded_for, texts->forwarded_for);
  na_access_text(record->request_id, sizeof record->request_id, texts->request_id);
}

static void request_record(na_http_request *request) {
  na_access_record *record = begin_record(request->conn, request->start_us, &request->remote, &request->local);
  if (!record)
    return;
  describe_peer(record, request->conn, request->principal, request->mutual_tls);
  record->audit = request->audit ? request->audit : request->conn->audit;
  record->bytes_in = request->bytes_in;
  record->bytes_out = request->bytes_out;
  record->upstream_us = request->first_us ? request->first_us - request->start_us : 0;
  record->cluster_tag = request->cluster_tag;
  record->endpoint_tag = request->endpoint_tag;
  record->route_tag = request->route_tag;
  record->flags = request->flags;
  record->status = request->status;
  record->protocol = request->grpc ? NA_PROTOCOL_GRPC : NA_PROTOCOL_HTTP1;
  record->http_minor = !request->http10; /* what is spoken here, also if the request could not be read */
  if (request->head_bytes)
    describe_request(record, &request->texts);
  if (request->generated_id[0])
    text(record->request_id, sizeof record->request_id, request->generated_id);
  text(record->route, sizeof record->route, request->route ? request->route->name : NULL);
  text(record->cluster, sizeof record->cluster, request->cluster ? request->cluster->name : NULL);
  text(record->detail, sizeof record->detail, request->detail);
  text(record->upstream_failure, sizeof record->upstream_failure, request->failure);
  na_access_publish(&request->worker->access);
}

void na_report_request(na_http_request *request) {
  request_stats(request);
  if (request->worker->access.records)
    request_record(request);
}
