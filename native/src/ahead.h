/* SPDX-License-Identifier: Apache-2.0
 *
 * Connecting to the application before its client is let in: a tunnel's CONNECT is answered 200 only when the
 * application has accepted (Istio's HBONE), while what the client speaks shows after that. The connection is then taken
 * by whoever comes to need it, a relay or a first request.
 */
#ifndef NODEAGENT_AHEAD_H
#define NODEAGENT_AHEAD_H

#include "conn.h"

/* Connect for `conn`, which is inbound; then na_conn_admit(), or the end of it (flag UF). A port of HTTP that has a
 * pooled connection needs no other. Nothing happens before the end of the turn. */
void na_ahead_start(na_conn *conn);
/* The connected (or connecting) socket, once; -1 if there is none. */
int na_ahead_take(na_conn *conn);
/* The connection is over. */
void na_ahead_drop(na_conn *conn);

#endif
