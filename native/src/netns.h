/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening sockets in another network namespace. A socket belongs for life to the namespace that its creator was in,
 * so a worker enters a workload's namespace around socket() only.
 */
#ifndef NODEAGENT_NETNS_H
#define NODEAGENT_NETNS_H

#include <stdint.h>
#include <sys/types.h>

/* A namespace by its file descriptor, with the inode that tells whether two are the same. */
typedef struct na_netns {
  int fd; /* -1: whatever the thread is in */
  dev_t dev;
  ino_t ino;
} na_netns;

/* The calling thread's namespace. 0 or -errno. */
int na_netns_current(na_netns *out);
/* Duplicate `fd`; -EINVAL if it is not a network namespace. */
int na_netns_dup(int fd, na_netns *out);
void na_netns_close(na_netns *netns);
/* A non-blocking socket in `netns`, for a thread whose own namespace is `home`. Returns the descriptor or -errno.
 * Aborts the process if the thread cannot return home: going on in the wrong namespace would send one workload's
 * traffic as another's. */
int na_netns_open(const na_netns *netns, const na_netns *home, int family, int type, int protocol);
/* The same for TCP. */
int na_netns_socket(const na_netns *netns, const na_netns *home, int family);

#endif
