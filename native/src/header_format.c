/* SPDX-License-Identifier: Apache-2.0 */
#include "header_format.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "http1_parse.h"

/* Conversions of strftime that write no control characters and are the same in every locale that we run in. */
#define TIME_CONVERSIONS "aAbBdDeFHIjklmMpPRSTuVwyYzZ"
#define DEFAULT_TIME     "%Y-%m-%dT%H:%M:%S.%3fZ"

enum argument { NONE, HEADER, TIME };

/* https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#command-operators. An
 * address that comes by a trusted x-forwarded-for is not told from a direct one. */
static const struct {
  const char *name;
  uint8_t command;
  uint8_t argument;
} commands[] = {
    {"BYTES_RECEIVED", NA_FORMAT_BYTES_RECEIVED, NONE},
    {"CONNECTION_ID", NA_FORMAT_CONNECTION_ID, NONE},
    {"DOWNSTREAM_DIRECT_REMOTE_ADDRESS", NA_FORMAT_DOWNSTREAM_REMOTE_ADDRESS, NONE},
    {"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", NA_FORMAT_DOWNSTREAM_REMOTE_IP, NONE},
    {"DOWNSTREAM_DIRECT_REMOTE_PORT", NA_FORMAT_DOWNSTREAM_REMOTE_PORT, NONE},
    {"DOWNSTREAM_LOCAL_ADDRESS", NA_FORMAT_DOWNSTREAM_LOCAL_ADDRESS, NONE},
    {"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", NA_FORMAT_DOWNSTREAM_LOCAL_IP, NONE},
    {"DOWNSTREAM_LOCAL_PORT", NA_FORMAT_DOWNSTREAM_LOCAL_PORT, NONE},
    {"DOWNSTREAM_PEER_URI_SAN", NA_FORMAT_DOWNSTREAM_PEER_URI_SAN, NONE},
    {"DOWNSTREAM_REMOTE_ADDRESS", NA_FORMAT_DOWNSTREAM_REMOTE_ADDRESS, NONE},
    {"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", NA_FORMAT_DOWNSTREAM_REMOTE_IP, NONE},
    {"DOWNSTREAM_REMOTE_PORT", NA_FORMAT_DOWNSTREAM_REMOTE_PORT, NONE},
    {"HOSTNAME", NA_FORMAT_HOSTNAME, NONE},
    {"PROTOCOL", NA_FORMAT_PROTOCOL, NONE},
    {"REQ", NA_FORMAT_REQ, HEADER},
    {"RESP", NA_FORMAT_RESP, HEADER},
    {"RESPONSE_CODE", NA_FORMAT_RESPONSE_CODE, NONE},
    {"RESPONSE_CODE_DETAILS", NA_FORMAT_RESPONSE_CODE_DETAILS, NONE},
    {"ROUTE_NAME", NA_FORMAT_ROUTE_NAME, NONE},
    {"START_TIME", NA_FORMAT_START_TIME, TIME},
    {"UPSTREAM_CLUSTER", NA_FORMAT_UPSTREAM_CLUSTER, NONE},
    {"UPSTREAM_CLUSTER_RAW", NA_FORMAT_UPSTREAM_CLUSTER, NONE},
    {"UPSTREAM_HOST", NA_FORMAT_UPSTREAM_REMOTE_ADDRESS, NONE},
    {"UPSTREAM_LOCAL_ADDRESS", NA_FORMAT_UPSTREAM_LOCAL_ADDRESS, NONE},
    {"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", NA_FORMAT_UPSTREAM_LOCAL_IP, NONE},
    {"UPSTREAM_LOCAL_PORT", NA_FORMAT_UPSTREAM_LOCAL_PORT, NONE},
    {"UPSTREAM_REMOTE_ADDRESS", NA_FORMAT_UPSTREAM_REMOTE_ADDRESS, NONE},
    {"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", NA_FORMAT_UPSTREAM_REMOTE_IP, NONE},
    {"UPSTREAM_REMOTE_PORT", NA_FORMAT_UPSTREAM_REMOTE_PORT, NONE},
};

