/* SPDX-License-Identifier: Apache-2.0 */
#include "http_format.h"

#include <arpa/inet.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "conn_guard.h"

/* ---- headers ------------------------------------------------------------------------------------------------- */

static na_str find(const na_header *headers, uint32_t n, na_str name) {
  for (uint32_t i = 0; i < n; i++)
    if (na_str_ieq2(headers[i].name, name))
      return headers[i].value;
  return (na_str){0};
}

/* A header in the bytes received, which have been parsed once: lines are well formed. What parsing left out is not
 * there. */
static na_str find_received(const na_http_request *request, na_str name) {
  if (na_str_ieq(name, "x-forwarded-client-cert"))
    return (na_str){0};
  const char *at = request->head, *end = at + request->head_bytes;
  while ((at = memchr(at, '\n', (size_t)(end - at))) && ++at < end) {
    const char *line_end = memchr(at, '\n', (size_t)(end - at));
    const char *colon = line_end ? memchr(at, ':', (size_t)(line_end - at)) : NULL;
    if (!colon || !na_str_ieq2((na_str){at, (uint32_t)(colon - at)}, name))
      continue;
    do
      colon++;
    while (*colon == ' ' || *colon == '\t');
    while (line_end > colon && strchr("\r\n \t", line_end[-1]))
      line_end--;
    return (na_str){colon, (uint32_t)(line_end - colon)};
  }
  return (na_str){0};
}

/* Pseudo-headers of a request whose head is not at hand: the words of its first line. */
static na_str find_first_line(const na_http_request *request, na_str name) {
  const char *end = request->head + request->head_bytes;
  const char *path = memchr(request->head, ' ', request->head_bytes);
  const char *after = path ? memchr(path + 1, ' ', (size_t)(end - path - 1)) : NULL;
  if (na_str_ieq(name, ":authority"))
    return find_received(request, na_str_of("host"));
  if (!after)
    return (na_str){0};
  return na_str_ieq(name, ":method") ? (na_str){request->head, (uint32_t)(path - request->head)}
                                     : (na_str){path + 1, (uint32_t)(after - path - 1)};
}

static na_str request_header(const na_http_source *s, na_str name) {
  const na_request *in = s->in;
  if (na_str_ieq(name, ":scheme"))
    return in ? in->scheme : na_str_of("http");
  if (na_str_ieq(name, ":method"))
    return in ? in->method : find_first_line(s->request, name);
  if (na_str_ieq(name, ":path"))
    return in ? in->path_query : find_first_line(s->request, name);
  if (na_str_ieq(name, ":authority") || na_str_ieq(name, "host"))
    return in ? in->authority : find_first_line(s->request, na_str_of(":authority"));
  return in ? find(in->headers, in->nheaders, name) : find_received(s->request, name);
}

static na_str response_header(const na_http_source *s, na_str name) {
  return s->response ? find(s->response->headers, s->response->nheaders, name) : (na_str){0};
}

/* ---- addresses ----------------------------------------------------------------------------------------------- */

static void write_address(const na_address *address, na_out *out) {
  char text[NA_ADDRESS_TEXT];
  if (!address->port)
    return; /* not known (yet) */
  na_address_format(address, text);
  na_out_cstr(out, text);
}

static void write_ip(const na_address *address, na_out *out) {
  char text[INET6_ADDRSTRLEN];
  if (!address->port)
    return;
  bool v4 = na_ip_is_v4(address->ip);
  inet_ntop(v4 ? AF_INET : AF_INET6, address->ip + (v4 ? 12 : 0), text, sizeof text);
  na_out_cstr(out, text);
}

static void write_port(const na_address *address, na_out *out) {
  if (address->port)
    na_out_u64(out, address->port);
}

/* ---- others -------------------------------------------------------------------------------------------------- */

/* Names of clusters are those of xDS behind the name of the view. */
static void write_cluster(const na_http_request *request, na_out *out) {
  if (!request->destination)
    return;
  const char *name = request->destination->cluster;
  size_t n = strlen(request->conn->workload->view);
  bool prefixed = strncmp(name, request->conn->workload->view, n) == 0 && name[n] == '/';
  na_out_cstr(out, prefixed ? name + n + 1 : name);
}

