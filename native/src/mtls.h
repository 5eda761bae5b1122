/* SPDX-License-Identifier: Apache-2.0
 *
 * Istio's mTLS between proxies, without a tunnel: to and from pods with sidecars. A connection is TLS 1.3 with both
 * workloads' certificates, and in it is what the application speaks; ALPN tells the server that the client is a proxy.
 *
 * The sending side is here; greet.c receives.
 */
#ifndef NODEAGENT_MTLS_H
#define NODEAGENT_MTLS_H

#include "hbone.h"

/* Servers whose TLS sessions are remembered, per worker; with more of them all are forgotten. */
#define NA_MTLS_MAX_SESSIONS 1024

/* How na_map keeps what a worker remembers (na_hbone.sessions). */
extern const na_map_ops na_mtls_memo_ops;

/* As na_hbone_connect(). */
int na_mtls_connect(na_stream *stream, const na_hbone_dial *dial);
/* The workload's certificate; NULL: none that is valid. */
na_identity *na_mtls_identity(const na_worker *worker, const na_workload *workload);

/* Of a TLS stream of either side: who is at the other end; false for any other stream. */
bool na_mtls_peer(const na_stream *stream, na_peer *out);
/* Whether both certificates are valid, and ours is in force. */
bool na_mtls_is_current(const na_stream *stream);

#endif
