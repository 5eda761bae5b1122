/* SPDX-License-Identifier: Apache-2.0 */
#include "connect.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

/* Ports tried before giving up. */
#define PORT_TRIES 32

static int connect_to(int fd, const na_address *remote) {
  struct sockaddr_storage storage;
  socklen_t size = na_address_to_sockaddr(remote, &storage);
  if (connect(fd, (struct sockaddr *)&storage, size) == 0 || errno == EINPROGRESS)
    return 0;
  return -errno;
}

static int bind_source(int fd, const na_address *source, uint16_t port) {
  na_address address = *source;
  struct sockaddr_storage storage;
  address.port = port;
  socklen_t size = na_address_to_sockaddr(&address, &storage);
  return bind(fd, (struct sockaddr *)&storage, size) < 0 ? -errno : 0;
}

static int enable(int fd, int level, int option) {
  int one = 1;
  return setsockopt(fd, level, option, &one, sizeof one) < 0 ? -errno : 0;
}

static int allow_foreign(int fd, const na_address *source) {
  if (na_ip_is_v4(source->ip))
    return enable(fd, SOL_IP, IP_TRANSPARENT);
  return enable(fd, SOL_IPV6, IPV6_TRANSPARENT);
}

/* A new socket that may carry the source address, or -errno. */
static int open_foreign(na_worker *worker, const na_workload *workload, const na_address *source) {
  int fd = na_netns_socket(&workload->netns, &worker->home, na_address_family(source));
  if (fd < 0)
    return fd;
  int error = allow_foreign(fd, source);
  if (!error)
    error = enable(fd, SOL_SOCKET, SO_REUSEADDR); /* one port may serve several destinations */
  if (!error)
    return fd;
  close(fd);
  return error;
}

/* The kernel cannot choose the port: IP_LOCAL_PORT_RANGE is ignored outside of ip_local_port_range, which is just where
 * the client's own ports are. */
static int connect_from(na_worker *worker, const na_workload *workload, const na_address *remote,
                        const na_address *source) {
  const unsigned span = NA_SOURCE_PORT_LAST - NA_SOURCE_PORT_FIRST + 1;
  int error = -EADDRNOTAVAIL;
  for (int i = 0; i < PORT_TRIES && (error == -EADDRINUSE || error == -EADDRNOTAVAIL); i++) {
    int fd = open_foreign(worker, workload, source);
    if (fd < 0)
      return fd;
    error = bind_source(fd, source, (uint16_t)(NA_SOURCE_PORT_FIRST + na_random(worker) % span));
    if (!error)
      error = connect_to(fd, remote);
    if (!error)
      return fd;
    close(fd);
  }
  return error;
}

int na_connect(na_worker *worker, const na_workload *workload, const na_address *remote, const na_address *source) {
  if (source)
    return connect_from(worker, workload, remote, source);
  int fd = na_netns_socket(&workload->netns, &worker->home, na_address_family(remote));
  if (fd < 0)
    return fd;
  int error = connect_to(fd, remote);
  if (error) {
    close(fd);
    return error;
  }
  return fd;
}

int na_connect_bind(na_worker *worker, const na_workload *workload, na_address *source) {
  int fd = na_netns_socket(&workload->netns, &worker->home, na_address_family(source));
  if (fd < 0)
    return fd;
  int error = enable(fd, SOL_SOCKET, SO_REUSEADDR);
  if (!error)
    error = bind_source(fd, source, 0);
  if (error) {
    close(fd);
    return error;
  }
  na_connect_local(fd, source);
  return fd;
}

int na_connect_begin(int fd, const na_address *remote) {
  return connect_to(fd, remote);
}

void na_connect_local(int fd, na_address *out) {
  struct sockaddr_storage storage;
  socklen_t size = sizeof storage;
  if (getsockname(fd, (struct sockaddr *)&storage, &size) < 0 || !na_address_from_sockaddr(out, &storage))
    memset(out, 0, sizeof *out);
}
