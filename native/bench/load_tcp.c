/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain TCP: a message that has to come back, and a stream that only comes.
 */
#include "load.h"
#include "pattern.h"

static const char *message(const load *l, size_t *n) {
  *n = (size_t)l->options.body;
  return pattern_at(0);
}

static enum load_verdict consume_echo(load *l, load_connection *c, const char *bytes, size_t n) {
  if (n > l->options.body - c->received) {
    load_fail(l, LOAD_FRAMING, "%zu bytes more than were sent came back", n - (size_t)(l->options.body - c->received));
    return LOAD_WRONG;
  }
  if (!pattern_matches(bytes, n, c->received)) {
    load_fail(l, LOAD_CONTENT, "other bytes than were sent came back");
    return LOAD_WRONG;
  }
  c->received += n;
  if (c->received < l->options.body)
    return LOAD_MORE;
  c->received = 0;
  return LOAD_ANSWERED;
}

static const char *nothing(const load *l, size_t *n) {
  (void)l;
  *n = 0;
  return "";
}

static enum load_verdict consume_stream(load *l, load_connection *c, const char *bytes, size_t n) {
  if (!pattern_matches(bytes, n, c->received)) {
    load_fail(l, LOAD_CONTENT, "the stream differs from what was sent, at %llu", (unsigned long long)c->received);
    return LOAD_WRONG;
  }
  c->received += n;
  return LOAD_MORE;
}

const load_protocol load_echo = {.name = "echo", .request = message, .consume = consume_echo};
const load_protocol load_stream = {.name = "stream", .streams = true, .request = nothing, .consume = consume_stream};
