/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls of each request, as their namesakes. Those of the C library are cancellation points, which costs a
 * thread two atomic operations around each call; workers are never cancelled.
 */
#ifndef NODEAGENT_SYSCALLS_H
#define NODEAGENT_SYSCALLS_H

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline ssize_t na_sys_recv(int fd, void *buffer, size_t size) {
  return syscall(SYS_recvfrom, fd, buffer, size, 0, NULL, NULL);
}

static inline ssize_t na_sys_send(int fd, const void *bytes, size_t n, int flags) {
  return syscall(SYS_sendto, fd, bytes, n, flags, NULL, 0);
}

static inline ssize_t na_sys_sendmsg(int fd, const struct msghdr *message, int flags) {
  return syscall(SYS_sendmsg, fd, message, flags);
}

static inline int na_sys_epoll_wait(int fd, struct epoll_event *events, int n, int timeout_ms) {
  return (int)syscall(SYS_epoll_pwait, fd, events, n, timeout_ms, NULL, 0);
}

#endif
