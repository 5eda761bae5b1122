/* SPDX-License-Identifier: Apache-2.0 */
#include <nodeagent/access_format.h>

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "access_text.h"
#include "address.h"

enum field {
  START_TIME,
  METHOD,
  PATH,
  PROTOCOL,
  RESPONSE_CODE,
  RESPONSE_FLAGS,
  RESPONSE_CODE_DETAILS,
  CONNECTION_TERMINATION_DETAILS,
  UPSTREAM_TRANSPORT_FAILURE_REASON,
  BYTES_RECEIVED,
  BYTES_SENT,
  DURATION,
  UPSTREAM_SERVICE_TIME,
  FORWARDED_FOR,
  USER_AGENT,
  REQUEST_ID,
  AUTHORITY,
  UPSTREAM_HOST,
  UPSTREAM_CLUSTER,
  UPSTREAM_LOCAL_ADDRESS,
  DOWNSTREAM_LOCAL_ADDRESS,
  DOWNSTREAM_REMOTE_ADDRESS,
  REQUESTED_SERVER_NAME,
  ROUTE_NAME,
  /* in formats with identities only: */
  DOWNSTREAM_PEER,
  UPSTREAM_PEER,
};

/* Literal text and the field that follows it. */
typedef struct part {
  const char *before;
  enum field field;
} part;

static const part text_parts[] = {
    {"[", START_TIME},
    {"] \"", METHOD},
    {" ", PATH},
    {" ", PROTOCOL},
    {"\" ", RESPONSE_CODE},
    {" ", RESPONSE_FLAGS},
    {" ", RESPONSE_CODE_DETAILS},
    {" ", CONNECTION_TERMINATION_DETAILS},
    {" \"", UPSTREAM_TRANSPORT_FAILURE_REASON},
    {"\" ", BYTES_RECEIVED},
    {" ", BYTES_SENT},
    {" ", DURATION},
    {" ", UPSTREAM_SERVICE_TIME},
    {" \"", FORWARDED_FOR},
    {"\" \"", USER_AGENT},
    {"\" \"", REQUEST_ID},
    {"\" \"", AUTHORITY},
    {"\" \"", UPSTREAM_HOST},
    {"\" ", UPSTREAM_CLUSTER},
    {" ", UPSTREAM_LOCAL_ADDRESS},
    {" ", DOWNSTREAM_LOCAL_ADDRESS},
    {" ", DOWNSTREAM_REMOTE_ADDRESS},
    {" ", REQUESTED_SERVER_NAME},
    {" ", ROUTE_NAME},
    {" \"", DOWNSTREAM_PEER},
    {"\" \"", UPSTREAM_PEER},
};

/* Keys in Envoy's order. */
static const part json_parts[] = {
    {"{\"authority\":", AUTHORITY},
    {",\"bytes_received\":", BYTES_RECEIVED},
    {",\"bytes_sent\":", BYTES_SENT},
    {",\"connection_termination_details\":", CONNECTION_TERMINATION_DETAILS},
    {",\"downstream_local_address\":", DOWNSTREAM_LOCAL_ADDRESS},
    {",\"downstream_peer_uri_san\":", DOWNSTREAM_PEER},
    {",\"downstream_remote_address\":", DOWNSTREAM_REMOTE_ADDRESS},
    {",\"duration\":", DURATION},
    {",\"method\":", METHOD},
    {",\"path\":", PATH},
    {",\"protocol\":", PROTOCOL},
    {",\"request_id\":", REQUEST_ID},
    {",\"requested_server_name\":", REQUESTED_SERVER_NAME},
    {",\"response_code\":", RESPONSE_CODE},
    {",\"response_code_details\":", RESPONSE_CODE_DETAILS},
    {",\"response_flags\":", RESPONSE_FLAGS},
    {",\"route_name\":", ROUTE_NAME},
    {",\"start_time\":", START_TIME},
    {",\"upstream_cluster\":", UPSTREAM_CLUSTER},
    {",\"upstream_host\":", UPSTREAM_HOST},
    {",\"upstream_local_address\":", UPSTREAM_LOCAL_ADDRESS},
    {",\"upstream_peer_uri_san\":", UPSTREAM_PEER},
    {",\"upstream_service_time\":", UPSTREAM_SERVICE_TIME},
    {",\"upstream_transport_failure_reason\":", UPSTREAM_TRANSPORT_FAILURE_REASON},
    {",\"user_agent\":", USER_AGENT},
    {",\"x_forwarded_for\":", FORWARDED_FOR},
};

typedef struct layout {
  const part *parts;
  size_t n;
  const char *end;
  const char *none;
  const char *quote; /* around text */
  na_access_escape *escape;
  bool identity;
  bool names_fields; /* so that a line may have more of them than others */
} layout;

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define TEXT            text_parts, COUNT_OF(text_parts)
#define JSON            json_parts, COUNT_OF(json_parts)

