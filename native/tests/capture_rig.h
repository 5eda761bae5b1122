/* SPDX-License-Identifier: Apache-2.0
 *
 * A network namespace of the test's own, with pods as addresses of its loopback device (10.1.0.<n> and fd01::<n>), and
 * connections that come from where the test wants. Needs root and nft; capture_possible() tells.
 */
#ifndef NODEAGENT_CAPTURE_RIG_H
#define NODEAGENT_CAPTURE_RIG_H

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include "engine_rig.h"

enum { POD = 1, CLIENT = 2, OTHER = 3 };

/* nft rules: the chain of redirections, and in it that of a service at port 8080. Redirected is what comes from a
 * client's port (40000 and above), so that the engine's own connections pass. */
#define CAPTURE_CHAIN                                                                                                  \
  "add table inet capture\n"                                                                                           \
  "add chain inet capture out { type nat hook output priority -100; }\n"
#define CAPTURE_SERVICE                                                                                                \
  CAPTURE_CHAIN "add rule inet capture out tcp sport 40000-60999 tcp dport 8080 redirect to :15006\n"

UNUSED static bool capture_possible(void) {
  return geteuid() == 0 && system("command -v nft >/dev/null") == 0;
}

UNUSED static void need_capture(bool ready) {
  if (!ready) {
    print_message("needs root, network namespaces and nft\n");
    skip();
  }
}

UNUSED static bool run(const char *command, const char *input) {
  FILE *pipe = popen(command, "w");
  if (!pipe)
    return false;
  fputs(input, pipe);
  return pclose(pipe) == 0;
}

UNUSED static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  close(fd);
}

static struct sockaddr_storage address_of(bool v6, int host, uint16_t port, socklen_t *size) {
  struct sockaddr_storage storage = {0};
  char text[32];
  if (v6) {
    struct sockaddr_in6 *a = (struct sockaddr_in6 *)&storage;
    snprintf(text, sizeof text, "fd01::%d", host);
    *a = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
    assert_int_equal(inet_pton(AF_INET6, text, &a->sin6_addr), 1);
    *size = sizeof *a;
  } else {
    struct sockaddr_in *a = (struct sockaddr_in *)&storage;
    snprintf(text, sizeof text, "10.1.0.%d", host);
    *a = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    assert_int_equal(inet_pton(AF_INET, text, &a->sin_addr), 1);
    *size = sizeof *a;
  }
  return storage;
}

UNUSED static void sixteen_bytes(bool v6, int host, uint8_t out[16]) {
  char text[32];
  snprintf(text, sizeof text, v6 ? "fd01::%d" : "10.1.0.%d", host);
  if (v6)
    assert_int_equal(inet_pton(AF_INET6, text, out), 1);
  else
    v4_mapped(out, text);
}

UNUSED static int listen_at(bool v6, int host, uint16_t port) {
  socklen_t size;
  int one = 1;
  int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_storage address = address_of(v6, host, port, &size);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
  assert_int_equal(listen(fd, 16), 0);
  return fd;
}

/* A dual-stack listener, as the agent opens it. */
UNUSED static int listen_all(uint16_t port) {
  struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  int one = 1, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(fd, 64), 0);
  return fd;
}

UNUSED static int dial_from(bool v6, int from, int to, uint16_t port) {
  static uint16_t next = 40000;
  socklen_t size;
  int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_storage source = address_of(v6, from, next++, &size);
  assert_int_equal(bind(fd, (struct sockaddr *)&source, size), 0);
  struct sockaddr_storage target = address_of(v6, to, port, &size);
  limit_waits(fd);
  assert_int_equal(connect(fd, (struct sockaddr *)&target, size), 0);
  return fd;
}

UNUSED static int answer_from(int listener, struct sockaddr_storage *peer) {
  socklen_t size = sizeof *peer;
  if (!readable_within(listener, RIG_WAIT_MS))
    fail_msg("nobody connected");
  int fd = accept4(listener, (struct sockaddr *)peer, &size, SOCK_CLOEXEC);
  assert_true(fd >= 0);
  limit_waits(fd);
  return fd;
}

/* Move this thread into a namespace of its own, with the pods' addresses and these nft rules; false if that cannot be.
 */
UNUSED static bool enter_namespace(const char *rules) {
  if (unshare(CLONE_NEWNET) < 0)
    return false;
  assert_true(run("ip -batch -", "link set lo up\naddr add 10.1.0.1/32 dev lo\naddr add 10.1.0.2/32 dev lo\n"
                                 "addr add 10.1.0.3/32 dev lo\naddr add fd01::1/128 dev lo\n"
                                 "addr add fd01::2/128 dev lo\naddr add fd01::3/128 dev lo\n"));
  assert_true(run("nft -f -", rules));
  return true;
}

/* Add a workload in this namespace, with both addresses of a pod. */
UNUSED static void add_pod(rig *r, uint32_t id, int host, const char *view) {
  uint8_t own[2][16];
  sixteen_bytes(false, host, own[0]);
  sixteen_bytes(true, host, own[1]);
  int netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  assert_int_equal(na_workload_add(r->engine, id, netns, view, own[0], 2), 0);
  close(netns);
}

#endif
