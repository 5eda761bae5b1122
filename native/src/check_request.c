/* SPDX-License-Identifier: Apache-2.0
 *
 * CheckRequest, as Envoy's check_request_utils.cc fills it in.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "callout.h"
#include "check_message.h"
#include "http1_parse.h"

/* envoy.service.auth.v3.CheckRequest, AttributeContext and its parts; envoy.config.core.v3.Address */
enum { REQUEST_ATTRIBUTES = 1 };
enum { CONTEXT_SOURCE = 1, CONTEXT_DESTINATION = 2, CONTEXT_REQUEST = 4 };
enum { PEER_ADDRESS = 1, PEER_PRINCIPAL = 4 };
enum { ADDRESS_SOCKET = 1 };
enum { SOCKET_ADDRESS = 2, SOCKET_PORT = 3 };
enum { PART_TIME = 1, PART_HTTP = 2 };
enum { TIME_SECONDS = 1, TIME_NANOS = 2 };
enum {
  HTTP_ID = 1,
  HTTP_METHOD = 2,
  HTTP_HEADERS = 3,
  HTTP_PATH = 4,
  HTTP_HOST = 5,
  HTTP_SCHEME = 6,
  HTTP_SIZE = 9,
  HTTP_PROTOCOL = 10,
  HTTP_BODY = 11,
  HTTP_RAW_BODY = 12,
};

static void write_peer(na_wire_out *out, uint32_t field, const na_address *address, na_str principal) {
  char text[INET6_ADDRSTRLEN] = "";
  bool v4 = na_ip_is_v4(address->ip);
  inet_ntop(v4 ? AF_INET : AF_INET6, address->ip + (v4 ? 12 : 0), text, sizeof text);
  size_t peer = na_wire_begin(out, field);
  size_t outer = na_wire_begin(out, PEER_ADDRESS);
  size_t socket = na_wire_begin(out, ADDRESS_SOCKET);
  na_wire_str(out, SOCKET_ADDRESS, na_str_of(text));
  na_wire_uint(out, SOCKET_PORT, address->port);
  na_wire_end(out, socket);
  na_wire_end(out, outer);
  na_wire_str(out, PEER_PRINCIPAL, principal);
  na_wire_end(out, peer);
}

/* ---- headers ---- */

/* A string field that must be UTF-8, which header values need not be: what is not becomes `!`, as with Envoy. */
static void write_text(na_wire_out *out, uint32_t field, na_str text) {
  size_t at = out->n;
  na_wire_str(out, field, text);
  if (out->failed || na_utf8_valid(text))
    return;
  for (char *p = out->bytes + out->n - text.n; at < out->n && p < out->bytes + out->n; p++)
    if ((uint8_t)*p >= 0x80)
      *p = '!';
}

static bool is_first(const na_request *request, uint32_t at) {
  for (uint32_t i = 0; i < at; i++)
    if (!request->headers[i].hop && na_str_ieq2(request->headers[i].name, request->headers[at].name))
      return false;
  return true;
}

/* The values of the header at `at` and of those of its name behind it, joined by commas, as one string field. */
static void write_values(na_wire_out *out, const na_request *request, uint32_t at, char *scratch) {
  na_str name = request->headers[at].name;
  size_t n = 0;
  for (uint32_t i = at; i < request->nheaders; i++) {
    const na_header *header = &request->headers[i];
    if (header->hop || !na_str_ieq2(header->name, name))
      continue;
    if (i != at)
      scratch[n++] = ',';
    memcpy(scratch + n, header->value.p, header->value.n);
    n += header->value.n;
  }
  write_text(out, 2, (na_str){scratch, (uint32_t)n});
}

static bool is_told(const na_check_request *check, na_str name) {
  return !check->is_told || check->is_told(check->context, name);
}

