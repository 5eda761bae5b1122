/* SPDX-License-Identifier: Apache-2.0
 *
 * Values of headers with Envoy's command operators, `%COMMAND(ARGUMENT):LENGTH%`: read once, written for each request.
 * What commands stand for is told by a source, so that nothing here knows of connections.
 */
#ifndef NODEAGENT_HEADER_FORMAT_H
#define NODEAGENT_HEADER_FORMAT_H

#include "http1.h"

#define NA_MAX_FORMAT_PARTS 64 /* at most, in one value */

enum na_format_command {
  NA_FORMAT_TEXT, /* as it is written */
  NA_FORMAT_BYTES_RECEIVED,
  NA_FORMAT_CONNECTION_ID,
  NA_FORMAT_DOWNSTREAM_LOCAL_ADDRESS,
  NA_FORMAT_DOWNSTREAM_LOCAL_IP,
  NA_FORMAT_DOWNSTREAM_LOCAL_PORT,
  NA_FORMAT_DOWNSTREAM_PEER_URI_SAN,
  NA_FORMAT_DOWNSTREAM_REMOTE_ADDRESS,
  NA_FORMAT_DOWNSTREAM_REMOTE_IP,
  NA_FORMAT_DOWNSTREAM_REMOTE_PORT,
  NA_FORMAT_HOSTNAME,
  NA_FORMAT_PROTOCOL,
  NA_FORMAT_REQ,
  NA_FORMAT_RESP,
  NA_FORMAT_RESPONSE_CODE,
  NA_FORMAT_RESPONSE_CODE_DETAILS,
  NA_FORMAT_ROUTE_NAME,
  NA_FORMAT_START_TIME,
  NA_FORMAT_UPSTREAM_CLUSTER,
  NA_FORMAT_UPSTREAM_LOCAL_ADDRESS,
  NA_FORMAT_UPSTREAM_LOCAL_IP,
  NA_FORMAT_UPSTREAM_LOCAL_PORT,
  NA_FORMAT_UPSTREAM_REMOTE_ADDRESS,
  NA_FORMAT_UPSTREAM_REMOTE_IP,
  NA_FORMAT_UPSTREAM_REMOTE_PORT,
};

typedef struct na_format_part {
  uint8_t command; /* enum na_format_command */
  uint32_t limit;  /* bytes of it that are written; 0: all */
  na_str text;     /* the text, the header's name, or the form of a time; owned */
  na_str other;    /* a header to take where the first is missing; owned */
} na_format_part;

typedef struct na_format {
  uint32_t n;
  na_format_part parts[NA_MAX_FORMAT_PARTS];
} na_format;

/* Tells what commands stand for now; writes nothing where there is nothing to tell. */
typedef struct na_format_source na_format_source;
struct na_format_source {
  void (*write)(const na_format_source *source, const na_format_part *part, na_out *out);
};

/* Read a value; -EINVAL with the reason in error. */
int na_format_new(const char *text, na_format **out, char *error, size_t size);
void na_format_free(na_format *format);
/* Write the value. */
void na_format_write(const na_format *format, const na_format_source *source, na_out *out);
/* Whether the value would be empty: then Envoy leaves the header as it is. */
bool na_format_is_empty(const na_format *format, const na_format_source *source);
/* Write a moment (microseconds since 1970) in a form of strftime(3), UTC; %s: seconds since 1970, %1f to %9f: digits of
 * the fraction. An empty form is Envoy's: 2018-12-18T00:00:00.000Z. */
void na_format_time(na_str form, uint64_t us, na_out *out);

#endif
