/* SPDX-License-Identifier: Apache-2.0 */
#include "dns_server.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dns_names.h"

/* linux/asm-generic/socket.h, Linux 5.14. */
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

/* Datagrams per event at most, so that a flood does not starve the others. */
#define BATCH 64

na_dns *na_dns_of(na_worker *worker) {
  if (!worker->dns && (worker->dns = calloc(1, sizeof *worker->dns))) {
    na_link_init(&worker->dns->listeners);
    na_link_init(&worker->dns->questions);
    na_link_init(&worker->dns->streams);
  }
  return worker->dns;
}

/* ---- answers ---- */

static size_t answer(na_worker *worker, const na_dns_match *match, const uint8_t *asked, const na_dns_query *query,
                     size_t room, uint8_t *out) {
  unsigned family = query->type == NA_DNS_AAAA;
  na_dns_name *name = match->name;
  bool truncated;
  na_dns_answer made = {.asked = asked,
                        .query = query,
                        .alias = match->alias,
                        .addresses = (const uint8_t(*)[16])name->addresses[family],
                        .n = name->n[family],
                        .ttl = NA_DNS_TTL};
  if (made.n)
    made.first = atomic_fetch_add_explicit(&name->turns[family], 1, memory_order_relaxed) % made.n;
  size_t n = na_dns_write_answer(&made, out, room, &truncated);
  na_worker_count(worker, NA_COUNTER_DNS_ANSWERED);
  if (truncated)
    na_worker_count(worker, NA_COUNTER_DNS_TRUNCATED);
  return n;
}

static size_t room_for(const na_dns_query *query, bool stream) {
  if (stream)
    return NA_DNS_MAX_MESSAGE;
  size_t room = query->payload;
  return room < NA_DNS_UDP_PLAIN ? NA_DNS_UDP_PLAIN : room > NA_DNS_UDP_MAX ? NA_DNS_UDP_MAX : room;
}

enum na_dns_verdict na_dns_decide(na_worker *worker, const na_workload *workload, const uint8_t *bytes, size_t n,
                                  bool stream, na_dns_query *query, uint8_t *out, size_t *out_n) {
  na_dns_match match;
  na_worker_count(worker, NA_COUNTER_DNS_REQUESTS);
  switch (na_dns_parse(bytes, n, query)) {
  case NA_DNS_NOTHING:
    na_worker_count(worker, NA_COUNTER_DNS_MALFORMED);
    return NA_DNS_IGNORE;
  case NA_DNS_MALFORMED:
    na_worker_count(worker, NA_COUNTER_DNS_MALFORMED);
    *out_n = na_dns_write_error(bytes, NULL, NA_DNS_FORMERR, out);
    return NA_DNS_REPLY;
  case NA_DNS_OTHER:
    return NA_DNS_FORWARD;
  case NA_DNS_QUESTION:
    break;
  }
  bool addresses = query->type == NA_DNS_A || query->type == NA_DNS_AAAA;
  if (!addresses || !na_dns_find(&worker->snapshot->dns->map, query->name, na_workload_text(&workload->search), &match))
    return NA_DNS_FORWARD;
  if (query->version > 0) /* RFC 6891, 6.1.3 */
    *out_n = na_dns_write_error(bytes, query, NA_DNS_BADVERS, out);
  else
    *out_n = answer(worker, &match, bytes, query, room_for(query, stream), out);
  return NA_DNS_REPLY;
}

/* ---- datagrams ---- */

void na_dns_send(const na_dns_listener *listener, const na_address *client, const uint8_t *bytes, size_t n) {
  struct sockaddr_storage storage;
  socklen_t size = na_address_to_sockaddr(client, &storage);
  (void)sendto(listener->watch.fd, bytes, n, MSG_DONTWAIT, (struct sockaddr *)&storage, size);
}

static void handle(na_dns_listener *listener, const na_address *client, const uint8_t *bytes, size_t n) {
  na_worker *worker = listener->worker;
  uint8_t *out = (uint8_t *)worker->scratch;
  na_dns_query query;
  na_address server;
  size_t out_n = 0;
  enum na_dns_verdict verdict = na_dns_decide(worker, listener->workload, bytes, n, false, &query, out, &out_n);
  if (verdict == NA_DNS_IGNORE)
    return;
  if (verdict == NA_DNS_FORWARD) {
    if (na_dns_asked(listener, client, &server)) {
      na_dns_forward(listener, client, &server, bytes, n, &query);
      return;
    }
    na_worker_count(worker, NA_COUNTER_DNS_NO_SERVER);
    out_n = na_dns_write_error(bytes, query.question_n ? &query : NULL, NA_DNS_REFUSED, out);
  }
  na_dns_send(listener, client, out, out_n);
}

