/* SPDX-License-Identifier: Apache-2.0
 *
 * Opaque connections: choose a cluster and an endpoint, connect, copy both ways.
 */
#ifndef NODEAGENT_TCP_PROXY_H
#define NODEAGENT_TCP_PROXY_H

#include "conn.h"
#include "relay.h"

/* Further attempts after a failed connect, on other endpoints where there are some. */
#define NA_CONNECT_RETRIES 2

/* Go on as TCP; what was read already is sent first. */
void na_tcp_start(na_conn *conn);
/* Refuse with a reset, for the reason that the flags tell. */
void na_tcp_refuse(na_conn *conn, uint32_t flags);
/* The same with what the upstream failed for. */
void na_tcp_refuse_because(na_conn *conn, uint32_t flags, const char *failure);
/* It may not be, or not any more: reset it, and say in the access record why (static, or valid during the call). */
void na_tcp_deny(na_conn *conn, uint32_t flags, const char *detail);
void na_tcp_cut(na_conn *conn);
/* The name of the cluster that it goes to, "" if none. */
const char *na_tcp_cluster(const na_conn *conn);
void na_tcp_bytes(const na_conn *conn, uint64_t *in, uint64_t *out);

#endif
