/* SPDX-License-Identifier: Apache-2.0 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "address.h"
#include "conn.h"
#include "dns_server.h"
#include "hbone.h"

/* linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h, which do not go together with netinet/in.h. */
#define SO_ORIGINAL_DST      80
#define IP6T_SO_ORIGINAL_DST 80

/* Accepted per event at most, so that a flood of connections does not starve the others. */
#define ACCEPT_BATCH 64
/* How long accepting rests when the process has run out of descriptors. */
#define ACCEPT_PAUSE_MS 100

typedef struct na_listener {
  union {
    na_watch watch;
    na_grave grave;
  };
  na_link link;
  na_timer resume;
  na_worker *worker;
  na_workload *workload;
  enum na_listener_kind kind;
  na_address address; /* where it listens */
} na_listener;

/* Where a connection is going. */
typedef struct aim {
  na_address address;
  uint32_t drawn; /* na_conn.drawn */
} aim;

/* Where the connection was going before it was captured (NAT: conntrack knows; eBPF capture answers the same call, and
 * may tell after the address whose endpoint it drew). */
static int original_destination(int fd, const na_address *peer, aim *out) {
  struct sockaddr_storage storage;
  socklen_t size = sizeof storage;
  bool v4 = na_ip_is_v4(peer->ip); /* also on a dual-stack `::` listener */
  int rc = v4 ? getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &storage, &size)
              : getsockopt(fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, &storage, &size);
  if (rc < 0)
    return -errno;
  size_t end = v4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
  if (size >= end + sizeof out->drawn)
    memcpy(&out->drawn, (const char *)&storage + end, sizeof out->drawn);
  return na_address_from_sockaddr(&out->address, &storage) ? 0 : -EAFNOSUPPORT;
}

static int local_address(int fd, na_address *out) {
  struct sockaddr_storage storage;
  socklen_t size = sizeof storage;
  if (getsockname(fd, (struct sockaddr *)&storage, &size) < 0)
    return -errno;
  return na_address_from_sockaddr(out, &storage) ? 0 : -EAFNOSUPPORT;
}

static void refuse(na_worker *worker, int fd, enum na_counter_id why) {
  struct linger linger = {.l_onoff = 1, .l_linger = 0};
  na_worker_count(worker, why);
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  close(fd);
}

/* Somebody talks to the listener itself, not through capture: to go there would be to go round in circles. */
static bool aims_at_listener(const na_listener *listener, const na_address *destination) {
  return destination->port == listener->address.port &&
         (na_ip_is_loopback(destination->ip) || na_workload_owns(listener->workload, destination->ip));
}

/* Where an accepted connection was going. */
static int destination_of(const na_listener *listener, int fd, const na_address *peer, aim *out) {
  if (listener->kind != NA_LISTENER_PLAIN && listener->kind != NA_LISTENER_HBONE)
    return original_destination(fd, peer, out);
  if (na_ip_is_any(listener->address.ip))
    return local_address(fd, &out->address);
  out->address = listener->address;
  return 0;
}

/* A name server that cannot be told was not asked: the client came to the listener by itself. */
static void accepted_dns(na_listener *listener, int fd, const na_address *peer) {
  aim asked = {0};
  bool known = original_destination(fd, peer, &asked) == 0 && !aims_at_listener(listener, &asked.address);
  na_dns_accept(listener->worker, listener->workload, fd, known ? &asked.address : NULL);
}

static void accepted(na_listener *listener, int fd, const struct sockaddr_storage *from) {
  na_worker *worker = listener->worker;
  na_address peer;
  aim to = {0};
  if (listener->kind == NA_LISTENER_DNS && na_address_from_sockaddr(&peer, from)) {
    accepted_dns(listener, fd, &peer);
    return;
  }
  if (worker->counters.values[NA_COUNTER_DOWNSTREAM_CX_ACTIVE] >= worker->config->max_connections) {
    refuse(worker, fd, NA_COUNTER_DOWNSTREAM_CX_OVERFLOW);
    return;
  }
  bool plain = listener->kind == NA_LISTENER_PLAIN || listener->kind == NA_LISTENER_HBONE;
  if (!na_address_from_sockaddr(&peer, from) || destination_of(listener, fd, &peer, &to) < 0) {
    refuse(worker, fd, NA_COUNTER_DOWNSTREAM_CX_NO_DESTINATION);
    return;
  }
  if (!plain && aims_at_listener(listener, &to.address)) {
    refuse(worker, fd, NA_COUNTER_DOWNSTREAM_CX_LOOP);
    return;
  }
  if (listener->kind == NA_LISTENER_HBONE)
    na_hbone_accept(worker, listener->workload, fd, &peer, &to.address);
  else
    na_conn_accept(worker, listener->workload, listener->kind, fd, &peer, &to.address, to.drawn);
}

