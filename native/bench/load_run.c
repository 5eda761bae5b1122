/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"
#include "net.h"
#include "tls.h"

#define IO_BYTES  ((size_t)256 * 1024)
#define EVENTS    256
#define DUE_LIMIT 65536
/* Connections that hold() opens at the same time: more could overflow a listener's backlog. */
#define OPEN_AT_ONCE 64

static char io[IO_BYTES];

static void open_connection(load *l, load_connection *c);
static void begin_request(load *l, load_connection *c, uint64_t since);

void load_fail(load *l, enum load_error kind, const char *format, ...) {
  l->errors[kind]++;
  if (l->first_error[0])
    return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(l->first_error, sizeof l->first_error, format, arguments);
  va_end(arguments);
}

/* ---- one connection ---- */

static void put_idle(load *l, load_connection *c) {
  c->busy = false;
  c->next = l->idle;
  l->idle = c;
}

static void close_connection(load_connection *c) {
  SSL_free(c->ssl);
  c->ssl = NULL;
  close(c->fd);
  c->fd = -1;
  c->connecting = c->shaking = c->writing = c->in_body = c->answered = false;
  c->head_length = 0;
  c->received = 0;
}

/* The end of a connection. An unanswered request fails; a closed loop goes on with a new connection. */
static void connection_ended(load *l, load_connection *c, const char *why) {
  bool planned = l->options.protocol->one_shot && c->answered;
  if (!planned && (c->connecting || c->shaking))
    load_fail(l, LOAD_CONNECT, "cannot connect: %s", why);
  else if (!planned)
    load_fail(l, LOAD_CLOSED, "the connection ended before the answer did: %s", why);
  close_connection(c);
  if (l->options.rate == 0 && !l->options.hold)
    begin_request(l, c, clock_ns());
  else
    put_idle(l, c);
}

static void want(load *l, load_connection *c, bool writing) {
  if (c->writing != writing)
    epoll_arm(l->epoll_fd, EPOLL_CTL_MOD, c->fd, writing ? EPOLLIN | EPOLLOUT : EPOLLIN, c);
  c->writing = writing;
}

static ssize_t transmit(load_connection *c, const char *bytes, size_t n) {
  const struct iovec part = {(void *)(uintptr_t)bytes, n};
  return c->ssl ? tls_send(c->ssl, &part, 1) : send(c->fd, bytes, n, MSG_NOSIGNAL);
}

static const char *reason(const load_connection *c) {
  return c->ssl ? tls_reason() : strerror(errno);
}

static void send_request(load *l, load_connection *c) {
  size_t n;
  const char *bytes = l->options.protocol->request(l, &n);
  while (c->sent < n) {
    ssize_t sent = transmit(c, bytes + c->sent, n - c->sent);
    if (sent < 0 && errno == EAGAIN) {
      want(l, c, true);
      return;
    }
    if (sent < 0) {
      connection_ended(l, c, reason(c));
      return;
    }
    c->sent += (uint64_t)sent;
  }
  want(l, c, false);
}

static void open_connection(load *l, load_connection *c) {
  int fd = connect_to(&l->options.target);
  if (fd < 0)
    die("cannot connect: %s", strerror(-fd));
  c->fd = fd;
  c->connecting = c->writing = true;
  l->opened++;
  epoll_arm(l->epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT, c);
}

/* `since` is when the request was to be sent: in an open loop perhaps some time ago. */
static void begin_request(load *l, load_connection *c, uint64_t since) {
  c->busy = true;
  c->since = since;
  c->sent = 0;
  c->answered = false;
  if (c->fd < 0)
    open_connection(l, c);
  else
    send_request(l, c);
}

static void next_request(load *l, load_connection *c) {
  if (l->options.hold) {
    put_idle(l, c);
  } else if (l->options.rate == 0) {
    begin_request(l, c, clock_ns());
  } else if (l->due_count) {
    uint64_t since = l->due[l->due_first];
    l->due_first = (l->due_first + 1) % DUE_LIMIT;
    l->due_count--;
    begin_request(l, c, since);
  } else {
    put_idle(l, c);
  }
}

static void request_answered(load *l, load_connection *c) {
  if (l->measuring) {
    l->requests++;
    histogram_record(&l->latency, clock_ns() - c->since);
  }
  c->answered = true;
  /* A one-shot answer is whole when the server has closed. */
  if (!l->options.protocol->one_shot)
    next_request(l, c);
}

static bool check_connected(load *l, load_connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) {
    connection_ended(l, c, strerror(error));
    return false;
  }
  c->connecting = false;
  if (l->tls) {
    c->ssl = tls_new(l->tls, c->fd, false, l->options.resume ? tls_session() : NULL);
    c->shaking = true;
  }
  return true;
}

/* Go on with the TLS handshake, if there is one; whether it is over. */
static bool shake(load *l, load_connection *c) {
  int done = c->shaking ? tls_handshake(c->ssl) : 1;
  if (done < 0)
    connection_ended(l, c, tls_reason());
  else if (done == 0)
    want(l, c, false);
  else
    c->shaking = false;
  return done == 1;
}

