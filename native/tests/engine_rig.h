/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine under test with real sockets on loopback. The test itself plays both peers, step by step: it connects to
 * the engine as a client and accepts from it as a server. Every read has a time limit, so that a hang is a failure.
 */
#ifndef NODEAGENT_ENGINE_RIG_H
#define NODEAGENT_ENGINE_RIG_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nodeagent/engine.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "cmocka_common.h"

#define RIG_WAIT_MS 5000
#define UNUSED      __attribute__((unused))

/* The tags that the standard configuration uses. */
enum { TAG_TABLE = 3, TAG_VHOST = 4, TAG_ROUTE = 5, TAG_DESTINATION = 6, TAG_CLUSTER = 7, TAG_ENDPOINT = 9 };

typedef struct rig {
  na_engine *engine;
  na_builder *builder; /* between rig_change and rig_commit */
} rig;

UNUSED static void v4_mapped(uint8_t out[16], const char *text) {
  memset(out, 0, 10);
  out[10] = out[11] = 0xff;
  assert_int_equal(inet_pton(AF_INET, text, out + 12), 1);
}

UNUSED static void sleep_ms(int ms) {
  poll(NULL, 0, ms);
}

UNUSED static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- the engine ---- */

/* A running engine with workload 1 (view "v") in the current namespace. */
UNUSED static rig rig_start(const na_config *config) {
  na_config defaults = {0};
  uint8_t own[16];
  rig r = {0};
  v4_mapped(own, "10.9.9.9");
  assert_int_equal(na_engine_new(config ? config : &defaults, &r.engine), 0);
  assert_int_equal(na_engine_start(r.engine), 0);
  assert_int_equal(na_workload_add(r.engine, 1, -1, "v", own, 1), 0);
  return r;
}

UNUSED static void rig_stop(rig *r) {
  assert_int_equal(na_engine_stop(r->engine, 0), 0);
  na_engine_free(r->engine);
}

UNUSED static uint16_t port_of(int fd) {
  struct sockaddr_in address;
  socklen_t size = sizeof address;
  assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
  return ntohs(address.sin_port);
}

/* A listening socket on 127.0.0.1. */
UNUSED static int listen_any(uint16_t *port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(fd, 1024), 0);
  *port = port_of(fd);
  return fd;
}

/* A port of 127.0.0.1 where nobody listens. */
UNUSED static uint16_t closed_port(void) {
  uint16_t port;
  close(listen_any(&port));
  return port;
}

/* A plain listener of workload 1; the port. */
UNUSED static uint16_t rig_listen(rig *r) {
  uint16_t port;
  int fd = listen_any(&port);
  assert_int_equal(na_workload_listen(r->engine, 1, NA_LISTENER_PLAIN, 0, fd), 0);
  return port;
}

UNUSED static uint64_t counter(const rig *r, const char *name) {
  const na_counter_info *info;
  for (size_t i = 0; (info = na_engine_counter_info(i)); i++)
    if (strcmp(info->name, name) == 0)
      return na_engine_counter(r->engine, i);
  fail_msg("no counter %s", name);
  return 0;
}

/* Wait until a counter has the value. */
UNUSED static void await_counter(const rig *r, const char *name, uint64_t value) {
  for (int i = 0; i < RIG_WAIT_MS && counter(r, name) != value; i++)
    sleep_ms(1);
  if (counter(r, name) != value)
    fail_msg("%s is %llu, not %llu", name, (unsigned long long)counter(r, name), (unsigned long long)value);
}

/* ---- configuration ---- */

UNUSED static na_builder *rig_change(rig *r) {
  assert_int_equal(na_builder_new(r->engine, &r->builder), 0);
  return r->builder;
}

UNUSED static void rig_commit(rig *r) {
  int error = na_builder_commit(r->builder);
  if (error)
    fail_msg("commit: %s", na_engine_error(r->engine));
  for (int i = 0; i < RIG_WAIT_MS && na_engine_settled(r->engine) < na_engine_committed(r->engine); i++)
    sleep_ms(1);
  assert_int_equal(na_engine_settled(r->engine), na_engine_committed(r->engine));
}

UNUSED static na_endpoint endpoint_at(uint16_t port) {
  na_endpoint endpoint = {.port = port, .healthy = 1, .weight = 1, .tag = TAG_ENDPOINT};
  v4_mapped(endpoint.address, "127.0.0.1");
  return endpoint;
}

/* A cluster with one endpoint on 127.0.0.1. */
UNUSED static void add_cluster(na_builder *b, const char *name, uint16_t port) {
  na_cluster_config config = {.tag = TAG_CLUSTER};
  na_endpoint endpoint = endpoint_at(port);
  assert_int_equal(na_builder_cluster(b, name, &config), 0);
  assert_int_equal(na_builder_endpoints(b, name, &endpoint, 1), 0);
}

/* What 127.0.0.1:port means for view "v"; cluster for TCP, or NULL. */
UNUSED static void add_destination(na_builder *b, uint16_t port, enum na_protocol protocol, const char *table,
                                   const char *cluster) {
  uint8_t ip[16];
  uint32_t weight = 1;
  na_destination_config config = {.tag = TAG_DESTINATION, .protocol = protocol, .table = table};
  v4_mapped(ip, "127.0.0.1");
  assert_int_equal(na_builder_view(b, "v", 0), 0);
  assert_int_equal(na_builder_destination(b, "v", ip, port, &config, cluster ? &cluster : NULL,
                                          cluster ? &weight : NULL, cluster ? 1 : 0),
                   0);
}

