/* SPDX-License-Identifier: Apache-2.0
 *
 *   nodeagent-floor --mode http|tcp|splice --listen [ADDRESS:]PORT --upstream [ADDRESS:]PORT
 *                   [--tls-in PREFIX] [--tls-out PREFIX]
 *
 * PREFIX.chain.pem, .key.pem and .roots.pem are the certificate with which it speaks TLS to clients or to the upstream.
 */
#include "floor.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"
#include "tls.h"

#define EVENTS       256
#define ACCEPT_BATCH 64

static const floor_mode *const modes[] = {&floor_http, &floor_tcp, &floor_splice};

static const floor_mode *mode;
static struct sockaddr_in upstream_address;
static int epoll_fd;
static floor_side *pool, *dead;
static struct ssl_ctx_st *tls_in, *tls_out;
char floor_io[FLOOR_IO_BYTES + FLOOR_RECORD_BYTES];

/* ---- connections ---- */

static void arm(floor_side *side, int operation) {
  uint32_t events = (side->paused ? 0 : EPOLLIN) | (side->wants_room ? EPOLLOUT : 0);
  epoll_arm(epoll_fd, operation, side->fd, events, side);
}

static floor_side *open_side(int fd, bool client, bool connecting) {
  floor_side *side = calloc(1, sizeof *side);
  if (!side)
    die("out of memory");
  *side =
      (floor_side){.fd = fd, .client = client, .connecting = connecting, .wants_room = connecting, .pipe = {-1, -1}};
  struct ssl_ctx_st *context = client ? tls_in : tls_out;
  if (context)
    floor_tls_open(side, context);
  arm(side, EPOLL_CTL_ADD);
  return side;
}

static void leave_pool(floor_side *side) {
  for (floor_side **place = &pool; *place; place = &(*place)->next)
    if (*place == side) {
      *place = side->next;
      return;
    }
}

static void close_side(floor_side *side) {
  if (side->dead)
    return;
  if (!side->client && !side->peer)
    leave_pool(side);
  if (side->ssl)
    floor_tls_close(side);
  side->dead = true;
  close(side->fd);
  if (side->pipe[0] >= 0) {
    close(side->pipe[0]);
    close(side->pipe[1]);
  }
  side->next = dead;
  dead = side;
}

void floor_end(floor_side *side) {
  floor_side *peer = side->peer;
  close_side(side);
  if (peer)
    close_side(peer);
}

/* Events of this turn may still name them. */
static void bury(void) {
  while (dead) {
    floor_side *side = dead;
    dead = side->next;
    free(side->queue);
    free(side);
  }
}

floor_side *floor_upstream(void) {
  floor_side *side = pool;
  if (side) {
    pool = side->next;
    side->next = NULL;
    return side;
  }
  int fd = connect_to(&upstream_address);
  return fd < 0 ? NULL : open_side(fd, false, true);
}

void floor_pool(floor_side *side) {
  side->next = pool;
  pool = side;
}

/* ---- receiving and sending ---- */

ssize_t floor_receive(floor_side *side) {
  return side->ssl ? floor_tls_receive(side) : recv(side->fd, floor_io, FLOOR_IO_BYTES, 0);
}

void floor_pause(floor_side *side, bool paused) {
  if (side->paused == paused)
    return;
  side->paused = paused;
  arm(side, EPOLL_CTL_MOD);
}

void floor_want_room(floor_side *side, bool want) {
  if (side->wants_room == want)
    return;
  side->wants_room = want;
  arm(side, EPOLL_CTL_MOD);
}

static int enqueue(floor_side *side, const char *bytes, size_t n) {
  char *queue = realloc(side->queue, side->queued + n);
  if (!queue)
    return -1;
  memcpy(queue + side->queued, bytes, n);
  side->queue = queue;
  side->queued += n;
  if (!side->shaking)
    floor_want_room(side, true);
  return 0;
}

