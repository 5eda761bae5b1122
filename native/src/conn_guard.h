/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards of inbound connections: who may connect, asked before anything of the connection reaches the application, and
 * again when the policies of its workload have changed.
 */
#ifndef NODEAGENT_CONN_GUARD_H
#define NODEAGENT_CONN_GUARD_H

#include "authz.h"
#include "conn.h"

/* Who the peer is, as its tunnel's certificate says; empty if nobody vouches for it. */
na_str na_conn_principal(const na_conn *conn);
/* What there is to know of a connection. It must not change while the subject is used. */
void na_conn_subject(na_conn *conn, na_subject *out);

/* Ask what concerns every connection to the workload. False: it was refused. */
bool na_conn_guard(na_conn *conn, const na_inbound *inbound);
/* A tunnel's stream: ask for it before the application is connected, and then connect, refuse (401) or wait. */
void na_conn_guard_tunnelled(na_conn *conn, const na_inbound *inbound);
/* Go on as TCP if the port's guards let it: else it is refused, or waits. */
void na_conn_start_tcp(na_conn *conn);
/* Whether requests of HTTP/2, which nobody can look at here, may pass. */
bool na_conn_passes_http2(const na_conn *conn);
/* Ask once more whether the connections may be whose workloads' inbound configuration came with a later snapshot than
 * `since`; reset those that may not. What is asked of HTTP requests is asked with the next one. */
void na_conns_recheck(na_worker *worker, uint64_t since);

#endif
