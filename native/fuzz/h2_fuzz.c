/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames of a client into an HTTP/2 connection, without TLS around it. Each stream that it opens is answered with 200
 * and echoes what comes, so that flow control, half-closes and resets are met in all orders.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"
#include "h2.h"

#define CHECK(x) ((x) ? (void)0 : abort())
#define PREFACE  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

typedef struct echo {
  na_h2_stream stream;
  na_stream user;
} echo;

static na_engine *engine;
static uint32_t alive; /* streams */
static bool over;

static void on_user(na_watch *watch, uint32_t events) {
  na_stream *user = na_stream_of(watch);
  char buffer[4096];
  if (!na_stream_is_open(user))
    return;
  bool broken = na_stream_events(user, events) < 0;
  while (!broken && user->readable && !user->eof && !na_stream_blocked(user)) {
    ssize_t n = na_stream_recv(user, buffer, sizeof buffer);
    if (n == -EAGAIN)
      break;
    broken = n < 0 || (n > 0 && na_stream_send(user, buffer, (size_t)n) < 0);
  }
  if (broken || user->broken || (user->eof && !na_stream_blocked(user)))
    na_stream_close(user, broken);
}

static na_h2_stream *opened(na_h2 *h2) {
  echo *e = calloc(1, sizeof *e);
  CHECK(e);
  na_h2_stream_init(&e->stream, h2->role, &h2->worker->loop);
  na_stream_init(&e->user, &h2->worker->loop, on_user, e);
  alive++;
  return &e->stream;
}

static void head(na_h2_stream *stream) {
  echo *e = na_container_of(stream, echo, stream);
  const nghttp2_nv ok = na_h2_header(":status", "200", 3);
  na_stream_attach(&e->user, &na_transport_h2, stream);
  e->user.connecting = false;
  stream->user = &e->user;
  stream->has_user = true;
  CHECK(na_h2_stream_respond(stream, &ok, 1, false) == 0);
}

static void echo_free(na_grave *grave) {
  free(na_container_of(grave, echo, stream.grave));
}

static void stream_free(na_h2_stream *stream) {
  alive--;
  na_loop_bury(stream->loop, &stream->grave, echo_free);
}

static void header(na_h2_stream *stream, na_str name, na_str value) {
  CHECK(name.n > 0 && name.p && (value.n == 0 || value.p));
}

static void unanswered(na_h2_stream *stream) {
  na_h2_stream_reset(stream, NGHTTP2_CANCEL);
}

static void nothing(na_h2 *h2) {}

static void closing(na_h2 *h2, int error, const char *why) {
  CHECK(why && *why);
}

static void closed(na_h2 *h2) {
  over = true;
}

static const na_h2_role role = {
    .server = true,
    .opened = opened,
    .header = header,
    .head = head,
    .unanswered = unanswered,
    .free = stream_free,
    .ready = nothing,
    .tick = nothing,
    .changed = nothing,
    .closing = closing,
    .closed = closed,
};

/* Turn the loop while there is something to do. */
static void settle(na_loop *loop) {
  struct pollfd ready = {.fd = loop->epoll_fd, .events = POLLIN};
  for (int i = 0; i < 1000 && (!na_list_empty(&loop->again) || loop->graves || poll(&ready, 1, 0) == 1); i++) {
    if (na_list_empty(&loop->again) && poll(&ready, 1, 0) == 0)
      break;
    CHECK(na_loop_turn(loop) == 0);
  }
}

static void take_answers(int fd) {
  static char buffer[65536];
  while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0)
    ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  static const na_config config = {.hbone_stream_window = 65535, .max_connections = 16};
  if (!engine)
    CHECK(na_engine_new(&config, &engine) == 0);
  na_worker *worker = &engine->workers[0];
  na_h2 *h2 = calloc(1, sizeof *h2);
  int pair[2];
  CHECK(h2 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
  over = false;
  na_loop_update_clock(&worker->loop);
  na_stream_init(&h2->io, &worker->loop, NULL, NULL);
  CHECK(na_stream_open(&h2->io, pair[0], &na_transport_tcp) == 0);
  na_h2_begin(h2, worker, &role, 10000);
  CHECK(send(pair[1], PREFACE, sizeof PREFACE - 1, MSG_NOSIGNAL) > 0);
  for (size_t at = 0; at < n && !over;) {
    size_t part = n - at < 1000 ? n - at : 1000;
    if (send(pair[1], data + at, part, MSG_NOSIGNAL) <= 0)
      break;
    at += part;
    settle(&worker->loop);
    take_answers(pair[1]);
  }
  close(pair[1]);
  settle(&worker->loop);
  if (!over)
    na_h2_close(h2, 0, "the end");
  settle(&worker->loop);
  CHECK(over && alive == 0);
  free(h2);
  return 0;
}
