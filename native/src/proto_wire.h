/* SPDX-License-Identifier: Apache-2.0
 *
 * The protobuf wire format (protobuf.dev/programming-guides/encoding), as far as the few messages need it that the
 * engine speaks: a writer that appends to memory, and a strict reader that copies nothing.
 */
#ifndef NODEAGENT_PROTO_WIRE_H
#define NODEAGENT_PROTO_WIRE_H

#include "http1.h"

enum na_wire_type { NA_WIRE_VARINT = 0, NA_WIRE_FIXED64 = 1, NA_WIRE_BYTES = 2, NA_WIRE_FIXED32 = 5 };

/* A message that is being written. Zeroed: empty. Nested messages are written in place: begin, fields, end. */
typedef struct na_wire_out {
  char *bytes;
  size_t n;
  size_t size;
  bool failed; /* no memory: what was written is not to be used */
} na_wire_out;

void na_wire_uint(na_wire_out *out, uint32_t field, uint64_t value);
void na_wire_bytes(na_wire_out *out, uint32_t field, const char *bytes, size_t n);
void na_wire_str(na_wire_out *out, uint32_t field, na_str text);
/* An entry of a map<string, string>. */
void na_wire_entry(na_wire_out *out, uint32_t field, na_str key, na_str value);
/* Begin a nested message; returns what na_wire_end() needs. */
size_t na_wire_begin(na_wire_out *out, uint32_t field);
void na_wire_end(na_wire_out *out, size_t begun);
void na_wire_free(na_wire_out *out);

/* A message that is being read. */
typedef struct na_wire_in {
  na_str rest;
  bool failed; /* malformed from here on */
} na_wire_in;

/* One field: `bytes` of NA_WIRE_BYTES, else `number`. */
typedef struct na_wire_field {
  uint32_t number;
  uint8_t type; /* enum na_wire_type */
  na_str bytes;
  uint64_t value;
} na_wire_field;

/* The next field; false at the end, and when the rest is malformed. */
bool na_wire_next(na_wire_in *in, na_wire_field *field);
/* Whether it is the field of that number and type; another type makes the message malformed. */
bool na_wire_is(na_wire_in *in, const na_wire_field *field, uint32_t number, enum na_wire_type type);
/* Whether text is UTF-8, which strings must be (RFC 3629). */
bool na_utf8_valid(na_str text);

#endif
