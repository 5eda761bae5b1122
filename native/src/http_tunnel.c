/* SPDX-License-Identifier: Apache-2.0 */
#include "http_tunnel.h"

#include <stdlib.h>

#include "http_upstream.h"
#include "relay.h"

struct na_tunnel {
  na_relay relay;
  na_http_request *request;
  na_grave grave;
};

static void on_end(na_relay *relay, enum na_relay_end how, int broken_side) {
  na_http_request *request = na_container_of(relay, na_tunnel, relay)->request;
  if (how == NA_RELAY_DONE)
    na_request_finish(request);
  else if (broken_side)
    na_request_abort(request, NA_FLAG_UC, "upstream_reset_after_response_started{connection_termination}");
  else
    na_request_abort(request, NA_FLAG_DC, "downstream_remote_disconnect");
}

static void on_report(na_relay *relay) {
  na_http_request *request = na_container_of(relay, na_tunnel, relay)->request;
  na_relay_half *in = &relay->halves[0], *out = &relay->halves[1];
  request->bytes_in += in->bytes - in->reported;
  request->bytes_out += out->bytes - out->reported;
  in->reported = in->bytes;
  out->reported = out->bytes;
}

static void on_idle(na_conn *conn) {
  na_http_request *request = conn->request;
  uint64_t deadline = request->tunnel->relay.last_ms + conn->worker->config->idle_timeout_ms;
  if (deadline > conn->worker->loop.now_ms) {
    na_conn_deadline(conn, deadline, on_idle);
    return;
  }
  na_worker_count(conn->worker, NA_COUNTER_DOWNSTREAM_CX_IDLE_TIMEOUT);
  na_request_abort(request, NA_FLAG_SI, "stream_idle_timeout");
}

/* Send what one side was read of already. */
static int pass_early(na_tunnel *tunnel, int half, na_input *input, na_stream *to) {
  size_t n = na_input_length(input);
  if (n == 0)
    return 0;
  na_relay_account(&tunnel->relay, half, n);
  int error = na_stream_send(to, na_input_bytes(input), n);
  na_input_free(input);
  return error;
}

void na_tunnel_start(na_http_request *request) {
  na_conn *conn = request->conn;
  na_worker *worker = request->worker;
  na_upstream *upstream = request->upstream;
  na_tunnel *tunnel = calloc(1, sizeof *tunnel);
  if (!tunnel) {
    na_request_abort(request, NA_FLAG_OM, "overload");
    return;
  }
  tunnel->request = request;
  request->tunnel = tunnel;
  na_timer_disarm(&request->timer); /* the response is there; what follows has no end that a timeout could mean */
  na_relay_start(&tunnel->relay, worker, &conn->stream, &upstream->stream, on_end, on_report);
  na_conn_deadline(conn, worker->loop.now_ms + worker->config->idle_timeout_ms, on_idle);
  if (pass_early(tunnel, 0, &conn->in, &upstream->stream) < 0)
    na_request_abort(request, NA_FLAG_UC, "upstream_reset_after_response_started{connection_termination}");
  else if (pass_early(tunnel, 1, &upstream->in, &conn->stream) < 0)
    na_request_abort(request, NA_FLAG_DC, "downstream_remote_disconnect");
}

static void tunnel_free(na_grave *grave) {
  free(na_container_of(grave, na_tunnel, grave));
}

void na_tunnel_close(na_http_request *request) {
  na_tunnel *tunnel = request->tunnel;
  na_relay_stop(&tunnel->relay);
  request->tunnel = NULL;
  na_loop_bury(&request->worker->loop, &tunnel->grave, tunnel_free);
}
