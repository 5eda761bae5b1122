/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s: ", program_invocation_short_name);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

uint64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t cpu_ns(void) {
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return (uint64_t)used.tv_sec * 1000000000 + (uint64_t)used.tv_nsec;
}

void raise_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
}

uint64_t parse_number(const char *option, const char *text, uint64_t low, uint64_t high) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (errno || *end || end == text || *text == '-' || value < low || value > high)
    die("%s %s: not a number from %llu to %llu", option, text, (unsigned long long)low, (unsigned long long)high);
  return value;
}

struct sockaddr_in parse_endpoint(const char *option, const char *text) {
  char host[INET_ADDRSTRLEN] = "127.0.0.1";
  const char *colon = strrchr(text, ':');
  if (colon && (size_t)(colon - text) < sizeof host) {
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
  }
  struct sockaddr_in address = {.sin_family = AF_INET};
  address.sin_port = htons((uint16_t)parse_number(option, colon ? colon + 1 : text, 1, 65535));
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
    die("%s %s: not an IPv4 address and a port", option, text);
  return address;
}

static void no_delay(int fd) {
  int one = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

int listen_on(const struct sockaddr_in *address) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0)
    die("socket: %s", strerror(errno));
  (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (const struct sockaddr *)address, sizeof *address) < 0 || listen(fd, 4096) < 0)
    die("cannot listen on port %u: %s", ntohs(address->sin_port), strerror(errno));
  return fd;
}

int connect_to(const struct sockaddr_in *address) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -errno;
  no_delay(fd);
  if (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 && errno != EINPROGRESS) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

int accept_from(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0)
    return -errno;
  no_delay(fd);
  return fd;
}

void epoll_arm(int epoll_fd, int operation, int fd, uint32_t events, void *data) {
  struct epoll_event event = {.events = events, .data.ptr = data};
  if (epoll_ctl(epoll_fd, operation, fd, &event) < 0)
    die("epoll_ctl: %s", strerror(errno));
}
