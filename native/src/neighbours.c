/* SPDX-License-Identifier: Apache-2.0 */
#include "neighbours.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "connect.h"
#include "principals.h"
#include "spiffe.h"

/* Ports tried before a tunnel is used. */
#define PORT_TRIES 4

typedef struct introduction introduction;

/* One end of an introduced connection. */
typedef struct party {
  introduction *of;
  char *name; /* of the identity */
  const char *uri;
  uint32_t principal;
  char *baggage;
} party;

/* Immutable once it is in the table, but for who waits and what became of it. Held by the table until it is taken,
 * and by the streams of both ends, whose state is the other party. */
struct introduction {
  atomic_uint refs;
  atomic_bool taken;
  atomic_bool refused;
  na_worker *worker;  /* that dials */
  na_stream *dialler; /* its stream */
  na_link unmet;      /* in worker->unmet: the dialling worker's alone; while the stream is connecting */
  na_address ends[2]; /* the table's key: where from and where to */
  na_neighbours *neighbours;
  uint32_t target; /* the workload that may take it */
  party from;
  party to;
};

_Static_assert(sizeof(na_address[2]) == 36, "padding in a key would be compared");

/* ---- introductions ---- */

static void introduction_ref(void *value) {
  atomic_fetch_add_explicit(&((introduction *)value)->refs, 1, memory_order_relaxed);
}

static void party_clear(party *who) {
  free(who->name);
  free(who->baggage);
}

static void introduction_unref(void *value) {
  introduction *i = value;
  if (atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) > 1)
    return;
  party_clear(&i->from);
  party_clear(&i->to);
  free(i);
}

static const na_map_ops introduction_ops = {introduction_ref, introduction_unref};

/* Who cannot be named is not introduced. */
static bool describe(introduction *i, party *who, na_worker *worker, const na_identity *identity, const char *baggage) {
  who->of = i;
  who->principal = na_principals_intern(worker->principals, identity->uri);
  who->uri = na_principals_text(worker->principals, who->principal);
  who->name = strdup(identity->name);
  who->baggage = strdup(baggage);
  return who->name && who->baggage && who->principal;
}

/* Put it into the table, for the target alone. */
static int introduce(introduction *i) {
  na_neighbours *neighbours = i->neighbours;
  int rc = -ENOBUFS;
  pthread_mutex_lock(&neighbours->lock);
  if (neighbours->introductions.count < NA_MAX_INTRODUCTIONS) {
    introduction_ref(i);
    rc = na_map_put(&neighbours->introductions, i->ends, sizeof i->ends, i);
  }
  pthread_mutex_unlock(&neighbours->lock);
  return rc;
}

/* Take it back, unless it was taken. Another one may have come to the same place since then. */
static void withdraw(introduction *i) {
  na_neighbours *neighbours = i->neighbours;
  pthread_mutex_lock(&neighbours->lock);
  if (na_map_find(&neighbours->introductions, i->ends, sizeof i->ends) == i)
    na_map_remove(&neighbours->introductions, i->ends, sizeof i->ends);
  pthread_mutex_unlock(&neighbours->lock);
}

/* ---- that it was taken ---- */

/* The dialling side may go on. */
static void tell_dialler(introduction *i) {
  na_link_remove(&i->unmet);
  na_loop_tell(&i->worker->loop, &i->dialler->watch, EPOLLOUT);
}

void na_neighbours_tell(na_worker *worker) {
  for (na_link *link = worker->unmet.next, *next; link != &worker->unmet; link = next) {
    introduction *i = na_container_of(link, introduction, unmet);
    next = link->next;
    if (atomic_load_explicit(&i->taken, memory_order_acquire))
      tell_dialler(i);
  }
}

/* By the worker that accepts. */
static void note_taken(introduction *i, const na_worker *worker) {
  atomic_store_explicit(&i->taken, true, memory_order_release);
  if (i->worker != worker)
    na_worker_wake(i->worker);
  else if (na_link_in_list(&i->unmet))
    tell_dialler(i);
}

/* Take it out of the table; the caller's reference, or NULL. */
static introduction *take(na_neighbours *neighbours, uint32_t target, const na_address ends[2]) {
  introduction *i = NULL;
  pthread_mutex_lock(&neighbours->lock);
  if (neighbours->introductions.count)
    i = na_map_find(&neighbours->introductions, ends, sizeof i->ends);
  if (i && i->target == target) {
    introduction_ref(i);
    na_map_remove(&neighbours->introductions, ends, sizeof i->ends);
  } else {
    i = NULL;
  }
  pthread_mutex_unlock(&neighbours->lock);
  return i;
}

/* ---- workloads ---- */

static void workload_ref(void *value) {
  na_workload_ref(value);
}

static void workload_unref(void *value) {
  na_workload_unref(value);
}

static const na_map_ops workload_ops = {workload_ref, workload_unref};

