/* SPDX-License-Identifier: Apache-2.0
 *
 * CheckResponse, strictly. Fields that are not known are skipped, as protobuf has it.
 */
#include <errno.h>
#include <string.h>

#include "check_message.h"
#include "json.h"

/* envoy.service.auth.v3.CheckResponse, DeniedHttpResponse, OkHttpResponse; envoy.config.core.v3.HeaderValueOption */
enum { RESPONSE_STATUS = 1, RESPONSE_DENIED = 2, RESPONSE_OK = 3, RESPONSE_METADATA = 4 };
enum { STATUS_CODE = 1 };
enum { DENIED_STATUS = 1, DENIED_HEADERS = 2, DENIED_BODY = 3 };
enum {
  OK_HEADERS = 2,
  OK_METADATA = 3,
  OK_REMOVE = 5,
  OK_RESPONSE_HEADERS = 6,
  OK_SET_QUERIES = 7,
  OK_REMOVE_QUERIES = 8,
};
enum { OPTION_HEADER = 1, OPTION_APPEND = 2, OPTION_ACTION = 3 };
enum { HEADER_KEY = 1, HEADER_VALUE = 2, HEADER_RAW_VALUE = 3 };
enum { ACTION_APPEND = 0, ACTION_ADD_IF_ABSENT = 1, ACTION_SET = 2, ACTION_SET_IF_PRESENT = 3 };

/* google.protobuf.Struct, Value and ListValue */
enum { STRUCT_FIELDS = 1, LIST_VALUES = 1 };
enum { VALUE_NULL = 1, VALUE_NUMBER = 2, VALUE_STRING = 3, VALUE_BOOL = 4, VALUE_STRUCT = 5, VALUE_LIST = 6 };

/* ---- google.protobuf.Struct ---- */

static json_t *read_struct(na_str message, uint32_t depth);
static json_t *read_value(na_str message, uint32_t depth);

static json_t *read_list(na_str message, uint32_t depth) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  json_t *list = json_array();
  while (list && na_wire_next(&in, &field)) {
    if (!na_wire_is(&in, &field, LIST_VALUES, NA_WIRE_BYTES))
      continue;
    json_t *value = read_value(field.bytes, depth + 1);
    if (!value || json_array_append_new(list, value))
      in.failed = true;
    if (in.failed)
      break;
  }
  if (!in.failed)
    return list;
  json_decref(list);
  return NULL;
}

static json_t *number_of(uint64_t bits) {
  double number;
  memcpy(&number, &bits, sizeof number);
  /* As JSON, to which a whole number is one. */
  if (number >= -9e15 && number <= 9e15 && number == (double)(json_int_t)number)
    return json_integer((json_int_t)number);
  return json_real(number); /* NULL for what is no number */
}

/* NULL for what is malformed, and for want of memory. */
static json_t *read_value(na_str message, uint32_t depth) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  json_t *value = NULL;
  if (depth > NA_JSON_DEPTH)
    return NULL;
  while (na_wire_next(&in, &field)) {
    json_decref(value); /* the last one of a oneof holds */
    value = NULL;
    if (na_wire_is(&in, &field, VALUE_NULL, NA_WIRE_VARINT))
      value = json_null();
    else if (na_wire_is(&in, &field, VALUE_NUMBER, NA_WIRE_FIXED64))
      value = number_of(field.value);
    else if (na_wire_is(&in, &field, VALUE_STRING, NA_WIRE_BYTES))
      value = json_stringn(field.bytes.p, field.bytes.n);
    else if (na_wire_is(&in, &field, VALUE_BOOL, NA_WIRE_VARINT))
      value = json_boolean(field.value != 0);
    else if (na_wire_is(&in, &field, VALUE_STRUCT, NA_WIRE_BYTES))
      value = read_struct(field.bytes, depth + 1);
    else if (na_wire_is(&in, &field, VALUE_LIST, NA_WIRE_BYTES))
      value = read_list(field.bytes, depth + 1);
  }
  if (!in.failed)
    return value;
  json_decref(value);
  return NULL;
}