/* Out of descriptors: clients would hang in the backlog, and the edge would not come again. Close the spare descriptor
 * to accept and refuse one, then rest. */
static void out_of_descriptors(na_listener *listener) {
  na_worker *worker = listener->worker;
  na_worker_count(worker, NA_COUNTER_DOWNSTREAM_CX_NO_FD);
  close(worker->spare_fd);
  int fd = accept4(listener->watch.fd, NULL, NULL, SOCK_CLOEXEC);
  if (fd >= 0)
    close(fd);
  worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  na_timer_arm(&worker->loop.wheel, &listener->resume, worker->loop.now_ms + ACCEPT_PAUSE_MS);
}

/* Of the workers that share a socket and have nothing to do, always the same one would be woken: let it be another's
 * turn. Else one worker would get most of the connections that live long. */
static void let_others_accept(na_listener *listener) {
  na_worker *worker = listener->worker;
  if (worker->config->workers > 1 && na_loop_requeue(&worker->loop, &listener->watch) < 0)
    na_timer_arm(&worker->loop.wheel, &listener->resume, worker->loop.now_ms + ACCEPT_PAUSE_MS);
}

/* Accept what is there; whether more may be. */
static bool accept_batch(na_listener *listener) {
  na_watch *watch = &listener->watch;
  for (int i = 0; i < ACCEPT_BATCH; i++) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    int fd = accept4(watch->fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      accepted(listener, fd, &from);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      out_of_descriptors(listener);
      return false;
    } else if (errno == EAGAIN) {
      return false;
    } /* anything else concerns that one connection: accept(2), "Error handling" */
  }
  return true;
}

static void on_connection(na_watch *watch, uint32_t events) {
  na_listener *listener = na_container_of(watch, na_listener, watch);
  if (watch->fd < 0 || na_timer_armed(&listener->resume))
    return;
  if (accept_batch(listener))
    na_loop_again(&listener->worker->loop, watch);
  else if (!na_timer_armed(&listener->resume))
    let_others_accept(listener);
}

static void on_resume(na_timer *timer) {
  na_listener *listener = na_container_of(timer, na_listener, resume);
  na_loop_again(&listener->worker->loop, &listener->watch);
}

int na_listener_open(na_worker *worker, na_workload *workload, enum na_listener_kind kind, int fd) {
  na_address address;
  na_listener *listener = calloc(1, sizeof *listener);
  int error = listener ? local_address(fd, &address) : -ENOMEM;
  if (error)
    goto fail;
  int one = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* accepted sockets inherit it */
  listener->worker = worker;
  listener->kind = kind;
  listener->address = address;
  na_watch_init(&listener->watch, on_connection);
  na_timer_init(&listener->resume, on_resume);
  error = na_loop_watch_shared(&worker->loop, &listener->watch, fd);
  if (error)
    goto fail;
  listener->workload = na_workload_ref(workload);
  na_list_push_back(&worker->listeners, &listener->link);
  return 0;
fail:
  free(listener);
  close(fd);
  return error;
}

static void listener_free(na_grave *grave) {
  free(na_container_of(grave, na_listener, grave));
}

static void listener_close(na_listener *listener) {
  na_worker *worker = listener->worker;
  int fd = listener->watch.fd;
  na_loop_unwatch(&worker->loop, &listener->watch);
  close(fd);
  na_timer_disarm(&listener->resume);
  na_link_remove(&listener->link);
  na_workload_unref(listener->workload);
  na_loop_bury(&worker->loop, &listener->grave, listener_free);
}

void na_listeners_close(na_worker *worker, const na_workload *workload) {
  for (na_link *link = worker->listeners.next, *next; link != &worker->listeners; link = next) {
    next = link->next;
    na_listener *listener = na_container_of(link, na_listener, link);
    if (!workload || listener->workload == workload)
      listener_close(listener);
  }
}
