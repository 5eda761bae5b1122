/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/1.1 as a client sees it: the status, the length and every byte of the answer are checked.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "load.h"
#include "pattern.h"

static const char *make_request(const load *l, size_t *n, const char *extra) {
  static char text[512];
  static size_t length;
  if (!length)
    length = (size_t)snprintf(text, sizeof text,
                              "GET /%llu HTTP/1.1\r\nhost: %s\r\nuser-agent: nodeagent-load\r\n"
                              "accept: */*\r\n%s\r\n",
                              (unsigned long long)l->options.body, l->options.host, extra);
  *n = length;
  return text;
}

static const char *request(const load *l, size_t *n) {
  return make_request(l, n, "");
}

static const char *request_close(const load *l, size_t *n) {
  return make_request(l, n, "connection: close\r\n");
}

/* The value of a header in a whole head, or NULL. `name` with its colon, lower case. */
static const char *header(const char *head, size_t n, const char *name) {
  size_t length = strlen(name);
  const char *end = head + n;
  for (const char *line = head; line < end;) {
    const char *stop = memchr(line, '\n', (size_t)(end - line));
    if (!stop)
      break;
    if ((size_t)(stop - line) > length && strncasecmp(line, name, length) == 0) {
      for (line += length; *line == ' ' || *line == '\t'; line++)
        ;
      return line;
    }
    line = stop + 1;
  }
  return NULL;
}

static enum load_verdict check_head(load *l, load_connection *c, const char *head, size_t n) {
  if (n < 16 || memcmp(head, "HTTP/1.1 200", 12) != 0) {
    load_fail(l, LOAD_STATUS, "the answer begins with \"%.*s\", not HTTP/1.1 200",
              (int)strcspn(head, "\r\n") < 60 ? (int)strcspn(head, "\r\n") : 60, head);
    return LOAD_WRONG;
  }
  const char *length = header(head, n, "content-length:");
  if (!length || strtoull(length, NULL, 10) != l->options.body) {
    load_fail(l, LOAD_FRAMING, "content-length is %.*s, not %llu", length ? (int)strcspn(length, "\r\n") : 7,
              length ? length : "missing", (unsigned long long)l->options.body);
    return LOAD_WRONG;
  }
  c->expected = l->options.body;
  c->received = 0;
  c->in_body = true;
  return LOAD_MORE;
}

/* Look for the end of the head; *used is how many of the new bytes belong to it. */
static enum load_verdict consume_head(load *l, load_connection *c, const char *bytes, size_t n, size_t *used) {
  const char *head = bytes;
  size_t length = n;
  if (c->head_length) {
    size_t room = LOAD_HEAD_LIMIT - c->head_length;
    length = c->head_length + (n < room ? n : room);
    memcpy(c->head + c->head_length, bytes, length - c->head_length);
    head = c->head;
  }
  const char *end = memmem(head, length, "\r\n\r\n", 4);
  if (end) {
    size_t whole = (size_t)(end + 4 - head);
    *used = whole - c->head_length;
    c->head_length = 0;
    return check_head(l, c, head, whole);
  }
  if (length >= LOAD_HEAD_LIMIT) {
    load_fail(l, LOAD_FRAMING, "no end of the response head within %d bytes", LOAD_HEAD_LIMIT);
    return LOAD_WRONG;
  }
  if (!c->head_length) {
    if (!c->head && !(c->head = malloc(LOAD_HEAD_LIMIT)))
      return LOAD_WRONG;
    memcpy(c->head, bytes, n);
  }
  c->head_length = length;
  *used = n;
  return LOAD_MORE;
}

static enum load_verdict consume(load *l, load_connection *c, const char *bytes, size_t n) {
  if (!c->in_body) {
    size_t used = 0;
    enum load_verdict verdict = consume_head(l, c, bytes, n, &used);
    if (verdict != LOAD_MORE || !c->in_body)
      return verdict;
    bytes += used;
    n -= used;
  }
  if (n > c->expected - c->received) {
    load_fail(l, LOAD_FRAMING, "%zu bytes follow the end of the answer", n - (size_t)(c->expected - c->received));
    return LOAD_WRONG;
  }
  if (!pattern_matches(bytes, n, c->received)) {
    load_fail(l, LOAD_CONTENT, "the body differs from what was sent, within %zu bytes at %llu", n,
              (unsigned long long)c->received);
    return LOAD_WRONG;
  }
  c->received += n;
  if (c->received < c->expected)
    return LOAD_MORE;
  c->in_body = false;
  return LOAD_ANSWERED;
}

const load_protocol load_http = {.name = "http", .request = request, .consume = consume};
const load_protocol load_http_close = {
    .name = "http-close", .one_shot = true, .request = request_close, .consume = consume};
