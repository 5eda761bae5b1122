/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters and gauges of the engine: one array per worker, written by that worker alone, summed by whoever asks.
 */
#ifndef NODEAGENT_COUNTERS_H
#define NODEAGENT_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

/* X(constant, name, gauge, help) */
#define NA_COUNTER_LIST(X)                                                                                             \
  X(DOWNSTREAM_CX, "downstream_cx_total", 0, "Connections accepted")                                                   \
  X(DOWNSTREAM_CX_ACTIVE, "downstream_cx_active", 1, "Connections open")                                               \
  X(DOWNSTREAM_CX_OVERFLOW, "downstream_cx_overflow_total", 0, "Connections refused: max_connections reached")         \
  X(DOWNSTREAM_CX_NO_FD, "downstream_cx_no_descriptor_total", 0, "Accepts that failed for want of descriptors")        \
  X(DOWNSTREAM_CX_LOOP, "downstream_cx_loop_total", 0, "Connections refused: aimed at the listener itself")            \
  X(DOWNSTREAM_CX_NO_DESTINATION, "downstream_cx_no_destination_total", 0,                                             \
    "Connections refused: the kernel knew no original destination")                                                    \
  X(DOWNSTREAM_CX_IDLE_TIMEOUT, "downstream_cx_idle_timeout_total", 0, "Connections closed: idle for too long")        \
  X(DOWNSTREAM_CX_DRAINED, "downstream_cx_drain_cut_total", 0, "Connections cut at the end of a drain")                \
  X(DOWNSTREAM_CX_NOT_IN_FORCE, "downstream_cx_not_in_force_total", 0,                                                 \
    "Inbound connections refused: the workload's inbound configuration is not in force yet")                           \
  X(DOWNSTREAM_CX_REFUSED, "downstream_cx_refused_total", 0, "Outbound connections refused: unknown destination")      \
  X(DOWNSTREAM_RQ, "downstream_rq_total", 0, "HTTP requests received")                                                 \
  X(DOWNSTREAM_RQ_ACTIVE, "downstream_rq_active", 1, "HTTP requests in progress")                                      \
  X(DOWNSTREAM_RQ_PROTOCOL_ERROR, "downstream_rq_protocol_error_total", 0, "HTTP requests refused as malformed")       \
  X(DOWNSTREAM_RQ_HEAD_TIMEOUT, "downstream_rq_head_timeout_total", 0, "HTTP requests whose head took too long")       \
  X(DOWNSTREAM_RQ_IDLE_TIMEOUT, "downstream_rq_idle_timeout_total", 0, "HTTP requests without progress for too long")  \
  X(DOWNSTREAM_RQ_TIMEOUT, "downstream_rq_timeout_total", 0, "HTTP requests that ran into their route's timeout")      \
  X(DOWNSTREAM_RQ_ABORTED, "downstream_rq_aborted_total", 0, "HTTP requests given up by the client")                   \
  X(RBAC_ALLOWED, "rbac_allowed_total", 0, "Connections and requests that rules allowed")                              \
  X(RBAC_DENIED, "rbac_denied_total", 0, "Connections and requests that rules denied")                                 \
  X(RBAC_SHADOW_ALLOWED, "rbac_shadow_allowed_total", 0, "Connections and requests that dry-run rules would allow")    \
  X(RBAC_SHADOW_DENIED, "rbac_shadow_denied_total", 0, "Connections and requests that dry-run rules would deny")       \
  X(RBAC_LOGGED, "rbac_logged_total", 0, "Connections and requests that AUDIT rules matched")                          \
  X(GUARDS_RESET, "guards_reset_total", 0, "Open connections reset: their workload's policies changed")                \
  X(GUARDS_HTTP2, "guards_http2_refused_total", 0, "HTTP/2 connections refused: their requests cannot be judged")      \
  X(GUARDS_WAITING, "guards_waiting", 1, "Connections and requests that wait for somebody's verdict")                  \
  X(JWT_ALLOWED, "jwt_allowed_total", 0, "Requests whose tokens were as they must be")                                 \
  X(JWT_DENIED, "jwt_denied_total", 0, "Requests refused for their tokens, or for want of one")                        \
  X(JWT_PREFLIGHTS, "jwt_preflights_total", 0, "CORS preflight requests let through without tokens")                   \
  X(JWT_VERIFIED, "jwt_verified_total", 0, "Signatures of tokens verified, good or bad")                               \
  X(JWT_CACHED, "jwt_cache_hits_total", 0, "Tokens that had been verified before")                                     \
  X(JWT_EVICTED, "jwt_cache_evicted_total", 0, "Verified tokens forgotten for others: the cache was full")             \
  X(CALLOUT_ALLOWED, "callout_allowed_total", 0, "Connections and requests that an authorization service allowed")     \
  X(CALLOUT_DENIED, "callout_denied_total", 0, "Connections and requests that an authorization service denied")        \
  X(CALLOUT_ERROR, "callout_error_total", 0, "Authorization services that gave no answer, or one of no use")           \
  X(CALLOUT_TIMEOUT, "callout_timeout_total", 0, "Of those, answers that did not come in time")                        \
  X(CALLOUT_OVERFLOW, "callout_overflow_total", 0, "Of those, questions not asked: too many at once")                  \
  X(CALLOUT_CHANNEL_OVERFLOW, "callout_cx_overflow_total", 0,                                                          \
    "Connections to authorization services not opened: too many at once")                                              \
  X(CALLOUT_FAILED_OPEN, "callout_failed_open_total", 0, "Of those, let through as the configuration says")            \
  X(CALLOUT_BODY_TOO_LARGE, "callout_body_too_large_total", 0,                                                         \
    "Requests refused: bodies longer than may be sent along")                                                          \
  X(CALLOUT_ACTIVE, "callout_active", 1, "Questions to authorization services in progress")                            \
  X(HTTP2_FORWARDED, "http2_forwarded_total", 0, "HTTP/2 connections forwarded without L7 routing")                    \
  X(UPGRADES, "upgrades_total", 0, "Connections switched to another protocol (101)")                                   \
  X(UPSTREAM_CX, "upstream_cx_total", 0, "Upstream connections opened")                                                \
  X(UPSTREAM_CX_ACTIVE, "upstream_cx_active", 1, "Upstream connections open, the pooled ones included")                \
  X(UPSTREAM_CX_IDLE, "upstream_cx_idle", 1, "Upstream connections pooled and unused")                                 \
  X(UPSTREAM_CX_CONNECT_FAIL, "upstream_cx_connect_fail_total", 0, "Upstream connections that failed to open")         \
  X(UPSTREAM_CX_CONNECT_TIMEOUT, "upstream_cx_connect_timeout_total", 0,                                               \
    "Upstream connections that opened too slowly")                                                                     \
  X(UPSTREAM_CX_POOL_OVERFLOW, "upstream_cx_pool_overflow_total", 0, "Upstream connections closed: pool full")         \
  X(UPSTREAM_CX_OVERFLOW, "upstream_cx_overflow_total", 0,                                                             \
    "Upstream connections refused: max_connections of the cluster")                                                    \
  X(UPSTREAM_CX_TRANSPARENT_FAIL, "upstream_cx_transparent_fail_total", 0,                                             \
    "Inbound connections refused: the client's address cannot be kept")                                                \
  X(UPSTREAM_RQ_OVERFLOW, "upstream_rq_overflow_total", 0, "HTTP requests refused: limits of the cluster")             \
  X(UPSTREAM_RQ_RETRY, "upstream_rq_retry_total", 0, "Attempts after the first, after a failed connect")               \
  X(UPSTREAM_RQ_REPLAY, "upstream_rq_replay_total", 0, "Requests sent again: the pooled connection had gone away")     \
  X(UPSTREAM_RQ_PROTOCOL_ERROR, "upstream_rq_protocol_error_total", 0, "Malformed responses (502)")                    \
  X(ON_DEMAND_WAITS, "on_demand_waits_total", 0, "Connections and requests that waited for configuration")             \
  X(ON_DEMAND_WAITING, "on_demand_waiting", 1, "Connections and requests waiting for configuration")                   \
  X(ON_DEMAND_TIMEOUTS, "on_demand_timeouts_total", 0, "Waits for configuration that timed out")                       \
  X(ON_DEMAND_OVERFLOW, "on_demand_overflow_total", 0, "Waits for configuration skipped: max_parked reached")          \
  X(ON_DEMAND_UNANSWERED, "on_demand_unanswered_total", 0,                                                             \
    "Waits for configuration skipped: the control plane is known to be away")                                          \
  X(EVENTS, "events_total", 0, "Events raised")                                                                        \
  X(EVENTS_DROPPED, "events_dropped_total", 0, "Events dropped: queue full (raised again in a second)")                \
  X(STATS_DROPPED, "stats_dropped_total", 0, "Statistics lost: stat_rows reached between two drains")                  \
  X(ACCESS_DROPPED, "access_records_dropped_total", 0,                                                                 \
    "Access records lost: access_records reached between two drains")                                                  \
  X(HBONE_ACCEPTED, "hbone_accepted_total", 0, "Tunnel connections accepted")                                          \
  X(HBONE_ACCEPTED_ACTIVE, "hbone_accepted_active", 1, "Tunnels open that peers made to us")                           \
  X(HBONE_DIALED, "hbone_dialed_total", 0, "Tunnel connections begun")                                                 \
  X(HBONE_DIALED_ACTIVE, "hbone_dialed_active", 1, "Tunnels open that we made to peers")                               \
  X(HBONE_STREAMS, "hbone_streams_total", 0, "Streams opened in tunnels, both ways")                                   \
  X(HBONE_HANDSHAKES, "hbone_handshakes_active", 1, "Accepted tunnels that are not authenticated yet")                 \
  X(HBONE_HANDSHAKE_OVERFLOW, "hbone_handshake_overflow_total", 0,                                                     \
    "Tunnel connections refused: hbone_max_handshakes reached")                                                        \
  X(HBONE_HANDSHAKE_FAIL, "hbone_handshake_fail_total", 0, "TLS handshakes of tunnels that failed, both ways")         \
  X(HBONE_HANDSHAKE_TIMEOUT, "hbone_handshake_timeout_total", 0, "Tunnels that were not there in time, both ways")     \
  X(HBONE_RESUMED, "hbone_resumed_total", 0, "TLS sessions resumed by us as clients")                                  \
  X(HBONE_OVERFLOW, "hbone_overflow_total", 0, "Tunnels refused: hbone_max_tunnels reached")                           \
  X(HBONE_NO_IDENTITY, "hbone_no_identity_total", 0,                                                                   \
    "Tunnels refused, both ways: the workload has no valid certificate")                                               \
  X(HBONE_BAD_REQUEST, "hbone_bad_request_total", 0, "Requests in tunnels answered 400: no CONNECT, or not for here")  \
  X(HBONE_OUTDATED, "hbone_outdated_total", 0,                                                                         \
    "Requests refused: a certificate of their tunnel ran out, or its identity was taken away")                         \
  X(HBONE_DENIED, "hbone_denied_total", 0, "Requests in tunnels answered 401: policy")                                 \
  X(HBONE_HEADERS_TOO_LARGE, "hbone_headers_too_large_total", 0, "Headers in tunnels beyond 64 KiB")                   \
  X(HBONE_ABUSE, "hbone_abuse_total", 0, "Tunnels closed: protocol errors, floods of frames or resets")                \
  X(HBONE_PING_TIMEOUT, "hbone_ping_timeout_total", 0, "Tunnels closed: no answer to PING")                            \
  X(HBONE_NO_MEMORY, "hbone_no_memory_total", 0, "Streams in tunnels reset for want of memory")                        \
  X(MTLS_ACCEPTED, "mtls_accepted_total", 0, "Connections of proxies with mTLS let in, without a tunnel")              \
  X(MTLS_DIALED, "mtls_dialed_total", 0, "Connections to proxies with mTLS begun, without a tunnel")                   \
  X(MTLS_RESUMED, "mtls_resumed_total", 0, "TLS sessions of proxies resumed, inbound")                                 \
  X(MTLS_HANDSHAKE_FAIL, "mtls_handshake_fail_total", 0, "TLS handshakes of proxies that failed, inbound")             \
  X(NEIGHBOUR_CX, "neighbour_cx_total", 0, "Connections to workloads of this node, made without a tunnel")             \
  X(NEIGHBOUR_ACCEPTED, "neighbour_accepted_total", 0, "Connections from workloads of this node, recognised as such")  \
  X(NEIGHBOUR_OVERFLOW, "neighbour_overflow_total", 0,                                                                 \
    "Connections to workloads of this node, made by tunnels: too many were under way")                                 \
  X(DNS_REQUESTS, "dns_requests_total", 0, "DNS messages of workloads")                                                \
  X(DNS_ANSWERED, "dns_answered_total", 0, "DNS questions answered from the mesh's names")                             \
  X(DNS_TRUNCATED, "dns_truncated_total", 0, "Of those, answers that did not fit")                                     \
  X(DNS_MALFORMED, "dns_malformed_total", 0, "DNS messages that are none: dropped, or answered FORMERR")               \
  X(DNS_NO_SERVER, "dns_no_server_total", 0, "DNS questions refused: nobody knows which name server was asked")        \
  X(DNS_OVERFLOW, "dns_overflow_total", 0, "DNS questions and connections refused: too many at once")                  \
  X(DNS_ACTIVE, "dns_questions_active", 1, "DNS questions waiting for name servers, by datagrams")                     \
  X(DNS_STREAMS_ACTIVE, "dns_streams_active", 1, "DNS connections open")                                               \
  X(DNS_UPSTREAM_REQUESTS, "dns_upstream_requests_total", 0, "DNS questions sent on to name servers")                  \
  X(DNS_UPSTREAM_FAILURES, "dns_upstream_failures_total", 0, "Of those, without an answer")                            \
  X(DNS_UPSTREAM_TIMEOUT, "dns_upstream_timeouts_total", 0, "Of those, given up after dns_timeout_ms")                 \
  X(DNS_UPSTREAM_ANSWERS, "dns_upstream_answers_total", 0, "Of those, answered")                                       \
  X(DNS_UPSTREAM_US, "dns_upstream_request_duration_us_total", 0, "Microseconds that name servers took to answer")     \
  X(DNS_STRAY, "dns_stray_total", 0, "Responses of name servers to something else than was asked: dropped")            \
  X(SPLICED_BYTES, "spliced_bytes_total", 0, "Bytes moved by splice(2)")

enum na_counter_id {
#define X(constant, name, gauge, help) NA_COUNTER_##constant,
  NA_COUNTER_LIST(X)
#undef X
      NA_COUNTER_COUNT
};

typedef struct na_counters {
  _Atomic uint64_t values[NA_COUNTER_COUNT];
} na_counters;

/* Only for the worker that owns the array: a plain add, no locked instruction. */
static inline void na_count_by(na_counters *counters, enum na_counter_id id, uint64_t by) {
  uint64_t value = atomic_load_explicit(&counters->values[id], memory_order_relaxed);
  atomic_store_explicit(&counters->values[id], value + by, memory_order_relaxed);
}

static inline void na_count(na_counters *counters, enum na_counter_id id) {
  na_count_by(counters, id, 1);
}

/* Gauges. */
static inline void na_count_down(na_counters *counters, enum na_counter_id id) {
  na_count_by(counters, id, UINT64_MAX);
}

#endif
