/* SPDX-License-Identifier: Apache-2.0
 *
 * A fixed number of requests through a running engine, one after the other, with client and back end played by the
 * main thread: the worker thread does the same each time, so that its instructions can be counted (instructions.py).
 *
 *   engine_bench http|http16k|tcp REQUESTS
 *
 * Routing, timers, statistics and access records are on, as in the agent.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nodeagent/engine.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BODY_16K    16384
#define DRAIN_EVERY 64

/* What a browser or a client library sends, more or less. */
static const char request[] = "GET /api/v1/products/42/reviews?page=2 HTTP/1.1\r\n"
                              "host: reviews.default.svc.cluster.local\r\n"
                              "user-agent: nodeagent-bench/1.0\r\n"
                              "accept: application/json, text/plain, */*\r\n"
                              "accept-encoding: gzip, deflate\r\n"
                              "x-request-id: 6f1b4a2e-8a8f-4a8e-9d5c-2f6a1f0f9a77\r\n\r\n";
static const char message[64] = "a message of sixty-four bytes";
static char answer[BODY_16K + 512], io[BODY_16K + 4096];
static size_t answer_length;

typedef struct bench_case {
  const char *name;
  bool http;
  size_t body;
} bench_case;

static const bench_case cases[] = {{"http", true, 40}, {"http16k", true, BODY_16K}, {"tcp", false, sizeof message}};

static void check(int result, const char *what) {
  if (result >= 0)
    return;
  fprintf(stderr, "engine_bench: %s: %s\n", what, strerror(errno ? errno : -result));
  exit(1);
}

/* ---- sockets of the main thread ---- */

static int listen_any(uint16_t *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(fd, "socket");
  check(bind(fd, (struct sockaddr *)&address, size), "bind");
  check(listen(fd, 16), "listen");
  check(getsockname(fd, (struct sockaddr *)&address, &size), "getsockname");
  *port = ntohs(address.sin_port);
  return fd;
}

static int dial(uint16_t port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(fd, "socket");
  check(connect(fd, (struct sockaddr *)&address, sizeof address), "connect");
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

static void send_all(int fd, const char *bytes, size_t n) {
  check((int)send(fd, bytes, n, MSG_NOSIGNAL) == (int)n ? 0 : -1, "send");
}

/* Receive n bytes, of a message with a head n of its body. */
static void receive(int fd, size_t n, bool has_head) {
  size_t got = 0, wanted = has_head ? SIZE_MAX : n;
  while (got < wanted) {
    ssize_t more = recv(fd, io + got, sizeof io - got, 0);
    check(more > 0 ? 0 : -1, "recv");
    got += (size_t)more;
    const char *end = wanted == SIZE_MAX ? memmem(io, got, "\r\n\r\n", 4) : NULL;
    if (end)
      wanted = (size_t)(end + 4 - io) + n;
  }
}

/* ---- the engine ---- */

static void serve(na_engine *engine, const bench_case *it, uint16_t port, uint16_t upstream_port) {
  uint8_t loopback[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
  na_builder *b;
  na_endpoint endpoint = {.port = upstream_port, .healthy = 1, .weight = 1, .tag = 5};
  memcpy(endpoint.address, loopback, sizeof loopback);
  check(na_builder_new(engine, &b), "builder");
  check(na_builder_cluster(b, "c", &(na_cluster_config){.tag = 4}), "cluster");
  check(na_builder_endpoints(b, "c", &endpoint, 1), "endpoints");
  if (it->http) {
    na_vhost *vhost;
    check(na_builder_table(b, "t", 1, 0), "table");
    check(na_vhost_new("reviews", 2, &vhost), "virtual host");
    check(na_vhost_domain(vhost, "reviews.default.svc.cluster.local"), "domain");
    na_route *route = na_vhost_route(vhost, "default", 3);
    check(na_route_path(route, NA_MATCH_PREFIX, "/", 0), "path");
    check(na_route_forward(route, "c", 1), "forward");
    check(na_builder_vhost(b, "t", vhost), "virtual host");
  }
  const char *cluster = "c";
  uint32_t weight = 1;
  na_destination_config destination = {
      .tag = 6, .protocol = it->http ? NA_PROTOCOL_HTTP : NA_PROTOCOL_TCP, .table = it->http ? "t" : NULL};
  check(na_builder_view(b, "v", 0), "view");
  check(na_builder_destination(b, "v", loopback, port, &destination, &cluster, &weight, 1), "destination");
  check(na_builder_commit(b), "commit");
}

/* The control thread's part, so that neither table fills up. */
static void drain(na_engine *engine) {
  static na_access_record records[DRAIN_EVERY * 2];
  static na_stat_row rows[64];
  check(na_engine_drain_access(engine, records, sizeof records / sizeof *records), "drain access records");
  check(na_engine_drain_stats(engine, rows, sizeof rows / sizeof *rows), "drain statistics");
}

/* ---- requests ---- */

static void make_answer(const bench_case *it) {
  answer_length = (size_t)snprintf(answer, sizeof answer,
                                   "HTTP/1.1 200 OK\r\nserver: backend\r\ndate: Tue, 27 Oct 2026 05:00:00 GMT\r\n"
                                   "content-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                                   it->body);
  memset(answer + answer_length, 'x', it->body);
  answer_length += it->body;
}

static void make_request(const bench_case *it, int client) {
  send_all(client, it->http ? request : message, it->http ? sizeof request - 1 : sizeof message);
}

/* What follows a request: the back end gets it and answers, the client gets the answer. */
static void finish_request(const bench_case *it, int client, int upstream) {
  receive(upstream, it->http ? 0 : sizeof message, it->http);
  send_all(upstream, it->http ? answer : message, it->http ? answer_length : sizeof message);
  receive(client, it->body, it->http);
}

static void run(const bench_case *it, unsigned long requests) {
  na_engine *engine;
  uint16_t port, upstream_port;
  int listener = listen_any(&port), backend = listen_any(&upstream_port);
  na_config config = {.access_log = 1};
  make_answer(it);
  check(na_engine_new(&config, &engine), "engine");
  check(na_engine_start(engine), "start");
  check(na_workload_add(engine, 1, -1, "v", NULL, 0), "workload");
  serve(engine, it, port, upstream_port);
  check(na_workload_listen(engine, 1, NA_LISTENER_PLAIN, 0, listener), "listen");
  int client = dial(port), upstream;
  make_request(it, client); /* the upstream connection comes with the first one */
  check(upstream = accept(backend, NULL, NULL), "accept");
  finish_request(it, client, upstream);
  for (unsigned long i = 0; i < requests; i++) {
    if (i % DRAIN_EVERY == 0)
      drain(engine);
    make_request(it, client);
    finish_request(it, client, upstream);
  }
  close(client);
  check(na_engine_stop(engine, 100), "stop");
  na_engine_free(engine);
  close(upstream);
  close(backend);
}

int main(int argc, char **argv) {
  for (size_t i = 0; argc == 3 && i < sizeof cases / sizeof *cases; i++)
    if (strcmp(argv[1], cases[i].name) == 0) {
      run(&cases[i], strtoul(argv[2], NULL, 10));
      return 0;
    }
  fprintf(stderr, "usage: engine_bench http|http16k|tcp REQUESTS\n");
  return 1;
}
