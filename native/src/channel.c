/* SPDX-License-Identifier: Apache-2.0 */
#include "channel.h"

#include <errno.h>
#include <stdlib.h>

#include "connect.h"
#include "hbone.h"

na_callouts *na_callouts_of(na_worker *worker) {
  if (!worker->callouts && (worker->callouts = calloc(1, sizeof *worker->callouts)))
    na_link_init(&worker->callouts->channels);
  return worker->callouts;
}

/* ---- the end ---- */

static void channel_free(na_grave *grave) {
  na_channel *channel = na_container_of(grave, na_channel, grave);
  channel->kind->free(channel);
}

void na_channel_close(na_channel *channel, int error) {
  if (channel->dead)
    return;
  na_worker *worker = channel->worker;
  channel->dead = true;
  na_link_remove(&channel->link);
  worker->callouts->nchannels--;
  na_timer_disarm(&channel->timer);
  channel->kind->failed(channel, error);
  na_stream_close(&channel->io, false);
  na_cluster_unref(channel->cluster);
  na_workload_unref(channel->workload);
  na_loop_bury(&worker->loop, &channel->grave, channel_free);
}

static void close_channels(na_worker *worker, const na_workload *workload, bool used) {
  na_link *all = worker->callouts ? &worker->callouts->channels : NULL;
  for (na_link *link = all ? all->next : NULL, *next; link != all; link = next) {
    next = link->next;
    na_channel *channel = na_container_of(link, na_channel, link);
    if ((!workload || channel->workload == workload) && (used || !channel->kind->in_use(channel)))
      na_channel_close(channel, -ECANCELED);
  }
}

void na_channels_drain(na_worker *worker, const na_workload *workload) {
  close_channels(worker, workload, false);
}

void na_callouts_free(na_worker *worker) {
  close_channels(worker, NULL, true);
  free(worker->callouts);
  worker->callouts = NULL;
}

/* ---- events ---- */

static void on_idle(na_timer *timer) {
  na_channel *channel = na_container_of(timer, na_channel, timer);
  if (!channel->kind->in_use(channel))
    na_channel_close(channel, 0);
}

void na_channel_rest(na_channel *channel) {
  na_loop *loop = &channel->worker->loop;
  if (channel->worker->stopping || atomic_load_explicit(&channel->workload->removed, memory_order_relaxed)) {
    na_channel_close(channel, 0);
    return;
  }
  na_timer_arm(&loop->wheel, &channel->timer, loop->now_ms + NA_CHANNEL_IDLE_MS);
}

static void on_connecting(na_channel *channel, uint32_t events) {
  int error = events ? channel->io.transport->connected(&channel->io) : -EINPROGRESS;
  if (error == -EINPROGRESS)
    return;
  if (error) {
    na_channel_close(channel, error);
    return;
  }
  channel->io.connecting = false;
  channel->kind->connected(channel);
}

static void on_event(na_watch *watch, uint32_t events) {
  na_channel *channel = na_container_of(na_stream_of(watch), na_channel, io);
  if (channel->dead)
    return;
  int error = na_stream_events(&channel->io, events);
  if (channel->io.connecting)
    on_connecting(channel, events);
  else if (error && !channel->io.readable)
    na_channel_close(channel, error);
  else
    channel->kind->ready(channel); /* also after an error: an answer may have come before it */
}

/* ---- the beginning ---- */

static uint64_t via_of(const na_host *host) {
  return host->via ? host->via->hash : 0;
}

static int connect_channel(na_channel *channel, const na_channel_target *target) {
  if (target->host->via) {
    const na_hbone_dial dial = {.worker = target->worker,
                                .workload = target->workload,
                                .via = target->host->via,
                                .remote = &channel->remote,
                                .client = target->client};
    return na_hbone_connect(&channel->io, &dial);
  }
  int fd = na_connect(target->worker, target->workload, &channel->remote, NULL);
  return fd < 0 ? fd : na_stream_connect(&channel->io, fd, &na_transport_tcp);
}

int na_channel_open(na_channel *channel, const na_channel_kind *kind, const na_channel_target *target) {
  na_callouts *callouts = na_callouts_of(target->worker);
  if (!callouts)
    return -ENOMEM;
  if (callouts->nchannels >= target->worker->config->callout_max_channels) {
    na_worker_count(target->worker, NA_COUNTER_CALLOUT_CHANNEL_OVERFLOW);
    return -EBUSY;
  }
  channel->kind = kind;
  channel->worker = target->worker;
  memcpy(channel->remote.ip, target->host->endpoint.address, sizeof channel->remote.ip);
  channel->remote.port = target->host->endpoint.port;
  channel->via = via_of(target->host);
  na_timer_init(&channel->timer, on_idle);
  na_stream_init(&channel->io, &target->worker->loop, on_event, channel);
  int error = connect_channel(channel, target);
  if (error)
    return error;
  channel->workload = na_workload_ref(target->workload);
  channel->cluster = na_cluster_ref(target->cluster);
  na_list_push_front(&callouts->channels, &channel->link);
  callouts->nchannels++;
  return 0;
}

static bool leads_to(const na_channel *channel, const na_channel_target *target) {
  const na_endpoint *endpoint = &target->host->endpoint;
  return channel->workload == target->workload && channel->cluster->state == target->cluster->state &&
         channel->via == via_of(target->host) && channel->remote.port == endpoint->port &&
         memcmp(channel->remote.ip, endpoint->address, sizeof channel->remote.ip) == 0;
}

static bool is_alive(const na_channel *channel) {
  const na_stream *io = &channel->io;
  return io->connecting || (!io->peer_closing && !io->broken && !io->eof && na_hbone_is_current(io));
}

na_channel *na_channel_find(const na_channel_target *target, const na_channel_kind *kind,
                            bool (*fits)(const na_channel *channel)) {
  na_link *all = target->worker->callouts ? &target->worker->callouts->channels : NULL;
  for (na_link *link = all ? all->next : NULL; link != all; link = link->next) {
    na_channel *channel = na_container_of(link, na_channel, link);
    if (channel->kind == kind && leads_to(channel, target) && is_alive(channel) && fits(channel)) {
      na_timer_disarm(&channel->timer);
      return channel;
    }
  }
  return NULL;
}