/* ---- reading ------------------------------------------------------------------------------------------------- */

typedef struct reader {
  const char *at;
  na_format *format;
  char *error;
  size_t size;
} reader;

__attribute__((format(printf, 2, 3))) static int fail(reader *r, const char *message, ...) {
  va_list arguments;
  va_start(arguments, message);
  vsnprintf(r->error, r->size, message, arguments);
  va_end(arguments);
  return -EINVAL;
}

static int keep(na_str *out, const char *p, size_t n) {
  char *copy = strndup(p, n);
  if (!copy)
    return -ENOMEM;
  *out = (na_str){copy, (uint32_t)n};
  return 0;
}

static na_format_part *add(reader *r, uint8_t command) {
  if (r->format->n == NA_MAX_FORMAT_PARTS)
    return NULL;
  na_format_part *part = &r->format->parts[r->format->n++];
  *part = (na_format_part){.command = command};
  return part;
}

/* Text up to the next command; of `%%` one percent sign, which ends a part. */
static int read_text(reader *r) {
  size_t n = strcspn(r->at, "%");
  bool percent = r->at[n] == '%' && r->at[n + 1] == '%';
  na_format_part *part = add(r, NA_FORMAT_TEXT);
  if (!part)
    return fail(r, "more than %d pieces", NA_MAX_FORMAT_PARTS);
  int rc = keep(&part->text, r->at, n + percent);
  r->at += n + 2 * percent;
  return rc;
}

/* `NAME` or `NAME?OTHER`; a name may begin with a colon. */
static int read_header(reader *r, na_format_part *part, na_str argument) {
  const char *mark = memchr(argument.p, '?', argument.n);
  uint32_t n = mark ? (uint32_t)(mark - argument.p) : argument.n;
  na_str names[2] = {{argument.p, n}, {argument.p + n + 1, mark ? argument.n - n - 1 : 0}};
  for (int i = 0; i < (mark ? 2 : 1); i++) {
    uint32_t colon = names[i].n && names[i].p[0] == ':';
    if (names[i].n == colon || na_h1_span(names[i].p + colon, names[i].n - colon, NA_C_TOKEN) != names[i].n - colon)
      return fail(r, "'%.*s' is no header name", (int)names[i].n, names[i].p);
  }
  int rc = keep(&part->text, names[0].p, names[0].n);
  return rc || !mark ? rc : keep(&part->other, names[1].p, names[1].n);
}

static int read_time(reader *r, na_format_part *part, na_str argument) {
  for (uint32_t i = 0; i < argument.n; i++) {
    if (argument.p[i] != '%')
      continue;
    char next = ++i < argument.n ? argument.p[i] : 0;
    bool fraction = next >= '1' && next <= '9' && i + 1 < argument.n && argument.p[i + 1] == 'f';
    if (!next || (!fraction && !strchr(TIME_CONVERSIONS "s", next)))
      return fail(r, "time '%.*s': %%%.1s is no conversion", (int)argument.n, argument.p, next ? &argument.p[i] : "");
  }
  return keep(&part->text, argument.p, argument.n);
}

static int read_argument(reader *r, na_format_part *part, uint8_t kind, const char *name, int name_n) {
  na_str argument = {0};
  if (*r->at == '(') {
    size_t n = strcspn(++r->at, ")");
    if (!r->at[n])
      return fail(r, "%%%.*s(: a parenthesis is missing", name_n, name);
    argument = (na_str){r->at, (uint32_t)n};
    r->at += n + 1;
    if (kind == NONE)
      return fail(r, "%%%.*s%% takes no argument", name_n, name);
  }
  if (kind == HEADER)
    return argument.p ? read_header(r, part, argument) : fail(r, "%%%.*s%% needs the name of a header", name_n, name);
  return kind == TIME && argument.p ? read_time(r, part, argument) : 0;
}

