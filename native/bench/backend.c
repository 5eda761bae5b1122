/* SPDX-License-Identifier: Apache-2.0
 *
 * The back end: answers HTTP/1.1, echoes, or streams, one thread, as cheaply as a server can.
 *
 *   nodeagent-backend [--tls PREFIX] [--http PORT] [--echo PORT] [--stream PORT]
 *
 * After --tls all ports speak TLS 1.3, with the certificate in PREFIX.chain.pem, .key.pem and .roots.pem.
 *
 * HTTP: `GET /N` is answered with N bytes of the pattern (pattern.h), `GET /whoami` with the address and port that was
 * connected to. Keep-alive unless asked to close; pipelined requests are answered in order; requests have no bodies.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "net.h"
#include "pattern.h"
#include "tls.h"

#define IO_BYTES   ((size_t)256 * 1024)
#define HEAD_BYTES 2048 /* longest request head that may come in pieces */
#define EVENTS     256
#define BODY_LIMIT ((uint64_t)1 << 30)

enum role { HTTP, ECHO, STREAM };

struct socket_watch {
  int fd;
  enum role role;
  bool listens;
};

struct connection {
  struct socket_watch watch;
  struct ssl_st *ssl; /* NULL: plaintext */
  bool shaking, close_after, waits_for_room;
  char head[256]; /* of the response in progress */
  size_t head_length, head_sent;
  uint64_t body_length, body_sent;
  char *held; /* input that is not answered yet; NULL mostly */
  size_t nheld;
};

static int epoll_fd;
static char io[IO_BYTES];
static struct ssl_ctx_st *tls;

static ssize_t receive(struct connection *c) {
  return c->ssl ? tls_recv(c->ssl, io, sizeof io) : recv(c->watch.fd, io, sizeof io, 0);
}

static ssize_t transmit(struct connection *c, const struct iovec *parts, int n) {
  struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)parts, .msg_iovlen = (size_t)n};
  return c->ssl ? tls_send(c->ssl, parts, n) : sendmsg(c->watch.fd, &message, MSG_NOSIGNAL);
}

static void drop(struct connection *c) {
  if (c->ssl && !c->shaking)
    (void)SSL_shutdown(c->ssl);
  SSL_free(c->ssl);
  close(c->watch.fd);
  free(c->held);
  free(c);
}

/* Keep input for later; false when it is more than a head may have. */
static bool hold(struct connection *c, const char *bytes, size_t n) {
  if (n > IO_BYTES || !(c->held = malloc(n ? n : 1)))
    return false;
  memcpy(c->held, bytes, n);
  c->nheld = n;
  return true;
}

static void wait_for_room(struct connection *c, bool wait) {
  if (c->waits_for_room == wait)
    return;
  c->waits_for_room = wait;
  epoll_arm(epoll_fd, EPOLL_CTL_MOD, c->watch.fd, wait ? EPOLLOUT : EPOLLIN, c);
}

/* 1: all is sent; 0: no room; -1: the connection is gone. */
static int send_response(struct connection *c) {
  while (c->head_sent < c->head_length || c->body_sent < c->body_length) {
    uint64_t left = c->body_length - c->body_sent;
    struct iovec parts[2] = {
        {c->head + c->head_sent, c->head_length - c->head_sent},
        {(void *)(uintptr_t)pattern_at(c->body_sent), left < PATTERN_RUN ? (size_t)left : PATTERN_RUN}};
    ssize_t n = transmit(c, parts, 2);
    if (n < 0)
      return errno == EAGAIN ? 0 : -1;
    size_t of_head = (size_t)n < parts[0].iov_len ? (size_t)n : parts[0].iov_len;
    c->head_sent += of_head;
    c->body_sent += (uint64_t)n - of_head;
  }
  return 1;
}

static void start_response(struct connection *c, uint64_t length, const char *body) {
  c->head_length =
      (size_t)snprintf(c->head, sizeof c->head,
                       "HTTP/1.1 200 OK\r\nserver: nodeagent-backend\r\ncontent-type: text/plain\r\n"
                       "content-length: %llu\r\n%s\r\n%s",
                       (unsigned long long)length, c->close_after ? "connection: close\r\n" : "", body ? body : "");
  c->body_length = body ? 0 : length;
  c->head_sent = 0;
  c->body_sent = 0;
}

static bool has_token(const char *head, size_t n, const char *token) {
  return memmem(head, n, token, strlen(token)) != NULL;
}

/* Prepare the answer to one head; false when it is no request that we know. */
static bool answer(struct connection *c, const char *head, size_t n) {
  if (n < 16 || memcmp(head, "GET /", 5) != 0)
    return false;
  c->close_after = has_token(head, n, "onnection: close");
  if (memcmp(head + 5, "whoami ", 7) == 0) {
    struct sockaddr_in local;
    socklen_t size = sizeof local;
    char text[INET_ADDRSTRLEN + 8], host[INET_ADDRSTRLEN] = "?";
    if (getsockname(c->watch.fd, (struct sockaddr *)&local, &size) == 0)
      inet_ntop(AF_INET, &local.sin_addr, host, sizeof host);
    int length = snprintf(text, sizeof text, "%s:%u", host, ntohs(local.sin_port));
    start_response(c, (uint64_t)length, text);
    return true;
  }
  uint64_t length = 0;
  for (const char *p = head + 5; *p >= '0' && *p <= '9' && length < BODY_LIMIT; p++)
    length = length * 10 + (uint64_t)(*p - '0');
  start_response(c, length, NULL);
  return true;
}

