/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engine tells of its work: statistics, access records, counters, live connections.
 *
 * Part of the engine's interface: include <nodeagent/engine.h>, which tells its conventions.
 */
#ifndef NODEAGENT_TELEMETRY_H
#define NODEAGENT_TELEMETRY_H

#ifndef NODEAGENT_ENGINE_H
#error "include <nodeagent/engine.h>"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- telemetry ---------------------------------------------------------------------------------------------- */

/* Response flags as Envoy names them; a set of bits. */
enum na_flag {
  NA_FLAG_UH = 1,        /* no healthy upstream */
  NA_FLAG_UF = 2,        /* upstream connection failure */
  NA_FLAG_UO = 4,        /* upstream overflow (limits) */
  NA_FLAG_NR = 8,        /* no route */
  NA_FLAG_URX = 16,      /* retries exhausted */
  NA_FLAG_DC = 32,       /* downstream closed */
  NA_FLAG_UC = 64,       /* upstream closed */
  NA_FLAG_UT = 128,      /* upstream timeout */
  NA_FLAG_LR = 256,      /* local reset */
  NA_FLAG_IH = 512,      /* invalid headers */
  NA_FLAG_DPE = 1024,    /* downstream protocol error */
  NA_FLAG_UPE = 2048,    /* upstream protocol error */
  NA_FLAG_NC = 4096,     /* no cluster, or configuration not in force */
  NA_FLAG_SI = 8192,     /* stream idle timeout */
  NA_FLAG_DT = 16384,    /* duration timeout */
  NA_FLAG_OM = 32768,    /* overload */
  NA_FLAG_NFCF = 65536,  /* no filter chain, connection refused */
  NA_FLAG_UAEX = 131072, /* not authorized */
};

enum na_stat_kind {
  NA_STAT_HTTP = 1,       /* a finished request */
  NA_STAT_TCP_OPENED = 2, /* an opened TCP connection */
  NA_STAT_TCP_CLOSED = 3, /* a closed one, with flags */
  NA_STAT_TCP_BYTES = 4,  /* bytes since the last report of a connection: received in bytes_in, sent in bytes_out */
  NA_STAT_POLICY = 5, /* a decision of rules: cluster_tag is the policy (na_engine_policy), flags an enum na_outcome;
                         of workload, protocol and count the rest */
};

/* What a policy decided. */
enum na_outcome {
  NA_OUTCOME_ALLOWED = 0,
  NA_OUTCOME_DENIED = 1,
  NA_OUTCOME_SHADOW_ALLOWED = 2, /* dry run */
  NA_OUTCOME_SHADOW_DENIED = 3,
  NA_OUTCOME_LOGGED = 4, /* matched rules that only log */
};

#define NA_DURATION_BUCKETS 20
#define NA_SIZE_BUCKETS     16

/* One aggregate. Key: kind .. peer; values: the rest. */
typedef struct na_stat_row {
  uint32_t kind;
  uint32_t workload;     /* the local workload; the reporter's side is `inbound` */
  uint32_t cluster_tag;  /* outbound: chosen cluster; inbound: tag of the inbound port */
  uint32_t endpoint_tag; /* outbound: chosen endpoint; 0 if none */
  uint32_t flags;
  uint16_t status;     /* HTTP status; 0 none */
  uint8_t inbound;     /* 0: reporter source, 1: destination */
  uint8_t protocol;    /* 0 tcp, 1 http/1, 2 grpc, 3 http/2 forwarded by connection */
  uint8_t peer[16];    /* inbound: client address; outbound: address connected to */
  uint32_t principal;  /* the peer's authenticated identity: na_engine_principal(); 0 none */
  uint32_t mutual_tls; /* 1: connection_security_policy mutual_tls */
  uint64_t count;
  uint64_t bytes_in;         /* from the downstream */
  uint64_t bytes_out;        /* to the downstream */
  uint64_t duration_us;      /* sum */
  uint64_t duration[20];     /* per bucket, not cumulative: <= 0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000
                                60000 300000 600000 1800000 3600000 ms, above */
  uint64_t request_size[16]; /* bodies per bucket: <= 0, then 4^1 .. 4^14 bytes, above */
  uint64_t response_size[16];
} na_stat_row;

