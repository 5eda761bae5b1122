/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "floor.h"

static const char *header(const char *head, size_t n, const char *name) {
  size_t length = strlen(name);
  const char *end = head + n;
  for (const char *line = head, *stop; (stop = memchr(line, '\n', (size_t)(end - line))); line = stop + 1)
    if ((size_t)(stop - line) > length && strncasecmp(line, name, length) == 0)
      return line + length;
  return NULL;
}

static uint64_t content_length(const char *head, size_t n) {
  const char *value = header(head, n, "content-length:");
  return value ? strtoull(value, NULL, 10) : 0;
}

static bool asks_to_close(const char *head, size_t n) {
  const char *value = header(head, n, "connection:");
  return value && strncasecmp(value + strspn(value, " \t"), "close", 5) == 0;
}

/* The request goes on without `Connection: close`, which is for this hop: under another name, which spares moving what
 * follows. */
static void hide_close(char *head, size_t n) {
  static const char name[] = "x-floor-hp"; /* as long as "connection" */
  memcpy((char *)(uintptr_t)header(head, n, "connection:") - strlen("connection:"), name, strlen(name));
}

static int begin_request(floor_side *side, char *head, size_t n) {
  if (side->peer)
    return -1; /* pipelined: not for a floor */
  side->close_after = asks_to_close(head, n);
  if (side->close_after)
    hide_close(head, n);
  floor_side *upstream = floor_upstream();
  if (!upstream)
    return -1;
  side->peer = upstream;
  upstream->peer = side;
  return 0;
}

/* The whole message is with the peer. After a response both are free again. */
static int message_done(floor_side *side) {
  if (side->client)
    return 0;
  floor_side *client = side->peer;
  side->peer = client->peer = NULL;
  floor_pool(side);
  if (client->close_after && !client->queued)
    floor_end(client);
  return 0;
}

static int relay(floor_side *side, char *bytes, size_t n) {
  while (n) {
    size_t take = n;
    if (!side->in_body) {
      const char *end = memmem(bytes, n, "\r\n\r\n", 4);
      if (!end)
        return -1;
      size_t head = (size_t)(end + 4 - bytes);
      if (side->client ? begin_request(side, bytes, head) < 0 : !side->peer)
        return -1;
      side->body_left = head + content_length(bytes, head);
    }
    if (take > side->body_left)
      take = (size_t)side->body_left;
    side->body_left -= take;
    side->in_body = side->body_left > 0;
    if (floor_send(side->peer, bytes, take) < 0)
      return -1;
    if (side->in_body && side->peer->queued > FLOOR_QUEUE_BYTES)
      floor_pause(side, true);
    if (!side->in_body && message_done(side) < 0)
      return -1;
    bytes += take;
    n -= take;
  }
  return 0;
}

static int readable(floor_side *side) {
  ssize_t n = floor_receive(side);
  if (n <= 0)
    return n < 0 && errno == EAGAIN ? 0 : -1;
  return relay(side, floor_io, (size_t)n);
}

static int room(floor_side *side) {
  return side->client && side->close_after && !side->peer ? -1 : 0;
}

const floor_mode floor_http = {.name = "http", .readable = readable, .room = room};
