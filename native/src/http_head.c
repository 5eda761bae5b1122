/* SPDX-License-Identifier: Apache-2.0 */
#include "http_head.h"

#include "http_format.h"

#include <string.h>
#include <strings.h>

#include "authz.h"

#define LITERAL(s) (s), sizeof(s) - 1

static void literal(na_out *out, const char *s, size_t n) {
  na_out_bytes(out, s, n);
}

/* The operations of destination, route, virtual host and guards for one side; false when there are none. */
static bool levels_of(const na_http_request *request, enum na_header_side side, na_header_levels *levels) {
  const na_authz *authz = side == NA_RESPONSE ? request->authz : NULL;
  bool answered = authz && authz->answer.n;
  if (!request->route && !answered)
    return false;
  *levels = (na_header_levels){.source = NULL};
  if (request->route) {
    levels->levels[0] = request->destination ? &request->destination->mutations[side] : NULL;
    levels->levels[1] = &request->route->mutations[side];
    levels->levels[2] = &request->vhost->mutations[side];
  }
  levels->levels[3] = answered ? &authz->answer : NULL;
  for (int i = 0; i < 4; i++)
    if (levels->levels[i] && levels->levels[i]->n)
      return true;
  return false;
}

/* A random UUID (RFC 9562, version 4) in text, terminated. */
static void make_uuid(na_worker *worker, char text[37]) {
  static const char hex[] = "0123456789abcdef";
  uint64_t bits[2] = {na_random(worker), na_random(worker)};
  for (int i = 0, nibble = 0; i < 36; i++) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      text[i] = '-';
      continue;
    }
    unsigned value = bits[nibble / 16] >> (4 * (nibble % 16)) & 15;
    if (i == 14)
      value = 4;
    else if (i == 19)
      value = 8 | (value & 3);
    text[i] = hex[value];
    nibble++;
  }
  text[36] = '\0';
}

static na_str request_id(na_http_request *request) {
  if (!request->generated_id[0]) /* one for all attempts */
    make_uuid(request->worker, request->generated_id);
  return na_str_of(request->generated_id);
}

/* TE is hop-by-hop, but `trailers` is what gRPC asks for end to end, and we pass trailers on. */
static bool te_trailers(const na_h1_head *head) {
  int at = head->index[NA_HDR_TE];
  if (at < 0)
    return false;
  na_str value = head->headers[at].value;
  for (uint32_t i = 0; i + 8 <= value.n; i++)
    if (strncasecmp(value.p + i, "trailers", 8) == 0)
      return true;
  return false;
}

static na_str header_value(const na_header *headers, uint32_t n, uint8_t id) {
  for (uint32_t i = 0; i < n; i++)
    if (headers[i].id == id)
      return headers[i].value;
  return (na_str){0};
}

static void write_upgrade(const na_header *headers, uint32_t n, na_out *out) {
  literal(out, LITERAL("connection: upgrade\r\nupgrade: "));
  na_out_str(out, header_value(headers, n, NA_HDR_UPGRADE));
  literal(out, LITERAL("\r\n"));
}

static void write_request_line(na_http_request *request, const na_request *in, na_out *out, bool *rewritten) {
  na_out_str(out, in->method);
  literal(out, LITERAL(" "));
  size_t start = out->n;
  if (request->route)
    na_route_write_path(request->route, in, out);
  else
    na_route_write_target(in, out);
  size_t n = out->n - start;
  *rewritten =
      request->route && !out->over && (n != in->path_query.n || memcmp(out->p + start, in->path_query.p, n) != 0);
  literal(out, LITERAL(" HTTP/1.1\r\n"));
}

/* Which attempt at an upstream this is, from 1. */
static na_str attempt(const na_http_request *request, char *text, size_t size) {
  na_out out = {.p = text, .size = size};
  na_out_u64(&out, (request->ntried ? request->ntried : 1u) + request->replayed);
  return (na_str){text, (uint32_t)out.n};
}

