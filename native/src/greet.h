/* SPDX-License-Identifier: Apache-2.0
 *
 * The first bytes of a captured connection to a workload that has an identity: does a proxy with mTLS come (Istio's
 * sidecars), or somebody in plaintext? Who it is must be known before anybody is asked whether it may come in.
 */
#ifndef NODEAGENT_GREET_H
#define NODEAGENT_GREET_H

#include "conn.h"

/* Begin, or return false: there is nothing to find out. Ends with na_conn_greeted(), or the connection's end. */
bool na_greet_start(na_conn *conn);
/* The connection ends: it is none of those any more that are not authenticated yet. */
void na_greet_stop(na_conn *conn);

#endif
