/* SPDX-License-Identifier: Apache-2.0
 *
 * The headers by which HBONE peers tell each other about a connection: baggage (W3C Baggage), forwarded (RFC 7239) and
 * traceparent (W3C Trace Context). They are for telemetry only; nothing is decided by them.
 */
#ifndef NODEAGENT_HBONE_HEADERS_H
#define NODEAGENT_HBONE_HEADERS_H

#include "address.h"
#include "http1.h"

/* Values beyond this are dropped. */
#define NA_HBONE_VALUE_MAX 1024
/* "00-<32>-<16>-<2>" */
#define NA_TRACEPARENT_TEXT 56

/* The value of a key in a baggage header, without white space and properties; empty if it is not there. */
na_str na_baggage_find(na_str baggage, const char *key);
/* Whether this is a traceparent of version 00 (or later, by its prefix). */
bool na_traceparent_valid(na_str value);
/* A new one, not sampled. */
void na_traceparent_new(uint64_t a, uint64_t b, uint64_t c, char out[NA_TRACEPARENT_TEXT]);
/* The client that a forwarded header names first, without quotes; empty if there is none. */
na_str na_forwarded_client(na_str forwarded);
/* for="address:port", and ;host=<host> if there is one that can be said so. Returns the length, cut to size. */
size_t na_forwarded_format(const na_address *client, na_str host, char *out, size_t size);

#endif
