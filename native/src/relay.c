/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* Reads per event and half before others get their turn. */
#define RELAY_ROUNDS 8
#define PIPE_BYTES   (256 * 1024)

void na_relay_account(na_relay *relay, int half, size_t n) {
  relay->halves[half].bytes += n;
  relay->last_ms = relay->worker->loop.now_ms;
  if (!na_link_in_list(&relay->reporting))
    na_list_push_back(&relay->worker->reporting, &relay->reporting);
}

/* ---- pipes: pooled, since making one costs as much as moving a few hundred kilobytes ---- */

static bool pipe_take(na_worker *worker, int out[2]) {
  if (worker->npipes) {
    worker->npipes--;
    out[0] = worker->pipes[worker->npipes][0];
    out[1] = worker->pipes[worker->npipes][1];
    return true;
  }
  if (pipe2(out, O_NONBLOCK | O_CLOEXEC) < 0)
    return false;
  /* May be refused (pipe-user-pages-soft); the default size works too. */
  (void)fcntl(out[1], F_SETPIPE_SZ, PIPE_BYTES);
  return true;
}

static void pipe_give(na_worker *worker, const int pipe[2], bool empty) {
  if (empty && worker->npipes < NA_PIPES) {
    worker->pipes[worker->npipes][0] = pipe[0];
    worker->pipes[worker->npipes][1] = pipe[1];
    worker->npipes++;
    return;
  }
  close(pipe[0]);
  close(pipe[1]);
}

static void unsplice(na_relay *relay, na_relay_half *half) {
  if (half->spliced)
    pipe_give(relay->worker, half->pipe, half->in_pipe == 0);
  half->spliced = false;
}

/* ---- moving ---- */

/* 0: nothing more now; 1: more may come; -errno with *side the index of the stream that failed. */
static int pump_copy(na_relay *relay, int index, int *side) {
  na_relay_half *half = &relay->halves[index];
  ssize_t n = na_stream_recv(half->from, relay->worker->io, relay->worker->io_size);
  if (n == -EAGAIN)
    return 0;
  *side = index;
  if (n < 0)
    return (int)n;
  if (n == 0)
    return 1;
  na_relay_account(relay, index, (size_t)n);
  *side = !index;
  int error = na_stream_send(half->to, relay->worker->io, (size_t)n);
  return error ? error : 1;
}

static int pipe_fill(na_relay_half *half) {
  ssize_t n = splice(half->from->watch.fd, NULL, half->pipe[1], NULL, PIPE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n > 0) {
    half->in_pipe = (uint32_t)n;
    return 1;
  }
  if (n < 0 && errno != EAGAIN && errno != EINTR)
    return -errno;
  half->from->readable = false;
  half->from->eof = half->from->eof || n == 0;
  return n == 0;
}

static int pipe_drain(na_relay *relay, int index) {
  na_relay_half *half = &relay->halves[index];
  ssize_t n = splice(half->pipe[0], NULL, half->to->watch.fd, NULL, half->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (n < 0 && errno != EAGAIN && errno != EINTR)
    return -errno;
  if (n > 0) {
    half->in_pipe -= (uint32_t)n;
    na_relay_account(relay, index, (size_t)n);
    na_count_by(&relay->worker->counters, NA_COUNTER_SPLICED_BYTES, (uint64_t)n);
  }
  if (half->in_pipe == 0)
    return 1;
  int error = na_loop_watch_writable(half->to->loop, &half->to->watch);
  return error; /* 0: goes on when there is room */
}

static int pump_splice(na_relay *relay, int index, int *side) {
  na_relay_half *half = &relay->halves[index];
  if (half->in_pipe == 0) {
    *side = index;
    int rc = pipe_fill(half);
    if (rc <= 0 || half->in_pipe == 0)
      return rc;
  }
  *side = !index;
  return pipe_drain(relay, index);
}

static void splice_if_bulky(na_relay *relay, na_relay_half *half) {
  if (half->spliced || half->bytes < NA_SPLICE_AFTER || !half->from->transport->raw || !half->to->transport->raw)
    return;
  half->spliced = pipe_take(relay->worker, half->pipe);
}

static bool can_move(const na_relay_half *half) {
  if (half->done || half->to->connecting || na_stream_blocked(half->to))
    return false;
  return half->in_pipe > 0 || half->from->readable;
}

/* Move what can be moved in one direction; as pump_copy. */
static int pump(na_relay *relay, int index, int *side) {
  na_relay_half *half = &relay->halves[index];
  for (int round = 0; can_move(half) && !half->from->eof; round++) {
    if (round == RELAY_ROUNDS) {
      na_loop_again(&relay->worker->loop, &half->from->watch);
      return 0;
    }
    splice_if_bulky(relay, half);
    int rc = half->spliced ? pump_splice(relay, index, side) : pump_copy(relay, index, side);
    if (rc < 0)
      return rc;
    if (rc == 0)
      break;
  }
  if (half->from->eof && half->in_pipe && can_move(half)) {
    *side = !index;
    int rc = pipe_drain(relay, index);
    if (rc < 0)
      return rc;
  }
  if (half->from->eof && !half->in_pipe && !half->done) {
    half->done = true;
    unsplice(relay, half);
    (void)na_stream_shutdown(half->to); /* ENOTCONN: reset meanwhile, which its own event tells */
  }
  return 0;
}

static void finish(na_relay *relay, enum na_relay_end how, int side) {
  relay->ended = true;
  relay->end(relay, how, side);
}

static bool drained(const na_relay_half *half) {
  return half->done && !na_stream_blocked(half->to);
}

static void on_event(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_relay *relay = stream->owner;
  if (relay->ended)
    return;
  int from = stream == relay->halves[0].from ? 0 : 1;
  int side = from;
  int error = na_stream_events(stream, events);
  /* What this stream has to give, then what waits for its room. */
  if (!error)
    error = pump(relay, from, &side);
  if (!error)
    error = pump(relay, !from, &side);
  if (!error && stream->broken && (relay->halves[from].done || !stream->readable)) {
    side = from; /* nothing will be read of it that could tell */
    error = -ECONNRESET;
  }
  if (error < 0)
    finish(relay, NA_RELAY_BROKEN, side);
  else if (drained(&relay->halves[0]) && drained(&relay->halves[1]))
    finish(relay, NA_RELAY_DONE, 0);
}

void na_relay_start(na_relay *relay, na_worker *worker, na_stream *downstream, na_stream *upstream,
                    void (*end)(na_relay *relay, enum na_relay_end how, int broken_side),
                    void (*report)(na_relay *relay)) {
  *relay = (na_relay){.worker = worker, .end = end, .report = report, .last_ms = worker->loop.now_ms};
  na_link_init(&relay->reporting);
  relay->halves[0] = (na_relay_half){.from = downstream, .to = upstream};
  relay->halves[1] = (na_relay_half){.from = upstream, .to = downstream};
  for (int i = 0; i < 2; i++) {
    na_stream *stream = relay->halves[i].from;
    stream->owner = relay;
    stream->watch.fn = on_event;
    na_loop_again(&worker->loop, &stream->watch); /* what became ready before */
  }
}

void na_relay_stop(na_relay *relay) {
  relay->ended = true;
  relay->report(relay);
  na_link_remove(&relay->reporting);
  for (int i = 0; i < 2; i++)
    unsplice(relay, &relay->halves[i]);
}
