/* SPDX-License-Identifier: Apache-2.0
 *
 * Heads as they leave: what was received, changed as the route says, plus what Envoy as an Istio sidecar adds.
 */
#ifndef NODEAGENT_HTTP_HEAD_H
#define NODEAGENT_HTTP_HEAD_H

#include "http_request.h"

/* How the response's body goes to the client. */
enum na_delivery {
  NA_DELIVER_AS_IS,   /* framed as it comes */
  NA_DELIVER_CHUNKED, /* it ends with the upstream's connection: framed here */
  NA_DELIVER_DECODED, /* chunked, for an HTTP/1.0 client: payload only, ends with the connection */
  NA_DELIVER_CLOSE,   /* ends with the connection */
};

/* The request as it goes upstream. */
void na_write_request_head(na_http_request *request, const na_h1_head *head, na_out *out);
/* The response as it goes to an HTTP/1 client. close: announce that the connection ends with it. */
void na_write_response_head(na_http_request *request, const na_response *response, enum na_delivery delivery,
                            bool http10, bool close, na_out *out);

#endif
