/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS over TCP (RFC 1035, 4.2.2; RFC 7766): messages with their length before them. A client's questions are seen to
 * one after the other; those for its name server go there over one connection, made when it is first needed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buffer.h"
#include "connect.h"
#include "dns_server.h"

#define LENGTH_BYTES 2
/* Steps per event at most, so that one client does not starve the others. */
#define BATCH 64

typedef struct na_dns_stream {
  union {
    na_watch watch; /* the client */
    na_grave grave;
  };
  na_link link;
  na_watch server;
  na_timer timer;
  na_worker *worker;
  na_workload *workload;
  na_address asked;
  bool has_server;
  bool waiting;  /* for the name server */
  bool transfer; /* what it answers is many messages (RFC 5936) */
  bool dead;
  na_buffer in, out;   /* of the client */
  na_buffer from, to;  /* of the name server */
  uint64_t started_us; /* of the question that waits */
  uint16_t client_id;  /* network order */
  na_dns_query query;  /* that waits */
  uint8_t sent[NA_DNS_HEADER + NA_DNS_QUESTION_MAX];
} na_dns_stream;

/* What a step has come to. */
enum step { MORE, BLOCKED, CLOSE };

/* ---- the end ---- */

static void stream_free(na_grave *grave) {
  free(na_container_of(grave, na_dns_stream, grave));
}

static void close_watch(na_worker *worker, na_watch *watch) {
  int fd = watch->fd;
  if (fd < 0)
    return;
  na_loop_unwatch(&worker->loop, watch);
  close(fd);
}

static void server_close(na_dns_stream *stream) {
  close_watch(stream->worker, &stream->server);
  na_buffer_free(&stream->from);
  na_buffer_free(&stream->to);
}

static void stream_close(na_dns_stream *stream) {
  na_worker *worker = stream->worker;
  if (stream->dead)
    return;
  stream->dead = true;
  server_close(stream);
  close_watch(worker, &stream->watch);
  na_buffer_free(&stream->in);
  na_buffer_free(&stream->out);
  na_timer_disarm(&stream->timer);
  na_link_remove(&stream->link);
  worker->dns->nstreams--;
  na_count_down(&worker->counters, NA_COUNTER_DNS_STREAMS_ACTIVE);
  na_workload_unref(stream->workload);
  na_loop_bury(&worker->loop, &stream->grave, stream_free);
}

void na_dns_streams_close(na_worker *worker, const na_workload *workload) {
  na_link *all = &worker->dns->streams;
  for (na_link *link = all->next, *next; link != all; link = next) {
    next = link->next;
    na_dns_stream *stream = na_container_of(link, na_dns_stream, link);
    if (!workload || stream->workload == workload)
      stream_close(stream);
  }
}

static void rest(na_dns_stream *stream) {
  const na_config *config = stream->worker->config;
  uint32_t patience = stream->waiting ? config->dns_timeout_ms : config->dns_idle_timeout_ms;
  na_timer_arm(&stream->worker->loop.wheel, &stream->timer, stream->worker->loop.now_ms + patience);
}

static void on_timeout(na_timer *timer) {
  na_dns_stream *stream = na_container_of(timer, na_dns_stream, timer);
  if (stream->waiting) {
    na_worker_count(stream->worker, NA_COUNTER_DNS_UPSTREAM_TIMEOUT);
    na_worker_count(stream->worker, NA_COUNTER_DNS_UPSTREAM_FAILURES);
  }
  stream_close(stream);
}

/* ---- bytes ---- */

static enum step receive(int fd, na_buffer *into, char *scratch, size_t size) {
  ssize_t n = recv(fd, scratch, size, MSG_DONTWAIT);
  if (n < 0)
    return errno == EAGAIN ? BLOCKED : CLOSE;
  return n == 0 || na_buffer_append(into, scratch, (size_t)n) ? CLOSE : MORE;
}