static void receive(load *l, load_connection *c) {
  ssize_t n = c->ssl ? tls_recv(c->ssl, io, sizeof io) : recv(c->fd, io, sizeof io, 0);
  if (n < 0 && errno == EAGAIN)
    return;
  if (n <= 0) {
    connection_ended(l, c, n ? reason(c) : "closed by the other side");
    return;
  }
  if (l->measuring)
    l->bytes += (uint64_t)n;
  if (!c->busy || c->answered) {
    load_fail(l, LOAD_FRAMING, "%zd bytes came that nobody had asked for", n);
    close_connection(c);
    if (l->options.rate == 0)
      begin_request(l, c, clock_ns());
    return;
  }
  switch (l->options.protocol->consume(l, c, io, (size_t)n)) {
  case LOAD_MORE:
    break;
  case LOAD_ANSWERED:
    request_answered(l, c);
    break;
  case LOAD_WRONG:
    close_connection(c);
    next_request(l, c);
  }
}

static void on_event(load *l, load_connection *c, uint32_t events) {
  if (c->fd < 0)
    return;
  bool shaking = c->shaking;
  if (events & EPOLLOUT && c->connecting && !check_connected(l, c))
    return;
  if (!shake(l, c))
    return;
  if (events & EPOLLOUT || shaking)
    send_request(l, c);
  if (c->fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
    receive(l, c);
}

/* ---- the loop ---- */

static void fill_due(load *l, uint64_t now) {
  uint64_t interval = 1000000000 / l->options.rate;
  for (; l->next_due <= now; l->next_due += interval) {
    if (l->idle) {
      load_connection *c = l->idle;
      l->idle = c->next;
      begin_request(l, c, l->next_due);
    } else if (l->due_count < DUE_LIMIT) {
      l->due[(l->due_first + l->due_count++) % DUE_LIMIT] = l->next_due;
    } else {
      l->missed++;
    }
  }
}

/* Handle events until `deadline`. */
static void loop_until(load *l, uint64_t deadline) {
  struct epoll_event events[EVENTS];
  for (uint64_t now = clock_ns(); now < deadline; now = clock_ns()) {
    if (l->options.rate)
      fill_due(l, now);
    uint64_t wake = l->options.rate && l->next_due < deadline ? l->next_due : deadline;
    now = clock_ns();
    uint64_t wait = wake > now ? wake - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000), .tv_nsec = (long)(wait % 1000000000)};
    int n = epoll_pwait2(l->epoll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < n; i++)
      on_event(l, events[i].data.ptr, events[i].events);
  }
}

static void prepare(load *l) {
  l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  l->tls = l->options.tls ? tls_context(l->options.tls, false) : NULL;
  l->connections = calloc(l->options.connections, sizeof *l->connections);
  l->due = calloc(DUE_LIMIT, sizeof *l->due);
  if (l->epoll_fd < 0 || !l->connections || !l->due)
    die("cannot prepare %u connections: %s", l->options.connections, strerror(errno));
  for (uint32_t i = l->options.connections; i-- > 0;) {
    l->connections[i].fd = -1;
    put_idle(l, &l->connections[i]);
  }
}

void load_forget(load *l) {
  l->requests = l->bytes = l->opened = l->missed = 0;
  memset(l->errors, 0, sizeof l->errors);
  l->first_error[0] = '\0';
  histogram_reset(&l->latency);
}

void load_run(load *l, void (*begin)(void)) {
  prepare(l);
  uint64_t start = clock_ns();
  l->next_due = start;
  while (l->options.rate == 0 && l->idle) {
    load_connection *c = l->idle;
    l->idle = c->next;
    begin_request(l, c, clock_ns());
  }
  loop_until(l, start + (uint64_t)(l->options.warm_up * 1e9));
  load_forget(l);
  begin();
  l->measuring = true;
  loop_until(l, clock_ns() + (uint64_t)(l->options.seconds * 1e9));
}

static uint32_t count_idle(const load *l) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < l->options.connections; i++)
    count += l->connections[i].fd >= 0 && !l->connections[i].busy;
  return count;
}

uint32_t load_hold(load *l, void (*begin)(void)) {
  prepare(l);
  histogram_reset(&l->latency);
  l->measuring = true;
  uint64_t deadline = clock_ns() + (uint64_t)(l->options.seconds * 1e9);
  for (uint32_t next = 0; count_idle(l) < l->options.connections && clock_ns() < deadline;) {
    uint32_t waiting = next - count_idle(l);
    for (; next < l->options.connections && waiting < OPEN_AT_ONCE; waiting++)
      begin_request(l, &l->connections[next++], clock_ns());
    loop_until(l, clock_ns() + 1000000);
  }
  l->requests = l->latency.total;
  begin();
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0)
    ;
  loop_until(l, clock_ns() + 1000000);
  return count_idle(l);
}
