/* SPDX-License-Identifier: Apache-2.0
 *
 * Turning what happened into statistics and access records.
 */
#ifndef NODEAGENT_REPORT_H
#define NODEAGENT_REPORT_H

#include "conn.h"

/* What a TCP connection was joined to. */
typedef struct na_tcp_report {
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t flags;
  const char *cluster; /* name, or NULL */
  const char *failure; /* why the upstream failed, or NULL */
  const char *detail;  /* why the connection may not be, or NULL */
  uint32_t principal;  /* of the upstream's tunnel */
  bool mutual_tls;     /* it is tunnelled */
  na_address remote;   /* of the upstream; zeros when there was none */
  na_address from;     /* our end of it */
  uint64_t connect_us;
} na_tcp_report;

void na_report_tcp_opened(na_conn *conn, const na_tcp_report *report);
/* Bytes since the last report. */
void na_report_tcp_bytes(na_conn *conn, const na_tcp_report *report, uint64_t in, uint64_t out);
/* The end: statistics and access record. */
void na_report_tcp_closed(na_conn *conn, const na_tcp_report *report);
/* A tunnel that a peer tried to make, and did not get. `detail` as in the access record, `why` for people. */
void na_report_tunnel_refused(na_worker *worker, const na_workload *workload, const na_address *peer,
                              const na_address *local, const char *detail, const char *why);
/* A finished request. */
void na_report_request(na_http_request *request);

#endif