/* Take what is there; whether more may be. */
static bool receive_batch(na_dns_listener *listener) {
  na_worker *worker = listener->worker;
  for (int i = 0; i < BATCH; i++) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    na_address client;
    ssize_t n = recvfrom(listener->watch.fd, worker->io, worker->io_size, MSG_TRUNC | MSG_DONTWAIT,
                         (struct sockaddr *)&from, &size);
    if (n < 0 && errno == EAGAIN)
      return false;
    if (n < 0 || !na_address_from_sockaddr(&client, &from))
      continue; /* an earlier answer did not arrive: ICMP */
    if ((size_t)n > worker->io_size)
      na_worker_count(worker, NA_COUNTER_DNS_MALFORMED);
    else
      handle(listener, &client, (const uint8_t *)worker->io, (size_t)n);
  }
  return true;
}

static void on_datagram(na_watch *watch, uint32_t events) {
  na_dns_listener *listener = na_container_of(watch, na_dns_listener, watch);
  if (watch->fd >= 0 && receive_batch(listener))
    na_loop_again(&listener->worker->loop, watch);
}

static int describe_socket(na_dns_listener *listener, int fd) {
  struct sockaddr_storage storage;
  socklen_t size = sizeof storage;
  if (getsockname(fd, (struct sockaddr *)&storage, &size) < 0)
    return -errno;
  if (!na_address_from_sockaddr(&listener->address, &storage))
    return -EAFNOSUPPORT;
  size = sizeof listener->cookie;
  if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &listener->cookie, &size) < 0)
    listener->cookie = 0;
  return 0;
}

int na_dns_listen(na_worker *worker, na_workload *workload, int fd) {
  na_dns_listener *listener = calloc(1, sizeof *listener);
  int error = listener && na_dns_of(worker) ? describe_socket(listener, fd) : -ENOMEM;
  if (error)
    goto fail;
  listener->worker = worker;
  listener->conntrack = -1;
  na_watch_init(&listener->watch, on_datagram);
  error = na_loop_watch_shared(&worker->loop, &listener->watch, fd);
  if (error)
    goto fail;
  listener->workload = na_workload_ref(workload);
  na_list_push_back(&worker->dns->listeners, &listener->link);
  return 0;
fail:
  free(listener);
  close(fd);
  return error;
}

/* ---- the end ---- */

static void listener_free(na_grave *grave) {
  free(na_container_of(grave, na_dns_listener, grave));
}

static void listener_close(na_dns_listener *listener) {
  na_worker *worker = listener->worker;
  int fd = listener->watch.fd;
  na_dns_questions_close(worker, listener);
  na_loop_unwatch(&worker->loop, &listener->watch);
  close(fd);
  if (listener->conntrack >= 0)
    close(listener->conntrack);
  na_link_remove(&listener->link);
  na_workload_unref(listener->workload);
  na_loop_bury(&worker->loop, &listener->grave, listener_free);
}

void na_dns_drain(na_worker *worker, const na_workload *workload) {
  na_link *all = worker->dns ? &worker->dns->listeners : NULL;
  for (na_link *link = all ? all->next : NULL, *next; link != all; link = next) {
    next = link->next;
    na_dns_listener *listener = na_container_of(link, na_dns_listener, link);
    if (!workload || listener->workload == workload)
      listener_close(listener);
  }
  if (worker->dns)
    na_dns_streams_close(worker, workload);
}

void na_dns_free(na_worker *worker) {
  na_dns_drain(worker, NULL);
  free(worker->dns);
  worker->dns = NULL;
}

void na_dns_note_answer(na_worker *worker, uint64_t started_us) {
  na_worker_count(worker, NA_COUNTER_DNS_UPSTREAM_ANSWERS);
  na_count_by(&worker->counters, NA_COUNTER_DNS_UPSTREAM_US, worker->loop.now_us - started_us);
}
