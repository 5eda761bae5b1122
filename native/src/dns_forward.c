/* SPDX-License-Identifier: Apache-2.0
 *
 * Questions to name servers, by datagrams. Each has a socket of its own, whose port the kernel draws, and a random id:
 * who cannot see the question cannot answer it (RFC 5452).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dns_server.h"

/* Responses that are not to the question, until it is given up. */
#define MAX_STRAYS 16

typedef struct na_dns_question {
  union {
    na_watch watch;
    na_grave grave;
  };
  na_link link;
  na_timer timer;
  na_dns_listener *listener; /* outlives its questions */
  na_address client;
  uint64_t started_us;
  uint32_t strays;
  uint16_t client_id; /* network order */
  uint16_t question_n;
  na_dns_query query;
  uint8_t sent[NA_DNS_HEADER + NA_DNS_QUESTION_MAX]; /* header with our id, and the question */
} na_dns_question;

static void question_free(na_grave *grave) {
  free(na_container_of(grave, na_dns_question, grave));
}

static void question_close(na_dns_question *question) {
  na_worker *worker = question->listener->worker;
  int fd = question->watch.fd;
  if (fd >= 0) {
    na_loop_unwatch(&worker->loop, &question->watch);
    close(fd);
  }
  na_timer_disarm(&question->timer);
  na_link_remove(&question->link);
  worker->dns->nquestions--;
  question->listener->nquestions--;
  na_count_down(&worker->counters, NA_COUNTER_DNS_ACTIVE);
  na_loop_bury(&worker->loop, &question->grave, question_free);
}

void na_dns_questions_close(na_worker *worker, const na_dns_listener *listener) {
  na_link *all = &worker->dns->questions;
  for (na_link *link = all->next, *next; link != all; link = next) {
    next = link->next;
    na_dns_question *question = na_container_of(link, na_dns_question, link);
    if (question->listener == listener)
      question_close(question);
  }
}

/* The name server cannot be asked: the client shall ask another one. */
static void question_fail(na_dns_question *question) {
  na_worker *worker = question->listener->worker;
  uint8_t out[NA_DNS_UDP_PLAIN];
  memcpy(question->sent, &question->client_id, sizeof question->client_id);
  size_t n = na_dns_write_error(question->sent, question->question_n ? &question->query : NULL, NA_DNS_SERVFAIL, out);
  na_worker_count(worker, NA_COUNTER_DNS_UPSTREAM_FAILURES);
  na_dns_send(question->listener, &question->client, out, n);
  question_close(question);
}

/* As without us, the client has heard nothing for as long, and asks again. */
static void on_timeout(na_timer *timer) {
  na_dns_question *question = na_container_of(timer, na_dns_question, timer);
  na_worker_count(question->listener->worker, NA_COUNTER_DNS_UPSTREAM_TIMEOUT);
  na_worker_count(question->listener->worker, NA_COUNTER_DNS_UPSTREAM_FAILURES);
  question_close(question);
}

static void deliver(na_dns_question *question, uint8_t *bytes, size_t n) {
  na_dns_note_answer(question->listener->worker, question->started_us);
  memcpy(bytes, &question->client_id, sizeof question->client_id);
  na_dns_send(question->listener, &question->client, bytes, n);
  question_close(question);
}

static void on_response(na_watch *watch, uint32_t events) {
  na_dns_question *question = na_container_of(watch, na_dns_question, watch);
  na_worker *worker = question->listener->worker;
  uint8_t *bytes = (uint8_t *)worker->scratch;
  while (watch->fd >= 0) {
    ssize_t n = recv(watch->fd, bytes, worker->scratch_size, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
      return;
    if (n < 0) { /* ECONNREFUSED and the like, by ICMP */
      question_fail(question);
      return;
    }
    if (na_dns_is_response(bytes, (size_t)n, question->sent, question->question_n)) {
      deliver(question, bytes, (size_t)n);
      return;
    }
    na_worker_count(worker, NA_COUNTER_DNS_STRAY);
    if (++question->strays > MAX_STRAYS) {
      question_fail(question);
      return;
    }
  }
}

static na_dns_question *question_new(na_dns_listener *listener, const na_address *client, const uint8_t *bytes,
                                     const na_dns_query *query) {
  na_worker *worker = listener->worker;
  na_dns_question *question = calloc(1, sizeof *question);
  if (!question)
    return NULL;
  question->listener = listener;
  question->client = *client;
  question->query = *query;
  question->question_n = query->question_n;
  question->started_us = worker->loop.now_us;
  memcpy(&question->client_id, bytes, sizeof question->client_id);
  memcpy(question->sent, bytes, NA_DNS_HEADER + (size_t)query->question_n);
  na_watch_init(&question->watch, on_response);
  question->watch.fd = -1;
  na_timer_init(&question->timer, on_timeout);
  na_list_push_back(&worker->dns->questions, &question->link);
  worker->dns->nquestions++;
  listener->nquestions++;
  na_worker_count(worker, NA_COUNTER_DNS_ACTIVE);
  return question;
}

/* Open the socket and send. The bytes are the client's, but for the id. */
static int ask(na_dns_question *question, const na_address *server, const uint8_t *bytes, size_t n) {
  na_worker *worker = question->listener->worker;
  uint8_t *copy = (uint8_t *)worker->scratch;
  struct sockaddr_storage storage;
  socklen_t size = na_address_to_sockaddr(server, &storage);
  if (n > worker->scratch_size)
    return -EMSGSIZE;
  if (getrandom(question->sent, 2, GRND_NONBLOCK) != 2)
    return -EAGAIN;
  memcpy(copy, bytes, n);
  memcpy(copy, question->sent, 2);
  int fd = na_netns_open(&question->listener->workload->netns, &worker->home, storage.ss_family, SOCK_DGRAM, 0);
  if (fd < 0)
    return fd;
  int error = connect(fd, (struct sockaddr *)&storage, size) < 0 ? -errno : 0;
  if (!error)
    error = na_loop_watch(&worker->loop, &question->watch, fd, 0);
  if (error) {
    close(fd);
    return error;
  }
  return send(fd, copy, n, MSG_DONTWAIT) < 0 ? -errno : 0;
}

void na_dns_forward(na_dns_listener *listener, const na_address *client, const na_address *server, const uint8_t *bytes,
                    size_t n, const na_dns_query *query) {
  na_worker *worker = listener->worker;
  na_dns_question *question = NULL;
  if (worker->dns->nquestions >= worker->config->dns_max_questions ||
      listener->nquestions >= worker->config->dns_socket_questions)
    na_worker_count(worker, NA_COUNTER_DNS_OVERFLOW);
  else
    question = question_new(listener, client, bytes, query);
  if (!question) {
    uint8_t out[NA_DNS_UDP_PLAIN];
    size_t out_n = na_dns_write_error(bytes, query->question_n ? query : NULL, NA_DNS_SERVFAIL, out);
    na_dns_send(listener, client, out, out_n);
    return;
  }
  na_worker_count(worker, NA_COUNTER_DNS_UPSTREAM_REQUESTS);
  if (ask(question, server, bytes, n))
    question_fail(question);
  else
    na_timer_arm(&worker->loop.wheel, &question->timer, worker->loop.now_ms + worker->config->dns_timeout_ms);
}
