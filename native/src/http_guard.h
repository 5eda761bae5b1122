/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards of inbound HTTP requests: who may ask for what, asked of each request before it is sent on.
 */
#ifndef NODEAGENT_HTTP_GUARD_H
#define NODEAGENT_HTTP_GUARD_H

#include "authz.h"
#include "http_request.h"

/* Ask for a request whose head is in worker->head. True: it may go on. False: it was answered or aborted, or it waits,
 * and na_request_guarded() will be called. */
bool na_http_guard(na_http_request *request, const na_inbound *inbound);
/* Ask once more for a request that is on its way while its workload's policies change: whether its connection may be,
 * and for an upgraded one all that it was asked before. Abort it if it may not be. */
void na_http_guard_again(na_http_request *request, const na_inbound *inbound);

#endif