/* By enum na_access_format. */
static const layout layouts[] = {
    [NA_ACCESS_TEXT] = {TEXT, "\n", "-", "", na_access_escape_text, false, false},
    [NA_ACCESS_JSON] = {JSON, "}\n", "null", "\"", na_access_escape_json, false, true},
    [NA_ACCESS_IDENTITY_TEXT] = {TEXT, "\"\n", "-", "", na_access_escape_text, true, false},
    [NA_ACCESS_IDENTITY_JSON] = {JSON, "}\n", "null", "\"", na_access_escape_json, true, true},
};

/* By bit: enum na_flag. */
static const char *const flag_names[] = {"UH", "UF",  "UO",  "NR", "URX", "DC", "UC", "UT",   "LR",
                                         "IH", "DPE", "UPE", "NC", "SI",  "DT", "OM", "NFCF", "UAEX"};

/* What one call goes by, and the texts of the value at hand. */
typedef struct formatter {
  const layout *layout;
  na_engine *engine;
  const na_access_name *names;
  size_t names_n;
  uint64_t second; /* that `date` is of; UINT64_MAX none */
  char date[64];   /* YYYY-MM-DDTHH:MM:SS. */
  size_t date_n;
  char scratch[128];
} formatter;

/* A value: a number, a text (NULL: none) of ours, or one that others have written. */
typedef struct value {
  enum { NUMBER, OURS, FOREIGN } kind;
  uint64_t number;
  const char *text;
} value;

static value number(uint64_t n) {
  return (value){.kind = NUMBER, .number = n};
}

static value ours(const char *text) {
  return (value){.kind = OURS, .text = text};
}

static value foreign(const char *text) {
  return (value){.kind = FOREIGN, .text = text[0] ? text : NULL};
}

/* ---- values ---- */

static value start_time(formatter *f, uint64_t us) {
  uint64_t second = us / 1000000;
  if (second != f->second) {
    time_t when = (time_t)second;
    struct tm tm;
    gmtime_r(&when, &tm);
    f->date_n = strftime(f->date, sizeof f->date, "%Y-%m-%dT%H:%M:%S.", &tm);
    f->second = second;
  }
  char *at = f->scratch;
  memcpy(at, f->date, f->date_n);
  at += f->date_n;
  uint32_t ms = (uint32_t)(us % 1000000 / 1000);
  *at++ = (char)('0' + ms / 100);
  *at++ = (char)('0' + ms / 10 % 10);
  *at++ = (char)('0' + ms % 10);
  memcpy(at, "Z", 2);
  return ours(f->scratch);
}

/* With port 0 it is of a socket that has none yet. */
static value endpoint(formatter *f, const uint8_t ip[16], uint16_t port) {
  char *at = f->scratch;
  if (!port && na_ip_is_any(ip))
    return ours(NULL);
  if (na_ip_is_v4(ip)) {
    for (int i = 12; i < 16; i++) {
      at = na_access_put_number(at, ip[i]);
      *at++ = i < 15 ? '.' : ':';
    }
  } else {
    *at++ = '[';
    inet_ntop(AF_INET6, ip, at, INET6_ADDRSTRLEN);
    at = na_access_put(at + strlen(at), "]:");
  }
  at = na_access_put_number(at, port);
  *at = '\0';
  return ours(f->scratch);
}

static value flags(formatter *f, uint32_t set) {
  char *at = f->scratch;
  for (size_t bit = 0; bit < COUNT_OF(flag_names); bit++)
    if (set & 1u << bit) {
      at = na_access_put(at, flag_names[bit]);
      *at++ = ',';
    }
  if (at == f->scratch)
    return ours("-");
  at[-1] = '\0';
  return ours(f->scratch);
}

static value protocol(formatter *f, const na_access_record *record) {
  if (record->protocol == 1) {
    char *at = na_access_put_number(na_access_put(f->scratch, "HTTP/1."), record->http_minor);
    *at = '\0';
    return ours(f->scratch);
  }
  return ours(record->protocol != 0 && record->method[0] ? "HTTP/2" : NULL);
}

/* Opaque, also when it is HTTP/2 that nobody looked at. */
static bool is_connection(const na_access_record *record) {
  return record->protocol == 0 || record->protocol == 3;
}

static value cluster(const formatter *f, const na_access_record *record) {
  for (size_t i = 0; record->cluster_tag && i < f->names_n; i++)
    if (f->names[i].tag == record->cluster_tag)
      return foreign(f->names[i].text);
  if (!record->upstream_remote_port && !(record->flags & NA_FLAG_UF))
    return ours(NULL);
  return ours(record->inbound ? "InboundPassthroughCluster" : "PassthroughCluster");
}

/* Who the other end has proved to be, if it is on the side asked for. */
static value peer(const formatter *f, const na_access_record *record, bool downstream) {
  if (!f->engine || record->inbound != downstream)
    return ours(NULL);
  return foreign(na_engine_principal(f->engine, record->principal));
}

