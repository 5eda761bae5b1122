/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/socket.h>

#include "floor.h"

static int readable(floor_side *side) {
  ssize_t n = floor_receive(side);
  if (n <= 0)
    return n < 0 && errno == EAGAIN ? 0 : -1;
  if (floor_send(side->peer, floor_io, (size_t)n) < 0)
    return -1;
  if (side->peer->queued > FLOOR_QUEUE_BYTES)
    floor_pause(side, true);
  return 0;
}

const floor_mode floor_tcp = {.name = "tcp", .pairs = true, .readable = readable};
