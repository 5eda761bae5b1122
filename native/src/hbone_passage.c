/* SPDX-License-Identifier: Apache-2.0 */
#include "hbone_passage.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hbone_sides.h"
#include "relay.h"

struct na_passage {
  na_stream near; /* our end of the pair */
  na_stream outer;
  na_relay relay;
  na_grave grave;
  na_worker *worker;
  na_passage_fn *lost;
  void *owner;
  bool relaying;
};

static void on_relay_end(na_relay *relay, enum na_relay_end how, int broken_side) {
  na_passage *passage = na_container_of(relay, na_passage, relay);
  passage->lost(passage->owner, -ECONNRESET, "it ended the connection");
}

/* What passes is counted where it comes from. */
static void no_report(na_relay *relay) {}

/* The inner tunnel speaks before there is a way: it waits in the socket. */
static void on_near(na_watch *watch, uint32_t events) {
  (void)na_stream_events(na_stream_of(watch), events);
}

static void on_outer(na_watch *watch, uint32_t events) {
  na_stream *stream = na_stream_of(watch);
  na_passage *passage = na_container_of(stream, na_passage, outer);
  if (!na_stream_is_open(stream) || !events)
    return;
  (void)na_stream_events(stream, events);
  int error = stream->transport->connected(stream);
  if (error == -EINPROGRESS)
    return;
  if (error) {
    passage->lost(passage->owner, error, na_stream_failure(stream, error));
    return;
  }
  stream->connecting = false;
  passage->relaying = true;
  na_relay_start(&passage->relay, passage->worker, &passage->near, stream, on_relay_end, no_report);
}

static void passage_free(na_grave *grave) {
  free(na_container_of(grave, na_passage, grave));
}

void na_passage_close(na_passage *passage) {
  if (passage->relaying)
    na_relay_stop(&passage->relay);
  na_stream_close(&passage->near, false);
  na_stream_close(&passage->outer, false);
  na_loop_bury(&passage->worker->loop, &passage->grave, passage_free);
}

int na_passage_open(const na_hbone_dial *dial, na_passage_fn *lost, void *owner, na_passage **out) {
  na_worker *worker = dial->worker;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
    return -errno;
  na_passage *passage = calloc(1, sizeof *passage);
  if (!passage) {
    close(pair[0]);
    close(pair[1]);
    return -ENOMEM;
  }
  passage->worker = worker;
  passage->lost = lost;
  passage->owner = owner;
  na_stream_init(&passage->near, &worker->loop, on_near, passage);
  na_stream_init(&passage->outer, &worker->loop, on_outer, passage);
  int error = na_stream_open(&passage->near, pair[0], &na_transport_tcp);
  if (!error)
    error = na_hbone_client_connect(&passage->outer, dial);
  if (error) {
    na_passage_close(passage);
    close(pair[1]);
    return error;
  }
  *out = passage;
  return pair[1];
}