static bool read_member(json_t *object, na_str message, uint32_t depth) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  na_str key = {"", 0}, value = {"", 0};
  while (na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, 1, NA_WIRE_BYTES))
      key = field.bytes;
    else if (na_wire_is(&in, &field, 2, NA_WIRE_BYTES))
      value = field.bytes;
  }
  if (in.failed || memchr(key.p, '\0', key.n))
    return false;
  json_t *read = read_value(value, depth + 1);
  return read && json_object_setn_new(object, key.p, key.n, read) == 0;
}

static json_t *read_struct(na_str message, uint32_t depth) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  json_t *object = depth > NA_JSON_DEPTH ? NULL : json_object();
  while (object && na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, STRUCT_FIELDS, NA_WIRE_BYTES) && !read_member(object, field.bytes, depth))
      in.failed = true;
    if (in.failed)
      break;
  }
  if (!in.failed)
    return object;
  json_decref(object);
  return NULL;
}

static bool read_metadata(na_str message, na_check_response *out) {
  json_decref(out->metadata);
  out->metadata = read_struct(message, 0);
  return out->metadata != NULL;
}

/* ---- headers ---- */

static bool read_header(na_str message, na_check_header *header) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  while (na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, HEADER_KEY, NA_WIRE_BYTES))
      header->name = field.bytes;
    else if (na_wire_is(&in, &field, HEADER_VALUE, NA_WIRE_BYTES) ||
             na_wire_is(&in, &field, HEADER_RAW_VALUE, NA_WIRE_BYTES))
      header->value = field.bytes;
  }
  return !in.failed;
}

/* A google.protobuf.BoolValue. */
static bool read_bool(na_str message, bool *value) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  *value = false;
  while (na_wire_next(&in, &field))
    if (na_wire_is(&in, &field, 1, NA_WIRE_VARINT))
      *value = field.value != 0;
  return !in.failed;
}

/* `append` goes before `append_action`; without either a header takes the place of what is there (Envoy's ext_authz).
 */
static enum na_check_append append_of(bool has_append, bool append, uint64_t action) {
  if (has_append)
    return append ? NA_CHECK_APPEND : NA_CHECK_SET;
  if (action == ACTION_ADD_IF_ABSENT)
    return NA_CHECK_ADD_IF_ABSENT;
  return action == ACTION_SET_IF_PRESENT ? NA_CHECK_SET_IF_PRESENT : NA_CHECK_SET;
}

static bool read_option(na_str message, na_check_headers *out) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  na_check_header header = {.name = {"", 0}, .value = {"", 0}};
  bool has_append = false, append = false;
  uint64_t action = ACTION_APPEND;
  if (out->n == NA_MAX_CHECK_HEADERS)
    return false;
  while (na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, OPTION_HEADER, NA_WIRE_BYTES)) {
      in.failed = in.failed || !read_header(field.bytes, &header);
    } else if (na_wire_is(&in, &field, OPTION_APPEND, NA_WIRE_BYTES)) {
      has_append = true;
      in.failed = in.failed || !read_bool(field.bytes, &append);
    } else if (na_wire_is(&in, &field, OPTION_ACTION, NA_WIRE_VARINT)) {
      action = field.value;
    }
  }
  header.how = (uint8_t)append_of(has_append, append, action);
  out->items[out->n++] = header;
  return !in.failed && action <= ACTION_SET_IF_PRESENT;
}

static bool read_name(na_str name, na_str *names, uint32_t *n, uint32_t max) {
  if (*n == max)
    return false;
  names[(*n)++] = name;
  return true;
}

static bool read_query(na_str message, na_check_response *out) {
  na_check_header query = {.name = {"", 0}, .value = {"", 0}};
  if (out->nqueries == NA_MAX_CHECK_QUERIES || !read_header(message, &query)) /* key and value have the same numbers */
    return false;
  out->queries[out->nqueries].name = query.name;
  out->queries[out->nqueries++].value = query.value;
  return true;
}