/* Take and reset the rows gathered since the last call; returns how many were written (call again while it returns
 * max). Rows of several workers are not merged. */
NA_API int na_engine_drain_stats(na_engine *engine, na_stat_row *rows, size_t max);

/* The SPIFFE ID of a principal; "" for 0. Valid for the life of the engine. */
NA_API const char *na_engine_principal(na_engine *engine, uint32_t id);

/* The name of a policy; "" for 0: ALLOW rules of which none matched. Valid for the life of the engine. */
NA_API const char *na_engine_policy(na_engine *engine, uint32_t id);

/* One finished request or TCP connection. Strings are cut to their field. */
typedef struct na_access_record {
  uint64_t start_us; /* wall clock, since the epoch */
  uint64_t duration_us;
  uint64_t upstream_us; /* until the first byte of the response; 0 none */
  uint64_t bytes_in;    /* request body or bytes from the client */
  uint64_t bytes_out;
  uint32_t workload;
  uint32_t cluster_tag;
  uint32_t endpoint_tag;
  uint32_t route_tag;
  uint32_t flags;
  uint16_t status;
  uint8_t inbound;
  uint8_t protocol; /* as in na_stat_row */
  uint8_t http_minor;
  uint8_t bypassed; /* 1: it has passed the engine (flows.h) */
  uint8_t reserved[2];
  uint8_t downstream_remote[16];
  uint8_t downstream_local[16]; /* the original destination */
  uint8_t upstream_remote[16];
  uint8_t upstream_local[16];
  uint16_t downstream_remote_port;
  uint16_t downstream_local_port;
  uint16_t upstream_remote_port;
  uint16_t upstream_local_port;
  char method[24];
  char authority[128];
  char path[256]; /* as received, before rewriting */
  char user_agent[128];
  char forwarded_for[64];
  char request_id[48];
  char route[96];
  char cluster[160];
  char detail[192]; /* %RESPONSE_CODE_DETAILS%, %CONNECTION_TERMINATION_DETAILS%, as Envoy words them */
  char upstream_failure[160];
  uint32_t principal; /* as in na_stat_row */
  uint32_t mutual_tls;
  char peer_baggage[256]; /* what the peer of a tunnel says about itself, as sent */
  char traceparent[64];   /* of a tunnel's stream (W3C Trace Context) */
  uint32_t rtt_us;        /* bypassed: smoothed round trip time */
  uint32_t retransmits;   /* bypassed: segments */
  uint32_t audit;         /* the rules that only log which matched first: na_engine_policy(); 0 none */
} na_access_record;

NA_API int na_engine_drain_access(na_engine *engine, na_access_record *records, size_t max);

typedef struct na_counter_info {
  const char *name; /* Prometheus-style, without prefix */
  const char *help;
  int gauge;
} na_counter_info;

/* Engine-wide counters and gauges, by index: what they are (NULL beyond the last one), and their values. */
NA_API const na_counter_info *na_engine_counter_info(size_t index);
NA_API uint64_t na_engine_counter(na_engine *engine, size_t index);

/* A live downstream connection, for people. */
typedef struct na_connection_info {
  uint64_t id;
  uint64_t age_ms;
  uint64_t bytes_in;
  uint64_t bytes_out;
  uint32_t workload;
  uint32_t worker;
  uint8_t inbound;
  uint8_t protocol;
  uint8_t state; /* 0 detecting, 1 waiting for configuration, 2 idle, 3 active, 4 tcp, 5 closing, 6 past the engine */
  uint8_t reserved;
  uint16_t remote_port;
  uint16_t local_port;
  uint8_t remote[16];
  uint8_t local[16]; /* the original destination */
  char cluster[160];
  uint32_t principal;   /* of the client, when it came through a tunnel: na_engine_principal() */
  uint32_t cluster_tag; /* past the engine (flows.h): instead of the name */
} na_connection_info;

/* List up to max connections, all workers; returns how many (a bounded, consistent look at each worker). */
NA_API int na_engine_connections(na_engine *engine, na_connection_info *out, size_t max);

#ifdef __cplusplus
}
#endif

#endif