void na_neighbours_init(na_neighbours *neighbours) {
  pthread_mutex_init(&neighbours->lock, NULL);
  na_map_init(&neighbours->workloads, &workload_ops);
  na_map_init(&neighbours->introductions, &introduction_ops);
}

void na_neighbours_free(na_neighbours *neighbours) {
  assert(neighbours->introductions.count == 0);
  na_map_clear(&neighbours->workloads);
  na_map_clear(&neighbours->introductions);
  pthread_mutex_destroy(&neighbours->lock);
}

int na_neighbours_add(na_neighbours *neighbours, na_workload *workload) {
  int rc = 0;
  pthread_mutex_lock(&neighbours->lock);
  for (uint32_t i = 0; i < workload->naddresses && rc == 0; i++) {
    if (na_ip_is_loopback(workload->addresses[i]) || na_ip_is_link_local(workload->addresses[i]))
      continue;
    na_workload_ref(workload);
    rc = na_map_put(&neighbours->workloads, workload->addresses[i], 16, workload);
  }
  pthread_mutex_unlock(&neighbours->lock);
  return rc;
}

void na_neighbours_remove(na_neighbours *neighbours, const na_workload *workload) {
  pthread_mutex_lock(&neighbours->lock);
  for (uint32_t i = 0; i < workload->naddresses; i++)
    if (na_map_find(&neighbours->workloads, workload->addresses[i], 16) == workload)
      na_map_remove(&neighbours->workloads, workload->addresses[i], 16);
  pthread_mutex_unlock(&neighbours->lock);
}

/* The workload at an address, with a reference; or NULL. */
static na_workload *workload_at(na_neighbours *neighbours, const uint8_t ip[16]) {
  pthread_mutex_lock(&neighbours->lock);
  na_workload *workload = na_map_find(&neighbours->workloads, ip, 16);
  if (workload)
    na_workload_ref(workload);
  pthread_mutex_unlock(&neighbours->lock);
  return workload;
}

/* ---- who may be met ---- */

static const na_identity *valid_identity(const na_worker *worker, const char *name) {
  const na_identity *identity = na_snapshot_identity(worker->snapshot, name);
  return identity && !na_identity_expired(identity, time(NULL)) ? identity : NULL;
}

/* As the handshake of a tunnel would have it, both ways. */
static bool may_meet(const na_identity *own, const na_identity *other, const char *expected) {
  na_spiffe id;
  return na_spiffe_in(other->uri, strlen(other->uri), expected) && na_spiffe_parse(own->uri, strlen(own->uri), &id) &&
         na_identity_trusts(other, id.trust_domain);
}

/* Whether its application hears of connections by PROXY headers, which are for tunnels. */
static bool is_told_by_header(const na_worker *worker, const na_workload *target) {
  const na_inbound *in_force = na_snapshot_inbound(worker->snapshot, target->id);
  return in_force && in_force->config.tunnel != NA_APPLICATION_TUNNEL_NONE;
}

/* ---- the transport: TCP, with somebody at the other end ---- */

/* Not before the introduction was taken: an address that leads elsewhere gets no byte. */
static int connected(na_stream *stream) {
  introduction *i = ((party *)stream->state)->of;
  int error = na_transport_tcp.connected(stream);
  if (error)
    return atomic_load_explicit(&i->refused, memory_order_acquire) ? -EKEYREJECTED : error;
  if (!atomic_load_explicit(&i->taken, memory_order_acquire))
    return stream->peer_closing ? -ECONNRESET : -EINPROGRESS;
  na_link_remove(&i->unmet);
  return 0;
}

static const char *failure(const na_stream *stream) {
  const introduction *i = ((const party *)stream->state)->of;
  return atomic_load_explicit(&i->refused, memory_order_acquire) ? "refused by the policy of its workload" : NULL;
}

static ssize_t receive(na_stream *stream, void *buffer, size_t size) {
  return na_transport_tcp.recv(stream, buffer, size);
}

static ssize_t transmit(na_stream *stream, const struct iovec *iov, int n) {
  return na_transport_tcp.send(stream, iov, n);
}

static int end_ours(na_stream *stream) {
  return na_transport_tcp.shutdown(stream);
}

static void take_leave(na_stream *stream, bool reset) {
  party *other = stream->state;
  introduction *i = other->of;
  if (other == &i->to)
    na_link_remove(&i->unmet);
  stream->state = NULL;
  withdraw(i);
  introduction_unref(i);
}

static const na_transport transport = {.name = "neighbour",
                                       .connected = connected,
                                       .recv = receive,
                                       .send = transmit,
                                       .shutdown = end_ours,
                                       .close = take_leave,
                                       .failure = failure,
                                       .raw = true};

/* ---- dialling ---- */

/* An address of the workload of the remote's family; any port. */
static bool choose_source(const na_workload *workload, const na_address *remote, na_address *out) {
  for (uint32_t i = 0; i < workload->naddresses; i++) {
    const uint8_t *ip = workload->addresses[i];
    if (na_ip_is_v4(ip) != na_ip_is_v4(remote->ip) || na_ip_is_loopback(ip) || na_ip_is_link_local(ip))
      continue;
    memcpy(out->ip, ip, sizeof out->ip);
    out->port = 0;
    return true;
  }
  return false;
}

