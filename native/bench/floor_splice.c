/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "floor.h"

/* Rounds before others get their turn. */
#define ROUNDS 8

static int fill(floor_side *side) {
  if (side->pipe[0] < 0) {
    if (pipe2(side->pipe, O_NONBLOCK | O_CLOEXEC) < 0)
      return -1;
    (void)fcntl(side->pipe[1], F_SETPIPE_SZ, FLOOR_PIPE_BYTES);
  }
  ssize_t n = splice(side->fd, NULL, side->pipe[1], NULL, FLOOR_PIPE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n <= 0)
    return n < 0 && errno == EAGAIN ? 0 : -1;
  side->in_pipe = (size_t)n;
  return 1;
}

/* 1: the pipe is empty; 0: the peer takes no more now. */
static int drain(floor_side *side) {
  ssize_t n = splice(side->pipe[0], NULL, side->peer->fd, NULL, side->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n < 0 && errno != EAGAIN)
    return -1;
  side->in_pipe -= n > 0 ? (size_t)n : 0;
  if (side->in_pipe == 0)
    return 1;
  floor_pause(side, true);
  floor_want_room(side->peer, true);
  return 0;
}

static int move(floor_side *side) {
  for (int round = 0; round < ROUNDS; round++) {
    int result = side->in_pipe ? 1 : fill(side);
    if (result > 0)
      result = drain(side);
    if (result <= 0)
      return result;
  }
  return 0;
}

/* There is room here for what the peer has in its pipe. */
static int room(floor_side *side) {
  floor_want_room(side, false);
  floor_pause(side->peer, false);
  return side->peer->in_pipe ? move(side->peer) : 0;
}

const floor_mode floor_splice = {.name = "splice", .pairs = true, .readable = move, .room = room};