int floor_send_raw(floor_side *side, const char *bytes, size_t n) {
  if (side->connecting || (side->queued && !side->shaking))
    return enqueue(side, bytes, n);
  ssize_t sent = send(side->fd, bytes, n, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN)
    return -1;
  size_t done = sent > 0 ? (size_t)sent : 0;
  if (done < n && side->shaking)
    return -1; /* no room for a hello: not for a floor */
  return done == n ? 0 : enqueue(side, bytes + done, n - done);
}

int floor_send(floor_side *side, const char *bytes, size_t n) {
  if (side->shaking)
    return enqueue(side, bytes, n);
  return side->ssl ? floor_tls_send(side, bytes, n) : floor_send_raw(side, bytes, n);
}

static int flush(floor_side *side) {
  ssize_t sent = side->queued ? send(side->fd, side->queue, side->queued, MSG_NOSIGNAL) : 0;
  if (sent < 0)
    return errno == EAGAIN ? 0 : -1;
  side->queued -= (size_t)sent;
  if (side->queued) {
    memmove(side->queue, side->queue + sent, side->queued);
    return 0;
  }
  free(side->queue);
  side->queue = NULL;
  return 1;
}

static int on_room(floor_side *side) {
  int error = 0;
  socklen_t size = sizeof error;
  if (side->connecting && (getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error))
    return -1;
  side->connecting = false;
  int flushed = side->shaking ? 1 : flush(side);
  if (flushed <= 0)
    return flushed;
  floor_want_room(side, false);
  if (side->shaking && floor_tls_shake(side) < 0)
    return -1;
  if (side->peer)
    floor_pause(side->peer, false);
  return mode->room ? mode->room(side) : 0;
}

/* ---- the loop ---- */

static void on_connection(int listener) {
  int fd;
  for (int i = 0; i < ACCEPT_BATCH && (fd = accept_from(listener)) >= 0; i++) {
    floor_side *client = open_side(fd, true, false);
    if (!mode->pairs)
      continue;
    client->peer = floor_upstream();
    if (!client->peer) {
      floor_end(client);
      continue;
    }
    client->peer->peer = client;
    floor_pause(client, true); /* until the upstream is connected */
  }
}

static void on_event(floor_side *side, uint32_t events) {
  int result = 0;
  if (side->dead)
    return;
  if (events & EPOLLOUT)
    result = on_room(side);
  if (result == 0 && !side->dead && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
    result = side->paused ? (events & (EPOLLHUP | EPOLLERR) ? -1 : 0) : mode->readable(side);
  if (result < 0 && !side->dead)
    floor_end(side);
}

static void set_option(int option, const char *value, struct sockaddr_in *listen_address) {
  if (option == 'l') {
    *listen_address = parse_endpoint("--listen", value);
  } else if (option == 'u') {
    upstream_address = parse_endpoint("--upstream", value);
  } else if (option == 'm') {
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
      if (strcmp(modes[i]->name, value) == 0)
        mode = modes[i];
    if (!mode)
      die("--mode %s: not one of http, tcp, splice", value);
  } else if (option == 'i') {
    tls_in = tls_context(value, true);
  } else if (option == 'o') {
    tls_out = tls_context(value, false);
  } else {
    die("usage: nodeagent-floor --mode http|tcp|splice --listen PORT --upstream PORT "
        "[--tls-in PREFIX] [--tls-out PREFIX]");
  }
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"mode", required_argument, NULL, 'm'},     {"listen", required_argument, NULL, 'l'},
      {"upstream", required_argument, NULL, 'u'}, {"tls-in", required_argument, NULL, 'i'},
      {"tls-out", required_argument, NULL, 'o'},  {0}};
  struct sockaddr_in listen_address = {0};
  int option;
  while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
    set_option(option, optarg, &listen_address);
  if (!mode || !listen_address.sin_port || !upstream_address.sin_port)
    set_option('?', NULL, NULL);
  if (mode == &floor_splice && (tls_in || tls_out))
    die("--mode splice: what is encrypted goes with --mode tcp");
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  int listener = listen_on(&listen_address);
  epoll_arm(epoll_fd, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
  for (struct epoll_event events[EVENTS];;) {
    int n = epoll_wait(epoll_fd, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr)
        on_event(events[i].data.ptr, events[i].events);
      else
        on_connection(listener);
    }
    bury();
  }
}