static int read_limit(reader *r, na_format_part *part) {
  if (*r->at != ':')
    return 0;
  char *end;
  unsigned long limit = strtoul(r->at + 1, &end, 10);
  if (end == r->at + 1 || r->at[1] < '0' || r->at[1] > '9' || !limit || limit > UINT32_MAX)
    return fail(r, "'%.20s' is no length", r->at);
  part->limit = (uint32_t)limit;
  r->at = end;
  return 0;
}

static int read_command(reader *r) {
  const char *name = r->at + 1;
  int n = (int)strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    if (strlen(commands[i].name) != (size_t)n || memcmp(commands[i].name, name, (size_t)n) != 0)
      continue;
    na_format_part *part = add(r, commands[i].command);
    if (!part)
      return fail(r, "more than %d pieces", NA_MAX_FORMAT_PARTS);
    r->at = name + n;
    int rc = read_argument(r, part, commands[i].argument, name, n);
    rc = rc ? rc : read_limit(r, part);
    if (!rc && *r->at++ != '%')
      rc = fail(r, "%%%.*s: the percent sign at its end is missing", n, name);
    return rc;
  }
  return n ? fail(r, "%%%.*s%% is no command that is known here", n, name)
           : fail(r, "a percent sign that begins no command is written %%%%");
}

int na_format_new(const char *text, na_format **out, char *error, size_t size) {
  reader r = {.at = text, .format = calloc(1, sizeof *r.format), .error = error, .size = size};
  int rc = r.format ? 0 : -ENOMEM;
  while (!rc && *r.at)
    rc = r.at[0] == '%' && r.at[1] != '%' ? read_command(&r) : read_text(&r);
  if (rc)
    na_format_free(r.format);
  else
    *out = r.format;
  return rc;
}

void na_format_free(na_format *format) {
  for (uint32_t i = 0; format && i < format->n; i++) {
    free((char *)format->parts[i].text.p);
    free((char *)format->parts[i].other.p);
  }
  free(format);
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void write_part(const na_format_part *part, const na_format_source *source, na_out *out) {
  if (part->command == NA_FORMAT_TEXT) {
    na_out_str(out, part->text);
    return;
  }
  size_t start = out->n;
  if (source)
    source->write(source, part, out);
  if (part->limit && out->n - start > part->limit)
    out->n = start + part->limit;
}

void na_format_write(const na_format *format, const na_format_source *source, na_out *out) {
  for (uint32_t i = 0; i < format->n; i++)
    write_part(&format->parts[i], source, out);
}

bool na_format_is_empty(const na_format *format, const na_format_source *source) {
  char byte;
  na_out out = {.p = &byte, .size = 1};
  na_format_write(format, source, &out);
  return !out.n && !out.over;
}

static void write_fraction(uint32_t us, int digits, na_out *out) {
  char text[16];
  snprintf(text, sizeof text, "%06u000", us);
  na_out_bytes(out, text, (size_t)digits);
}

void na_format_time(na_str form, uint64_t us, na_out *out) {
  time_t second = (time_t)(us / 1000000);
  struct tm tm;
  gmtime_r(&second, &tm);
  if (!form.n)
    form = na_str_of(DEFAULT_TIME);
  for (uint32_t i = 0; i < form.n; i++) {
    if (form.p[i] != '%' || i + 1 == form.n) {
      na_out_bytes(out, form.p + i, 1);
      continue;
    }
    char conversion[3] = {'%', form.p[++i], 0}, text[64];
    if (conversion[1] == 's') {
      na_out_u64(out, us / 1000000);
    } else if (conversion[1] >= '1' && conversion[1] <= '9') {
      write_fraction((uint32_t)(us % 1000000), conversion[1] - '0', out);
      i++;
    } else {
      na_out_bytes(out, text, strftime(text, sizeof text, conversion, &tm));
    }
  }
}
