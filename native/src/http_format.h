/* SPDX-License-Identifier: Apache-2.0
 *
 * What the command operators in headers stand for: of a request and its response.
 */
#ifndef NODEAGENT_HTTP_FORMAT_H
#define NODEAGENT_HTTP_FORMAT_H

#include "header_format.h"
#include "http_request.h"

typedef struct na_http_source {
  na_format_source source; /* first */
  na_http_request *request;
  const na_request *in;        /* the request's head, while it is at hand; else NULL, and the bytes received are read */
  const na_response *response; /* NULL: on its way upstream */
} na_http_source;

/* Begin to tell of a request on its way upstream, or of its response. */
const na_format_source *na_http_source_init(na_http_source *source, na_http_request *request, const na_request *in,
                                            const na_response *response);

#endif
