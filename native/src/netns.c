/* SPDX-License-Identifier: Apache-2.0 */
#include "netns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int identify(na_netns *netns) {
  struct stat st;
  if (fstat(netns->fd, &st) < 0)
    return -errno;
  netns->dev = st.st_dev;
  netns->ino = st.st_ino;
  return 0;
}

int na_netns_current(na_netns *out) {
  out->fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  if (out->fd < 0)
    return -errno;
  return identify(out);
}

int na_netns_dup(int fd, na_netns *out) {
  if (ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
    return -EINVAL;
  out->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (out->fd < 0)
    return -errno;
  return identify(out);
}

void na_netns_close(na_netns *netns) {
  if (netns->fd >= 0)
    close(netns->fd);
  netns->fd = -1;
}

int na_netns_open(const na_netns *netns, const na_netns *home, int family, int type, int protocol) {
  int away = netns->fd >= 0 && (netns->ino != home->ino || netns->dev != home->dev);
  if (away && setns(netns->fd, CLONE_NEWNET) < 0)
    return -errno;
  int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
  int error = errno;
  if (away && setns(home->fd, CLONE_NEWNET) < 0) {
    perror("nodeagent: cannot leave a workload's network namespace");
    abort();
  }
  return fd < 0 ? -error : fd;
}

int na_netns_socket(const na_netns *netns, const na_netns *home, int family) {
  return na_netns_open(netns, home, family, SOCK_STREAM, IPPROTO_TCP);
}