static enum step flush(int fd, na_buffer *from) {
  while (na_buffer_length(from)) {
    ssize_t n = send(fd, na_buffer_bytes(from), na_buffer_length(from), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
      return errno == EAGAIN || errno == ENOTCONN ? BLOCKED : CLOSE;
    na_buffer_consume(from, (size_t)n);
  }
  return MORE;
}

/* A whole message at the front of a buffer, or NULL. */
static uint8_t *message(const na_buffer *buffer, size_t *n) {
  uint8_t *bytes = (uint8_t *)na_buffer_bytes(buffer);
  size_t length = na_buffer_length(buffer);
  if (length < LENGTH_BYTES)
    return NULL;
  *n = na_dns_get16(bytes);
  return length - LENGTH_BYTES < *n ? NULL : bytes + LENGTH_BYTES;
}

static int append(na_buffer *buffer, const uint8_t *bytes, size_t n) {
  uint8_t length[LENGTH_BYTES];
  na_dns_put16(length, (uint16_t)n);
  int error = na_buffer_append(buffer, length, sizeof length);
  return error ? error : na_buffer_append(buffer, bytes, n);
}

static const na_dns_query *understood(const na_dns_stream *stream) {
  return stream->query.question_n ? &stream->query : NULL;
}

/* ---- the name server ---- */

static enum step give_up(na_dns_stream *stream) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  memcpy(stream->sent, &stream->client_id, sizeof stream->client_id);
  size_t n = na_dns_write_error(stream->sent, understood(stream), NA_DNS_SERVFAIL, out);
  na_worker_count(stream->worker, NA_COUNTER_DNS_UPSTREAM_FAILURES);
  server_close(stream);
  stream->waiting = false;
  if (stream->transfer) /* the client has a part of it */
    return CLOSE;
  return append(&stream->out, out, n) ? CLOSE : MORE;
}

static int server_open(na_dns_stream *stream) {
  if (stream->server.fd >= 0)
    return 0;
  int fd = na_connect(stream->worker, stream->workload, &stream->asked, NULL);
  if (fd < 0)
    return fd;
  int error = na_loop_watch(&stream->worker->loop, &stream->server, fd, EPOLLOUT);
  if (error)
    close(fd);
  return error;
}

/* Send a question on. The bytes are the client's, but for the id. */
static enum step ask(na_dns_stream *stream, uint8_t *bytes, size_t n) {
  memcpy(&stream->client_id, bytes, sizeof stream->client_id);
  na_worker_count(stream->worker, NA_COUNTER_DNS_UPSTREAM_REQUESTS);
  int error = getrandom(bytes, 2, GRND_NONBLOCK) == 2 ? 0 : -EAGAIN;
  memcpy(stream->sent, bytes, NA_DNS_HEADER + (size_t)stream->query.question_n);
  stream->started_us = stream->worker->loop.now_us;
  stream->waiting = true;
  stream->transfer = stream->query.type == NA_DNS_AXFR || stream->query.type == NA_DNS_IXFR;
  if (!error)
    error = server_open(stream);
  if (!error)
    error = append(&stream->to, bytes, n);
  if (error)
    return give_up(stream);
  rest(stream);
  return MORE;
}

/* Hand one response on. */
static enum step relay(na_dns_stream *stream) {
  size_t n;
  uint8_t *bytes = message(&stream->from, &n);
  if (!bytes)
    return BLOCKED;
  /* Of a transfer only the first message need have the question (RFC 5936, 2.2.1). */
  size_t question_n = stream->transfer ? 0 : stream->query.question_n;
  enum step step = MORE;
  if (na_dns_is_response(bytes, n, stream->sent, question_n)) {
    memcpy(bytes, &stream->client_id, sizeof stream->client_id);
    step = append(&stream->out, bytes, n) ? CLOSE : MORE;
    if (!stream->transfer)
      na_dns_note_answer(stream->worker, stream->started_us);
    stream->waiting = stream->transfer;
    rest(stream);
  } else {
    na_worker_count(stream->worker, NA_COUNTER_DNS_STRAY);
  }
  na_buffer_consume(&stream->from, LENGTH_BYTES + n);
  return step;
}

static enum step listen_to_server(na_dns_stream *stream) {
  na_worker *worker = stream->worker;
  enum step step = flush(stream->server.fd, &stream->to);
  if (step == CLOSE)
    return give_up(stream);
  step = relay(stream);
  if (step != BLOCKED)
    return step;
  step = receive(stream->server.fd, &stream->from, worker->scratch, worker->scratch_size);
  if (step == CLOSE && stream->transfer && !na_buffer_length(&stream->from))
    return CLOSE; /* all of it is there */
  return step == CLOSE ? give_up(stream) : step;
}