/* Answer the requests in the input, as far as they are whole and there is room; -1: the connection is to go. */
static int serve_http(struct connection *c, const char *bytes, size_t n) {
  while (n) {
    const char *end = memmem(bytes, n, "\r\n\r\n", 4);
    if (!end)
      return n <= HEAD_BYTES && hold(c, bytes, n) ? 0 : -1;
    size_t length = (size_t)(end + 4 - bytes);
    if (!answer(c, bytes, length))
      return -1;
    bytes += length;
    n -= length;
    int sent = send_response(c);
    if (sent < 0 || (sent && c->close_after))
      return -1;
    if (!sent) {
      wait_for_room(c, true);
      return hold(c, bytes, n) ? 0 : -1;
    }
  }
  return 0;
}

static int serve_held(struct connection *c, const char *more, size_t n) {
  char *held = c->held;
  size_t nheld = c->nheld;
  c->held = NULL;
  if (!held)
    return serve_http(c, more, n);
  char *whole = realloc(held, nheld + n + 1);
  if (!whole) {
    free(held);
    return -1;
  }
  memcpy(whole + nheld, more, n);
  int result = serve_http(c, whole, nheld + n);
  free(whole);
  return result;
}

/* Echo what came; what the peer does not take at once is held, and nothing is read meanwhile. */
static int serve_echo(struct connection *c, const char *bytes, size_t n) {
  const struct iovec part = {(void *)(uintptr_t)bytes, n};
  ssize_t sent = n ? transmit(c, &part, 1) : 0;
  if (sent < 0 && errno != EAGAIN)
    return -1;
  size_t done = sent > 0 ? (size_t)sent : 0;
  wait_for_room(c, done < n);
  return done == n || hold(c, bytes + done, n - done) ? 0 : -1;
}

/* Go on with the handshake; 1 when it is over, as tls_handshake(). */
static int shake(struct connection *c) {
  int done = c->shaking ? tls_handshake(c->ssl) : 1;
  if (done == 1 && c->shaking && c->watch.role == STREAM)
    wait_for_room(c, true);
  c->shaking = c->shaking && done != 1;
  return done;
}

static int on_readable(struct connection *c) {
  int done = shake(c);
  if (done != 1)
    return done;
  ssize_t n = receive(c);
  if (n <= 0)
    return n < 0 && errno == EAGAIN ? 0 : -1;
  return c->watch.role == ECHO ? serve_echo(c, io, (size_t)n) : serve_held(c, io, (size_t)n);
}

static int on_room(struct connection *c) {
  if (c->watch.role == ECHO) {
    char *held = c->held;
    c->held = NULL;
    int result = serve_echo(c, held, c->nheld);
    free(held);
    return result;
  }
  int sent = send_response(c);
  if (sent < 0 || (sent && c->close_after))
    return -1;
  if (!sent)
    return 0;
  wait_for_room(c, false);
  return serve_held(c, "", 0);
}

static void on_connection(const struct socket_watch *listener) {
  int fd;
  while ((fd = accept_from(listener->fd)) >= 0) {
    struct connection *c = calloc(1, sizeof *c);
    if (!c)
      die("out of memory");
    c->watch = (struct socket_watch){.fd = fd, .role = listener->role};
    c->waits_for_room = listener->role == STREAM && !tls;
    c->shaking = tls != NULL;
    c->ssl = tls ? tls_new(tls, fd, true, NULL) : NULL;
    c->body_length = listener->role == STREAM ? UINT64_MAX : 0;
    epoll_arm(epoll_fd, EPOLL_CTL_ADD, fd, c->waits_for_room ? EPOLLOUT : EPOLLIN, c);
  }
}

static void on_event(struct socket_watch *watch, uint32_t events) {
  if (watch->listens) {
    on_connection(watch);
    return;
  }
  struct connection *c = (struct connection *)watch;
  int result = events & EPOLLOUT ? on_room(c) : on_readable(c);
  if (result < 0)
    drop(c);
}

static void serve_role(struct socket_watch *watch, enum role role, const char *option, const char *where) {
  struct sockaddr_in address = parse_endpoint(option, where);
  if (!strchr(where, ':'))
    address.sin_addr.s_addr = htonl(INADDR_ANY);
  *watch = (struct socket_watch){.fd = listen_on(&address), .role = role, .listens = true};
  epoll_arm(epoll_fd, EPOLL_CTL_ADD, watch->fd, EPOLLIN, watch);
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"http", required_argument, NULL, HTTP},
      {"echo", required_argument, NULL, ECHO},
      {"stream", required_argument, NULL, STREAM},
      {"tls", required_argument, NULL, 't'},
      {0},
  };
  static struct socket_watch listeners[3];
  int role, roles = 0;
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  while ((role = getopt_long(argc, argv, "", options, NULL)) != -1) {
    if (role == '?')
      die("usage: nodeagent-backend [--tls PREFIX] [--http PORT] [--echo PORT] [--stream PORT]");
    if (role == 't') {
      tls = tls_context(optarg, true);
      continue;
    }
    serve_role(&listeners[role], (enum role)role, options[role].name, optarg);
    roles++;
  }
  if (!roles || optind < argc)
    die("give at least one of --http, --echo and --stream");
  for (struct epoll_event events[EVENTS];;) {
    int n = epoll_wait(epoll_fd, events, EVENTS, -1);
    for (int i = 0; i < n; i++)
      on_event(events[i].data.ptr, events[i].events);
  }
}