void na_write_request_head(na_http_request *request, const na_h1_head *head, na_out *out) {
  const na_request *in = &head->request;
  bool rewritten;
  write_request_line(request, in, out, &rewritten);
  na_header_levels levels;
  const na_route *route = request->route;
  na_str authority = route && route->rewrite_authority ? na_str_of(route->rewrite_authority) : in->authority;
  char destination[NA_ADDRESS_TEXT];
  if (!authority.n && head->index[NA_HDR_HOST] < 0) { /* HTTP/1.0 can do without, 1.1 upstream cannot */
    na_address_format(&request->conn->local, destination);
    authority = na_str_of(destination);
  }
  na_own_headers own = {.n = 0};
  if (head->index[NA_HDR_X_FORWARDED_PROTO] < 0)
    na_own_header(&own, "x-forwarded-proto", na_str_of("http"));
  if (head->index[NA_HDR_X_REQUEST_ID] < 0)
    na_own_header(&own, "x-request-id", request_id(request));
  if (rewritten)
    na_own_header(&own, "x-envoy-original-path", in->path_query);
  char attempts[4];
  if (request->vhost && request->vhost->attempt_count)
    na_own_header(&own, "x-envoy-attempt-count", attempt(request, attempts, sizeof attempts));
  na_http_source source;
  bool changed = levels_of(request, NA_REQUEST, &levels);
  if (changed)
    levels.source = na_http_source_init(&source, request, in, NULL);
  na_write_headers(in->headers, in->nheaders, &own, changed ? &levels : NULL, authority, out);
  if (head->body == NA_BODY_CHUNKED)
    literal(out, LITERAL("transfer-encoding: chunked\r\n"));
  if (te_trailers(head))
    literal(out, LITERAL("te: trailers\r\n"));
  if (request->upgrade)
    write_upgrade(in->headers, in->nheaders, out);
  literal(out, LITERAL("\r\n"));
}

static void write_status_line(const na_response *response, na_out *out) {
  literal(out, LITERAL("HTTP/1.1 "));
  na_out_u64(out, response->status);
  literal(out, LITERAL(" "));
  na_out_str(out, response->reason);
  literal(out, LITERAL("\r\n"));
}

/* As Envoy: milliseconds from the end of the request to the beginning of the response. */
static na_str service_time(const na_http_request *request, char *text, size_t size) {
  uint64_t since = request->body_sent ? request->sent_us : request->first_us;
  na_out out = {.p = text, .size = size};
  na_out_u64(&out, (request->first_us - since) / 1000);
  return (na_str){text, (uint32_t)out.n};
}

void na_write_response_head(na_http_request *request, const na_response *response, enum na_delivery delivery,
                            bool http10, bool close, na_out *out) {
  na_header_levels levels;
  na_own_headers own = {.n = 0};
  char milliseconds[24];
  bool informational = response->status < 200;
  write_status_line(response, out);
  if (!response->local && !informational)
    na_own_header(&own, "x-envoy-upstream-service-time", service_time(request, milliseconds, sizeof milliseconds));
  na_http_source source;
  bool changed = !informational && levels_of(request, NA_RESPONSE, &levels);
  if (changed)
    levels.source = na_http_source_init(&source, request, NULL, response);
  na_write_headers(response->headers, response->nheaders, &own, changed ? &levels : NULL, (na_str){0}, out);
  if (delivery == NA_DELIVER_CHUNKED || (delivery == NA_DELIVER_AS_IS && response->body == NA_BODY_CHUNKED))
    literal(out, LITERAL("transfer-encoding: chunked\r\n"));
  if (response->upgrade)
    write_upgrade(response->headers, response->nheaders, out);
  else if (close)
    literal(out, LITERAL("connection: close\r\n"));
  else if (http10)
    literal(out, LITERAL("connection: keep-alive\r\n"));
  literal(out, LITERAL("\r\n"));
}