/* A socket that is on its way, introduced; -errno. The kernel may have given a port that leads there already. */
static int open_introduced(const na_hbone_dial *dial, introduction *i) {
  int fd = na_connect_bind(dial->worker, dial->workload, &i->ends[0]);
  if (fd < 0)
    return fd;
  int error = introduce(i);
  if (!error)
    error = na_connect_begin(fd, dial->remote);
  if (!error)
    return fd;
  withdraw(i);
  close(fd);
  return error;
}

static int open_stream(na_stream *stream, const na_hbone_dial *dial, introduction *i) {
  na_address source;
  int fd = choose_source(dial->workload, dial->remote, &source) ? -EADDRNOTAVAIL : -ENOENT;
  for (int try = 0; try < PORT_TRIES && fd == -EADDRNOTAVAIL; try++) {
    i->ends[0] = source;
    fd = open_introduced(dial, i);
  }
  if (fd < 0)
    return fd;
  int error = na_stream_connect(stream, fd, &transport);
  if (error) {
    withdraw(i);
    return error;
  }
  stream->state = &i->to;
  i->dialler = stream;
  na_list_push_back(&dial->worker->unmet, &i->unmet);
  return 0;
}

/* Connect to the workload if the two may meet. */
static int connect_to(na_stream *stream, const na_hbone_dial *dial, const na_workload *target) {
  na_worker *worker = dial->worker;
  const na_workload *source = dial->workload;
  const na_identity *own = valid_identity(worker, na_workload_text(&source->identity));
  const na_identity *other = valid_identity(worker, na_workload_text(&target->identity));
  if (!own || !other || !may_meet(own, other, dial->via->identities) || is_told_by_header(worker, target))
    return -ENOENT;
  introduction *i = calloc(1, sizeof *i);
  if (!i)
    return -ENOMEM;
  atomic_init(&i->refs, 1);
  i->neighbours = worker->neighbours;
  i->worker = worker;
  na_link_init(&i->unmet);
  i->target = target->id;
  i->ends[1] = *dial->remote;
  bool described = describe(i, &i->from, worker, own, na_workload_text(&source->baggage)) &&
                   describe(i, &i->to, worker, other, na_workload_text(&target->baggage));
  int error = described ? open_stream(stream, dial, i) : -ENOMEM;
  if (error)
    introduction_unref(i);
  return error;
}

int na_neighbours_connect(na_stream *stream, const na_hbone_dial *dial) {
  na_worker *worker = dial->worker;
  if (!worker->neighbours || !na_ip_is_any(dial->via->address))
    return -ENOENT;
  na_workload *target = workload_at(worker->neighbours, dial->remote->ip);
  if (!target)
    return -ENOENT;
  /* To itself it is not captured: nobody would be asked. */
  int error = target == dial->workload ? -ENOENT : connect_to(stream, dial, target);
  na_workload_unref(target);
  if (error == -ENOBUFS)
    na_worker_count(worker, NA_COUNTER_NEIGHBOUR_OVERFLOW);
  if (!error)
    na_worker_count(worker, NA_COUNTER_NEIGHBOUR_CX);
  return error ? -ENOENT : 0;
}

void na_neighbours_accept(na_worker *worker, const na_workload *workload, na_stream *stream, const na_address *peer,
                          const na_address *local) {
  const na_address ends[2] = {*peer, *local};
  assert(stream->transport == &na_transport_tcp && !stream->state);
  introduction *i = worker->neighbours ? take(worker->neighbours, workload->id, ends) : NULL;
  if (!i)
    return;
  stream->transport = &transport;
  stream->state = &i->from;
  note_taken(i, worker);
  na_worker_count(worker, NA_COUNTER_NEIGHBOUR_ACCEPTED);
}

void na_neighbours_refuse(const na_stream *stream) {
  if (stream->transport == &transport)
    atomic_store_explicit(&((const party *)stream->state)->of->refused, true, memory_order_release);
}

/* ---- who it is ---- */

bool na_neighbours_peer(const na_stream *stream, na_peer *out) {
  if (stream->transport != &transport)
    return false;
  const party *peer = stream->state;
  *out = (na_peer){
      .principal = peer->principal, .uri = peer->uri, .baggage = peer->baggage, .traceparent = "", .forwarded = ""};
  return true;
}

static bool is_valid(const na_worker *worker, const party *who) {
  const na_identity *identity = valid_identity(worker, who->name);
  return identity && strcmp(identity->uri, who->uri) == 0;
}

bool na_neighbours_are_current(const na_stream *stream) {
  if (stream->transport != &transport)
    return true;
  const na_worker *worker = na_container_of(stream->loop, na_worker, loop);
  const introduction *i = ((const party *)stream->state)->of;
  return is_valid(worker, &i->from) && is_valid(worker, &i->to);
}