static void write_hostname(na_out *out) {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  na_out_cstr(out, name);
}

static void write_start(const na_http_request *request, na_str form, na_out *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
  na_format_time(form, us - (request->worker->loop.now_us - request->start_us), out);
}

static void write_address_of(const na_http_request *request, uint8_t command, na_out *out) {
  const na_conn *conn = request->conn;
  switch (command) {
  case NA_FORMAT_DOWNSTREAM_LOCAL_ADDRESS:
    return write_address(&conn->local, out);
  case NA_FORMAT_DOWNSTREAM_LOCAL_IP:
    return write_ip(&conn->local, out);
  case NA_FORMAT_DOWNSTREAM_LOCAL_PORT:
    return write_port(&conn->local, out);
  case NA_FORMAT_DOWNSTREAM_REMOTE_ADDRESS:
    return write_address(&conn->peer, out);
  case NA_FORMAT_DOWNSTREAM_REMOTE_IP:
    return write_ip(&conn->peer, out);
  case NA_FORMAT_DOWNSTREAM_REMOTE_PORT:
    return write_port(&conn->peer, out);
  case NA_FORMAT_UPSTREAM_LOCAL_ADDRESS:
    return write_address(&request->local, out);
  case NA_FORMAT_UPSTREAM_LOCAL_IP:
    return write_ip(&request->local, out);
  case NA_FORMAT_UPSTREAM_LOCAL_PORT:
    return write_port(&request->local, out);
  case NA_FORMAT_UPSTREAM_REMOTE_ADDRESS:
    return write_address(&request->remote, out);
  case NA_FORMAT_UPSTREAM_REMOTE_IP:
    return write_ip(&request->remote, out);
  case NA_FORMAT_UPSTREAM_REMOTE_PORT:
    return write_port(&request->remote, out);
  }
}

static void write_header(na_str first, na_str second, na_out *out) {
  na_out_str(out, first.p ? first : second);
}

static void write_command(const na_format_source *source, const na_format_part *part, na_out *out) {
  const na_http_source *s = (const na_http_source *)source;
  na_http_request *request = s->request;
  switch (part->command) {
  case NA_FORMAT_BYTES_RECEIVED:
    return na_out_u64(out, request->bytes_in);
  case NA_FORMAT_CONNECTION_ID:
    return na_out_u64(out, request->conn->id);
  case NA_FORMAT_DOWNSTREAM_PEER_URI_SAN:
    return na_out_str(out, na_conn_principal(request->conn));
  case NA_FORMAT_HOSTNAME:
    return write_hostname(out);
  case NA_FORMAT_PROTOCOL:
    return na_out_cstr(out, request->http10 ? "HTTP/1.0" : "HTTP/1.1");
  case NA_FORMAT_REQ:
    return write_header(request_header(s, part->text), request_header(s, part->other), out);
  case NA_FORMAT_RESP:
    return write_header(response_header(s, part->text), response_header(s, part->other), out);
  case NA_FORMAT_RESPONSE_CODE:
    if (s->response)
      na_out_u64(out, s->response->status);
    return;
  case NA_FORMAT_RESPONSE_CODE_DETAILS:
    if (s->response && request->detail)
      na_out_cstr(out, request->detail);
    return;
  case NA_FORMAT_ROUTE_NAME:
    return na_out_cstr(out, request->route ? request->route->name : "");
  case NA_FORMAT_START_TIME:
    return write_start(request, part->text, out);
  case NA_FORMAT_UPSTREAM_CLUSTER:
    return write_cluster(request, out);
  default:
    return write_address_of(request, part->command, out);
  }
}

const na_format_source *na_http_source_init(na_http_source *source, na_http_request *request, const na_request *in,
                                            const na_response *response) {
  *source = (na_http_source){.source = {write_command}, .request = request, .in = in, .response = response};
  return &source->source;
}