/* A virtual host `name` for one domain with one route to the cluster; not yet in a table. */
UNUSED static na_vhost *new_vhost(const char *name, const char *domain, const char *cluster, na_route **route) {
  na_vhost *vhost;
  assert_int_equal(na_vhost_new(name, TAG_VHOST, &vhost), 0);
  assert_int_equal(na_vhost_domain(vhost, domain), 0);
  na_route *added = na_vhost_route(vhost, "r", TAG_ROUTE);
  assert_non_null(added);
  if (cluster)
    assert_int_equal(na_route_forward(added, cluster, 1), 0);
  if (route)
    *route = added;
  return vhost;
}

/* Table "t" with virtual host "vh" for every host, leading to cluster "c"; destination `port` speaks `protocol`. */
UNUSED static void rig_serve(rig *r, uint16_t port, enum na_protocol protocol, uint16_t backend_port) {
  na_builder *b = rig_change(r);
  add_cluster(b, "c", backend_port);
  assert_int_equal(na_builder_table(b, "t", TAG_TABLE, 0), 0);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("vh", "*", "c", NULL)), 0);
  add_destination(b, port, protocol, protocol == NA_PROTOCOL_TCP ? NULL : "t", "c");
  rig_commit(r);
}

/* ---- peers ---- */

UNUSED static void limit_waits(int fd) {
  struct timeval wait = {.tv_sec = RIG_WAIT_MS / 1000};
  int one = 1;
  assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), 0);
  assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait), 0);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

UNUSED static int dial(uint16_t port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  limit_waits(fd);
  assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
  return fd;
}

UNUSED static bool readable_within(int fd, int ms) {
  struct pollfd wait = {.fd = fd, .events = POLLIN};
  return poll(&wait, 1, ms) == 1;
}

UNUSED static int answer(int listener) {
  if (!readable_within(listener, RIG_WAIT_MS))
    fail_msg("nobody connected");
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  assert_true(fd >= 0);
  limit_waits(fd);
  return fd;
}

UNUSED static void put_n(int fd, const void *bytes, size_t n) {
  const char *p = bytes;
  while (n) {
    ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
    if (sent <= 0)
      fail_msg("send: %s", strerror(errno));
    p += sent;
    n -= (size_t)sent;
  }
}

UNUSED static void put(int fd, const char *text) {
  put_n(fd, text, strlen(text));
}

/* Read exactly n bytes. */
UNUSED static void get_n(int fd, void *out, size_t n) {
  char *p = out;
  while (n) {
    ssize_t got = recv(fd, p, n, 0);
    if (got <= 0)
      fail_msg("recv: %s", got ? strerror(errno) : "end of data");
    p += got;
    n -= (size_t)got;
  }
}

/* The next bytes are these. */
UNUSED static void expect(int fd, const char *text) {
  char got[4096];
  size_t n = strlen(text);
  assert_true(n < sizeof got);
  get_n(fd, got, n);
  got[n] = '\0';
  assert_string_equal(got, text);
}

/* Read a head, through its empty line; the result is valid until the next call. */
UNUSED static const char *get_head(int fd) {
  static char head[80 * 1024];
  size_t n = 0;
  do {
    assert_true(n < sizeof head - 1);
    get_n(fd, head + n, 1);
    head[++n] = '\0';
  } while (n < 4 || memcmp(head + n - 4, "\r\n\r\n", 4) != 0);
  return head;
}

UNUSED static void assert_has(const char *text, const char *part) {
  if (!strstr(text, part))
    fail_msg("no '%s' in:\n%s", part, text);
}

UNUSED static void assert_lacks(const char *text, const char *part) {
  if (strstr(text, part))
    fail_msg("'%s' in:\n%s", part, text);
}

/* A head that begins with the line. */
UNUSED static const char *expect_head(int fd, const char *line) {
  const char *head = get_head(fd);
  if (strncmp(head, line, strlen(line)) != 0 || head[strlen(line)] != '\r')
    fail_msg("'%s' expected:\n%s", line, head);
  return head;
}

/* End of data. */
UNUSED static void expect_end(int fd) {
  char byte;
  ssize_t n = recv(fd, &byte, 1, 0);
  if (n != 0)
    fail_msg("end of data expected, got %s", n < 0 ? strerror(errno) : "a byte");
}

UNUSED static void expect_reset(int fd) {
  char byte;
  ssize_t n = recv(fd, &byte, 1, 0);
  if (n >= 0 || errno != ECONNRESET)
    fail_msg("reset expected, got %s", n < 0 ? strerror(errno) : n ? "a byte" : "end of data");
}

UNUSED static void expect_silence(int fd, int ms) {
  if (readable_within(fd, ms))
    fail_msg("bytes, or an end, where none were expected");
}

#define GET_ROOT "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#define OK_HELLO "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

/* One plain exchange over the client's connection and the server's; the server's head is checked to begin like this. */
UNUSED static void exchange(int client, int server) {
  put(client, GET_ROOT);
  expect_head(server, "GET / HTTP/1.1");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
}

/* The same where the server's connection is yet to come; that connection. */
UNUSED static int first_exchange(int client, int listener) {
  put(client, GET_ROOT);
  int server = answer(listener);
  expect_head(server, "GET / HTTP/1.1");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  return server;
}

/* ---- reports ---- */

/* All rows since the last call, into a static array. */
UNUSED static na_stat_row *get_stats(rig *r, int *n) {
  static na_stat_row rows[256];
  *n = na_engine_drain_stats(r->engine, rows, COUNT(rows));
  assert_true(*n >= 0 && *n < (int)COUNT(rows));
  return rows;
}

/* The next access record, waited for. */
UNUSED static na_access_record get_record(rig *r) {
  na_access_record record;
  for (int i = 0; i < RIG_WAIT_MS; i++) {
    if (na_engine_drain_access(r->engine, &record, 1) == 1)
      return record;
    sleep_ms(1);
  }
  fail_msg("no access record");
  return record;
}

#endif