static value value_of(formatter *f, const na_access_record *record, enum field field) {
  switch (field) {
  case START_TIME:
    return start_time(f, record->start_us);
  case METHOD:
    return foreign(record->method);
  case PATH:
    return foreign(record->path);
  case PROTOCOL:
    return protocol(f, record);
  case RESPONSE_CODE:
    return number(record->status);
  case RESPONSE_FLAGS:
    return flags(f, record->flags);
  case RESPONSE_CODE_DETAILS:
    return is_connection(record) ? ours(NULL) : foreign(record->detail);
  case CONNECTION_TERMINATION_DETAILS:
    return is_connection(record) ? foreign(record->detail) : ours(NULL);
  case UPSTREAM_TRANSPORT_FAILURE_REASON:
    return foreign(record->upstream_failure);
  case BYTES_RECEIVED:
    return number(record->bytes_in);
  case BYTES_SENT:
    return number(record->bytes_out);
  case DURATION:
    return number(record->duration_us / 1000);
  case UPSTREAM_SERVICE_TIME:
    return record->upstream_us ? number(record->upstream_us / 1000) : ours(NULL);
  case FORWARDED_FOR:
    return foreign(record->forwarded_for);
  case USER_AGENT:
    return foreign(record->user_agent);
  case REQUEST_ID:
    return foreign(record->request_id);
  case AUTHORITY:
    return foreign(record->authority);
  case UPSTREAM_HOST:
    return endpoint(f, record->upstream_remote, record->upstream_remote_port);
  case UPSTREAM_CLUSTER:
    return cluster(f, record);
  case UPSTREAM_LOCAL_ADDRESS:
    return endpoint(f, record->upstream_local, record->upstream_local_port);
  case DOWNSTREAM_LOCAL_ADDRESS:
    return endpoint(f, record->downstream_local, record->downstream_local_port);
  case DOWNSTREAM_REMOTE_ADDRESS:
    return endpoint(f, record->downstream_remote, record->downstream_remote_port);
  case ROUTE_NAME:
    return foreign(record->route);
  case DOWNSTREAM_PEER:
    return peer(f, record, true);
  case UPSTREAM_PEER:
    return peer(f, record, false);
  case REQUESTED_SERVER_NAME:
    break;
  }
  return ours(NULL);
}

/* ---- lines ---- */

static char *put_value(char *out, const layout *form, value v) {
  if (v.kind == NUMBER)
    return na_access_put_number(out, v.number);
  if (!v.text)
    return na_access_put(out, form->none);
  out = na_access_put(out, form->quote);
  out = v.kind == OURS ? na_access_put(out, v.text) : form->escape(out, v.text, NA_ACCESS_NAME_MAX);
  return na_access_put(out, form->quote);
}

/* What the kernel knows of a connection past the engine. */
static char *put_kernels(char *out, const na_access_record *record) {
  out = na_access_put(out, ",\"tcp_rtt_us\":");
  out = na_access_put_number(out, record->rtt_us);
  out = na_access_put(out, ",\"tcp_retransmits\":");
  return na_access_put_number(out, record->retransmits);
}

/* Who wanted to know of it. Policies beyond the limit of names are `overflow`, as in metrics. */
static char *put_audit(char *out, const formatter *f, const na_access_record *record) {
  const char *name = f->engine ? na_engine_policy(f->engine, record->audit) : "";
  out = na_access_put(out, ",\"audited_by\":");
  return put_value(out, f->layout, foreign(name[0] ? name : "overflow"));
}

static char *put_line(char *out, formatter *f, const na_access_record *record) {
  const layout *form = f->layout;
  for (const part *piece = form->parts; piece < form->parts + form->n; piece++) {
    if (piece->field >= DOWNSTREAM_PEER && !form->identity)
      continue;
    out = na_access_put(out, piece->before);
    out = put_value(out, form, value_of(f, record, piece->field));
  }
  if (record->audit && form->names_fields)
    out = put_audit(out, f, record);
  if (record->bypassed && form->names_fields)
    out = put_kernels(out, record);
  return na_access_put(out, form->end);
}

int na_access_format(na_engine *engine, const na_access_record *records, size_t n, uint32_t format,
                     const na_access_name *names, size_t names_n, char *out, size_t size, size_t *used) {
  if (format < NA_ACCESS_TEXT || format > NA_ACCESS_IDENTITY_JSON)
    return -EINVAL;
  formatter f = {
      .layout = &layouts[format], .engine = engine, .names = names, .names_n = names_n, .second = UINT64_MAX};
  char *at = out;
  size_t done = 0;
  for (; done < n && size - (size_t)(at - out) >= NA_ACCESS_LINE_MAX; done++) {
    char *line = at;
    at = put_line(at, &f, &records[done]);
    assert(at - line <= NA_ACCESS_LINE_MAX);
    (void)line;
  }
  *used = (size_t)(at - out);
  return (int)done;
}

size_t na_access_tags(const na_access_record *records, size_t n, uint32_t *tags) {
  size_t found = 0;
  for (size_t i = 0; i < n; i++) {
    size_t j = 0;
    while (j < found && tags[j] != records[i].cluster_tag)
      j++;
    if (j == found && records[i].cluster_tag)
      tags[found++] = records[i].cluster_tag;
  }
  return found;
}