/* ---- the client ---- */

static enum step handle(na_dns_stream *stream, uint8_t *bytes, size_t n) {
  na_worker *worker = stream->worker;
  uint8_t *out = (uint8_t *)worker->scratch;
  size_t out_n = 0;
  switch (na_dns_decide(worker, stream->workload, bytes, n, true, &stream->query, out, &out_n)) {
  case NA_DNS_IGNORE:
    return CLOSE;
  case NA_DNS_REPLY:
    break;
  case NA_DNS_FORWARD:
    if (stream->has_server)
      return ask(stream, bytes, n);
    na_worker_count(worker, NA_COUNTER_DNS_NO_SERVER);
    out_n = na_dns_write_error(bytes, understood(stream), NA_DNS_REFUSED, out);
  }
  return append(&stream->out, out, out_n) ? CLOSE : MORE;
}

static enum step listen_to_client(na_dns_stream *stream) {
  size_t n;
  uint8_t *bytes = message(&stream->in, &n);
  if (!bytes)
    return receive(stream->watch.fd, &stream->in, stream->worker->io, stream->worker->io_size);
  enum step step = handle(stream, bytes, n);
  na_buffer_consume(&stream->in, LENGTH_BYTES + n);
  if (step == MORE && !stream->waiting)
    rest(stream);
  return step;
}

static enum step advance(na_dns_stream *stream) {
  enum step step = flush(stream->watch.fd, &stream->out);
  if (step != MORE)
    return step;
  return stream->waiting ? listen_to_server(stream) : listen_to_client(stream);
}

static void run(na_dns_stream *stream) {
  for (int i = 0; i < BATCH && !stream->dead; i++) {
    enum step step = advance(stream);
    if (step == BLOCKED)
      return;
    if (step == CLOSE)
      stream_close(stream);
  }
  if (!stream->dead)
    na_loop_again(&stream->worker->loop, &stream->watch);
}

static void on_client(na_watch *watch, uint32_t events) {
  na_dns_stream *stream = na_container_of(watch, na_dns_stream, watch);
  if (watch->fd < 0)
    return;
  if (events & (EPOLLERR | EPOLLHUP))
    stream_close(stream);
  else
    run(stream);
}

static void on_server(na_watch *watch, uint32_t events) {
  if (watch->fd >= 0)
    run(na_container_of(watch, na_dns_stream, server));
}

static na_dns_stream *stream_new(na_worker *worker, na_workload *workload, const na_address *asked) {
  na_dns_stream *stream = calloc(1, sizeof *stream);
  if (!stream)
    return NULL;
  stream->worker = worker;
  stream->workload = na_workload_ref(workload);
  stream->has_server = asked != NULL;
  if (asked)
    stream->asked = *asked;
  na_watch_init(&stream->watch, on_client);
  na_watch_init(&stream->server, on_server);
  stream->watch.fd = stream->server.fd = -1;
  na_timer_init(&stream->timer, on_timeout);
  na_list_push_back(&worker->dns->streams, &stream->link);
  worker->dns->nstreams++;
  na_worker_count(worker, NA_COUNTER_DNS_STREAMS_ACTIVE);
  return stream;
}

static bool is_full(const na_worker *worker, const na_workload *workload) {
  const na_link *all = &worker->dns->streams;
  uint32_t own = 0;
  for (const na_link *link = all->next; link != all; link = link->next)
    own += na_container_of(link, na_dns_stream, link)->workload == workload;
  return worker->dns->nstreams >= worker->config->dns_max_streams || own >= worker->config->dns_workload_streams;
}

void na_dns_accept(na_worker *worker, na_workload *workload, int fd, const na_address *asked) {
  na_dns_stream *stream = NULL;
  if (na_dns_of(worker) && is_full(worker, workload))
    na_worker_count(worker, NA_COUNTER_DNS_OVERFLOW);
  else if (worker->dns)
    stream = stream_new(worker, workload, asked);
  if (!stream) {
    close(fd);
    return;
  }
  if (na_loop_watch(&worker->loop, &stream->watch, fd, EPOLLOUT)) {
    close(fd);
    stream_close(stream);
    return;
  }
  rest(stream);
  na_loop_again(&worker->loop, &stream->watch); /* the question may be there already */
}
