/* SPDX-License-Identifier: Apache-2.0 */
#include "proto_wire.h"

#include <stdlib.h>
#include <string.h>

/* Of a field's number. */
#define MAX_FIELD ((1u << 29) - 1)
/* Room for the length of a nested message, whose size is not known before its end: always this long. */
#define LENGTH_BYTES 4

/* ---- writing ---- */

static bool reserve(na_wire_out *out, size_t n) {
  if (out->failed || out->n + n <= out->size)
    return !out->failed;
  size_t size = (out->n + n) * 2 + 256;
  char *grown = realloc(out->bytes, size);
  out->failed = grown == NULL;
  if (grown) {
    out->bytes = grown;
    out->size = size;
  }
  return grown != NULL;
}

static void append(na_wire_out *out, const char *bytes, size_t n) {
  if (n == 0 || !reserve(out, n))
    return;
  memcpy(out->bytes + out->n, bytes, n);
  out->n += n;
}

static void append_varint(na_wire_out *out, uint64_t value) {
  char bytes[10];
  size_t n = 0;
  for (; value > 127; value >>= 7)
    bytes[n++] = (char)(value | 128);
  bytes[n++] = (char)value;
  append(out, bytes, n);
}

static void append_key(na_wire_out *out, uint32_t field, enum na_wire_type type) {
  append_varint(out, (uint64_t)field << 3 | (unsigned)type);
}

void na_wire_uint(na_wire_out *out, uint32_t field, uint64_t value) {
  if (!value) /* proto3: as if it were not there */
    return;
  append_key(out, field, NA_WIRE_VARINT);
  append_varint(out, value);
}

void na_wire_bytes(na_wire_out *out, uint32_t field, const char *bytes, size_t n) {
  if (!n)
    return;
  append_key(out, field, NA_WIRE_BYTES);
  append_varint(out, n);
  append(out, bytes, n);
}

void na_wire_str(na_wire_out *out, uint32_t field, na_str text) {
  na_wire_bytes(out, field, text.p, text.n);
}

void na_wire_entry(na_wire_out *out, uint32_t field, na_str key, na_str value) {
  size_t begun = na_wire_begin(out, field);
  na_wire_str(out, 1, key);
  na_wire_str(out, 2, value);
  na_wire_end(out, begun);
}

size_t na_wire_begin(na_wire_out *out, uint32_t field) {
  const char room[LENGTH_BYTES] = {0};
  append_key(out, field, NA_WIRE_BYTES);
  append(out, room, sizeof room);
  return out->n;
}

void na_wire_end(na_wire_out *out, size_t begun) {
  if (out->failed)
    return;
  size_t n = out->n - begun;
  if (n >> (7 * LENGTH_BYTES)) {
    out->failed = true;
    return;
  }
  for (int i = 0; i < LENGTH_BYTES; i++) /* a varint may be longer than it must */
    out->bytes[begun - LENGTH_BYTES + (size_t)i] = (char)((n >> (7 * i) & 127) | (i < LENGTH_BYTES - 1 ? 128 : 0));
}

void na_wire_free(na_wire_out *out) {
  free(out->bytes);
  *out = (na_wire_out){0};
}

/* ---- reading ---- */

static bool fail(na_wire_in *in) {
  in->failed = true;
  in->rest.n = 0;
  return false;
}

static bool take_varint(na_wire_in *in, uint64_t *value) {
  *value = 0;
  for (uint32_t i = 0; i < 10 && i < in->rest.n; i++) {
    uint8_t byte = (uint8_t)in->rest.p[i];
    if (i == 9 && byte > 1)
      return fail(in);
    *value |= (uint64_t)(byte & 127) << (7 * i);
    if (byte & 128)
      continue;
    in->rest.p += i + 1;
    in->rest.n -= i + 1;
    return true;
  }
  return fail(in);
}

static bool take(na_wire_in *in, uint64_t n, na_str *out) {
  if (n > in->rest.n)
    return fail(in);
  *out = (na_str){in->rest.p, (uint32_t)n};
  in->rest.p += n;
  in->rest.n -= (uint32_t)n;
  return true;
}

static bool take_fixed(na_wire_in *in, uint32_t n, uint64_t *value) {
  na_str bytes;
  if (!take(in, n, &bytes))
    return false;
  *value = 0;
  for (uint32_t i = 0; i < n; i++)
    *value |= (uint64_t)(uint8_t)bytes.p[i] << (8 * i);
  return true;
}

bool na_wire_next(na_wire_in *in, na_wire_field *field) {
  uint64_t key;
  if (!in->rest.n || !take_varint(in, &key))
    return false;
  if (key >> 3 == 0 || key >> 3 > MAX_FIELD)
    return fail(in);
  *field = (na_wire_field){.number = (uint32_t)(key >> 3), .type = key & 7};
  switch (field->type) {
  case NA_WIRE_VARINT:
    return take_varint(in, &field->value);
  case NA_WIRE_FIXED64:
    return take_fixed(in, 8, &field->value);
  case NA_WIRE_FIXED32:
    return take_fixed(in, 4, &field->value);
  case NA_WIRE_BYTES:
    return take_varint(in, &field->value) && take(in, field->value, &field->bytes);
  default: /* groups, which nobody uses */
    return fail(in);
  }
}

bool na_wire_is(na_wire_in *in, const na_wire_field *field, uint32_t number, enum na_wire_type type) {
  if (field->number != number)
    return false;
  return field->type == type || fail(in);
}

/* How many bytes follow the first one, and the lowest character that may be written so. */
static int sequence_of(uint8_t first, uint32_t *bits, uint32_t *lowest) {
  if (first < 0x80) {
    *bits = first, *lowest = 0;
    return 0;
  }
  if (first >= 0xc2 && first < 0xe0) {
    *bits = first & 31, *lowest = 0x80;
    return 1;
  }
  if (first >= 0xe0 && first < 0xf0) {
    *bits = first & 15, *lowest = 0x800;
    return 2;
  }
  *bits = first & 7, *lowest = 0x10000;
  return first >= 0xf0 && first < 0xf5 ? 3 : -1;
}

bool na_utf8_valid(na_str text) {
  for (uint32_t i = 0; i < text.n;) {
    uint32_t character, lowest;
    int more = sequence_of((uint8_t)text.p[i++], &character, &lowest);
    if (more < 0 || (uint32_t)more > text.n - i)
      return false;
    for (; more > 0; more--, i++) {
      if (((uint8_t)text.p[i] & 0xc0) != 0x80)
        return false;
      character = character << 6 | ((uint8_t)text.p[i] & 63);
    }
    if (character < lowest || character > 0x10ffff || (character >= 0xd800 && character < 0xe000))
      return false;
  }
  return true;
}
