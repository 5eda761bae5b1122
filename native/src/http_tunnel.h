/* SPDX-License-Identifier: Apache-2.0
 *
 * An upgraded connection (101): bytes both ways from here on, still the same request for statistics and limits.
 */
#ifndef NODEAGENT_HTTP_TUNNEL_H
#define NODEAGENT_HTTP_TUNNEL_H

#include "http_request.h"

/* Join the client's and the upstream's stream; what was read of either is sent first. May end the request. */
void na_tunnel_start(na_http_request *request);
/* Part them; called at the end of the request. */
void na_tunnel_close(na_http_request *request);

#endif
