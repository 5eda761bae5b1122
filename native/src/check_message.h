/* SPDX-License-Identifier: Apache-2.0
 *
 * The messages of Envoy's external authorization: envoy.service.auth.v3.CheckRequest and CheckResponse, as far as
 * Envoy's own filters fill them in and heed them.
 */
#ifndef NODEAGENT_CHECK_MESSAGE_H
#define NODEAGENT_CHECK_MESSAGE_H

#include "address.h"
#include "metadata.h"
#include "proto_wire.h"

/* What is asked about. */
typedef struct na_check_request {
  const na_address *source;
  const na_address *destination;
  na_str source_principal; /* empty: none */
  na_str destination_principal;
  const na_request *http; /* NULL: a TCP connection */
  /* Whether a header, by its lower-case name, is told; NULL: all are. */
  bool (*is_told)(const void *context, na_str name);
  const void *context;
  uint64_t time_us; /* since 1970: when it began */
  uint64_t id;
  na_str protocol; /* `HTTP/1.1` */
  bool has_body;
  bool partial; /* only the beginning of the body is known */
  bool raw;     /* the body as bytes, whatever is in it */
  na_str body;
} na_check_request;

/* Write the message. On failure out->failed is set. */
void na_check_request_write(const na_check_request *request, na_wire_out *out);

/* Changes to headers that an answer has at most; with more it is malformed. */
#define NA_MAX_CHECK_HEADERS 256
#define NA_MAX_CHECK_QUERIES 64

enum na_check_append {
  NA_CHECK_SET,
  NA_CHECK_APPEND,
  NA_CHECK_ADD_IF_ABSENT,
  NA_CHECK_SET_IF_PRESENT,
};

typedef struct na_check_header {
  uint8_t how; /* enum na_check_append */
  na_str name;
  na_str value;
} na_check_header;

typedef struct na_check_headers {
  na_check_header items[NA_MAX_CHECK_HEADERS];
  uint32_t n;
} na_check_headers;

/* An answer; views into the message. */
typedef struct na_check_response {
  bool allowed;
  uint16_t status; /* of the refusal */
  na_str body;
  na_check_headers headers;  /* allowed: for the request; else for the client */
  na_check_headers response; /* allowed: for the client */
  na_str removed[NA_MAX_CHECK_HEADERS];
  uint32_t nremoved;
  struct {
    na_str name;
    na_str value;
  } queries[NA_MAX_CHECK_QUERIES];
  uint32_t nqueries;
  na_str removed_queries[NA_MAX_CHECK_QUERIES];
  uint32_t nremoved_queries;
  json_t *metadata; /* object, owned; NULL: none */
} na_check_response;

/* Read a message. -EBADMSG: malformed, or beyond the limits; -ENOMEM. On success the response is to be cleared. */
int na_check_response_read(na_str message, na_check_response *out);
void na_check_response_clear(na_check_response *response);

#endif