/* ---- the message ---- */

static bool read_ok(na_str message, na_check_response *out) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  bool good = true;
  while (good && na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, OK_HEADERS, NA_WIRE_BYTES))
      good = read_option(field.bytes, &out->headers);
    else if (na_wire_is(&in, &field, OK_REMOVE, NA_WIRE_BYTES))
      good = read_name(field.bytes, out->removed, &out->nremoved, NA_MAX_CHECK_HEADERS);
    else if (na_wire_is(&in, &field, OK_RESPONSE_HEADERS, NA_WIRE_BYTES))
      good = read_option(field.bytes, &out->response);
    else if (na_wire_is(&in, &field, OK_SET_QUERIES, NA_WIRE_BYTES))
      good = read_query(field.bytes, out);
    else if (na_wire_is(&in, &field, OK_REMOVE_QUERIES, NA_WIRE_BYTES))
      good = read_name(field.bytes, out->removed_queries, &out->nremoved_queries, NA_MAX_CHECK_QUERIES);
    else if (na_wire_is(&in, &field, OK_METADATA, NA_WIRE_BYTES))
      good = read_metadata(field.bytes, out);
  }
  return good && !in.failed;
}

/* google.rpc.Status and envoy.type.v3.HttpStatus alike. */
static bool read_code(na_str message, uint64_t *code) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  while (na_wire_next(&in, &field))
    if (na_wire_is(&in, &field, STATUS_CODE, NA_WIRE_VARINT))
      *code = field.value;
  return !in.failed;
}

static bool read_denied(na_str message, na_check_response *out) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  uint64_t status = 0;
  bool good = true;
  while (good && na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, DENIED_STATUS, NA_WIRE_BYTES))
      good = read_code(field.bytes, &status);
    else if (na_wire_is(&in, &field, DENIED_HEADERS, NA_WIRE_BYTES))
      good = read_option(field.bytes, &out->headers);
    else if (na_wire_is(&in, &field, DENIED_BODY, NA_WIRE_BYTES))
      out->body = field.bytes;
  }
  if (!good || in.failed || (status && (status < 200 || status > 599)))
    return false;
  out->status = status ? (uint16_t)status : 403;
  return true;
}

/* What the answer is, and the message that says more. */
static bool read_outline(na_str message, na_check_response *out, na_str *denied, na_str *ok) {
  na_wire_in in = {.rest = message};
  na_wire_field field;
  uint64_t code = 0;
  bool good = true;
  while (good && na_wire_next(&in, &field)) {
    if (na_wire_is(&in, &field, RESPONSE_STATUS, NA_WIRE_BYTES))
      good = read_code(field.bytes, &code);
    else if (na_wire_is(&in, &field, RESPONSE_DENIED, NA_WIRE_BYTES))
      *denied = field.bytes;
    else if (na_wire_is(&in, &field, RESPONSE_OK, NA_WIRE_BYTES))
      *ok = field.bytes;
    else if (na_wire_is(&in, &field, RESPONSE_METADATA, NA_WIRE_BYTES))
      good = read_metadata(field.bytes, out);
  }
  out->allowed = code == 0;
  return good && !in.failed;
}

int na_check_response_read(na_str message, na_check_response *out) {
  na_str denied = {"", 0}, ok = {"", 0};
  memset(out, 0, sizeof *out);
  out->status = 403;
  out->body = (na_str){"", 0};
  bool good = read_outline(message, out, &denied, &ok);
  if (good)
    good = out->allowed ? read_ok(ok, out) : read_denied(denied, out);
  if (good)
    return 0;
  na_check_response_clear(out);
  return -EBADMSG;
}

void na_check_response_clear(na_check_response *response) {
  json_decref(response->metadata);
  response->metadata = NULL;
}