static void write_header(na_wire_out *out, const na_request *request, uint32_t at, char *scratch) {
  na_str name = request->headers[at].name;
  size_t entry = na_wire_begin(out, HTTP_HEADERS);
  for (uint32_t i = 0; i < name.n; i++)
    scratch[i] = na_lower(name.p[i]);
  na_wire_str(out, 1, (na_str){scratch, name.n});
  write_values(out, request, at, scratch);
  na_wire_end(out, entry);
}

static void write_pseudo(na_wire_out *out, const na_check_request *check, const char *name, na_str value) {
  if (is_told(check, na_str_of(name)))
    na_wire_entry(out, HTTP_HEADERS, na_str_of(name), value);
}

/* Whether the header at `at` is one to tell of, and the first of its name. */
static bool is_listed(const na_check_request *check, uint32_t at) {
  const na_header *header = &check->http->headers[at];
  return !header->hop && header->id != NA_HDR_HOST && is_first(check->http, at) &&
         !na_str_ieq(header->name, NA_PARTIAL_BODY_HEADER) && is_told(check, header->name);
}

/* Room for the longest name or joined value. */
static size_t scratch_size(const na_request *request) {
  size_t size = 1;
  for (uint32_t i = 0; i < request->nheaders; i++)
    size += (size_t)request->headers[i].name.n + request->headers[i].value.n + 1;
  return size;
}

static void write_headers(na_wire_out *out, const na_check_request *check) {
  const na_request *request = check->http;
  char *scratch = malloc(scratch_size(request));
  if (!scratch) {
    out->failed = true;
    return;
  }
  write_pseudo(out, check, ":method", request->method);
  write_pseudo(out, check, ":path", request->path_query);
  write_pseudo(out, check, ":authority", request->authority);
  write_pseudo(out, check, ":scheme", request->scheme);
  if (check->has_body)
    na_wire_entry(out, HTTP_HEADERS, na_str_of(NA_PARTIAL_BODY_HEADER), na_str_of(check->partial ? "true" : "false"));
  for (uint32_t i = 0; i < request->nheaders; i++)
    if (is_listed(check, i))
      write_header(out, request, i, scratch);
  free(scratch);
}

/* ---- the message ---- */

static void write_http(na_wire_out *out, const na_check_request *check) {
  const na_request *request = check->http;
  char id[24];
  na_out text = {.p = id, .size = sizeof id};
  na_out_u64(&text, check->id);
  size_t http = na_wire_begin(out, PART_HTTP);
  na_wire_str(out, HTTP_ID, (na_str){id, (uint32_t)text.n});
  na_wire_str(out, HTTP_METHOD, request->method);
  write_headers(out, check);
  na_wire_str(out, HTTP_PATH, request->path_query);
  na_wire_str(out, HTTP_HOST, request->authority);
  na_wire_str(out, HTTP_SCHEME, request->scheme);
  na_wire_uint(out, HTTP_SIZE, check->body.n);
  na_wire_str(out, HTTP_PROTOCOL, check->protocol);
  if (check->raw)
    na_wire_str(out, HTTP_RAW_BODY, check->body);
  else
    write_text(out, HTTP_BODY, check->body);
  na_wire_end(out, http);
}

void na_check_request_write(const na_check_request *check, na_wire_out *out) {
  size_t attributes = na_wire_begin(out, REQUEST_ATTRIBUTES);
  write_peer(out, CONTEXT_SOURCE, check->source, check->source_principal);
  write_peer(out, CONTEXT_DESTINATION, check->destination, check->destination_principal);
  if (check->http) {
    size_t part = na_wire_begin(out, CONTEXT_REQUEST);
    size_t time = na_wire_begin(out, PART_TIME);
    na_wire_uint(out, TIME_SECONDS, check->time_us / 1000000);
    na_wire_uint(out, TIME_NANOS, check->time_us % 1000000 * 1000);
    na_wire_end(out, time);
    write_http(out, check);
    na_wire_end(out, part);
  }
  na_wire_end(out, attributes);
}
