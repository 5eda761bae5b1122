/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/1.1 codec: strict, allocation-free parsing of heads and chunked framing, and writing of heads (RFC 9110, 9112).
 * It touches no socket and keeps no pointer beyond the caller's buffer. What it refuses is listed in http1.c.
 */
#ifndef NODEAGENT_HTTP1_H
#define NODEAGENT_HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A view into somebody's bytes; not NUL-terminated. */
typedef struct na_str {
  const char *p;
  uint32_t n;
} na_str;

/* Headers that the proxy itself reads, recognised while parsing; the rest are NA_HDR_OTHER. */
enum na_header_id {
  NA_HDR_OTHER = 0,
  NA_HDR_HOST,
  NA_HDR_CONNECTION,
  NA_HDR_CONTENT_LENGTH,
  NA_HDR_TRANSFER_ENCODING,
  NA_HDR_KEEP_ALIVE,
  NA_HDR_PROXY_CONNECTION,
  NA_HDR_TE,
  NA_HDR_TRAILER,
  NA_HDR_UPGRADE,
  NA_HDR_EXPECT,
  NA_HDR_USER_AGENT,
  NA_HDR_X_FORWARDED_FOR,
  NA_HDR_X_FORWARDED_PROTO,
  NA_HDR_X_FORWARDED_CLIENT_CERT, /* of requests: left out of the head */
  NA_HDR_X_REQUEST_ID,
  NA_HDR_CONTENT_TYPE,
  NA_HDR_DATE,
  NA_HDR_SERVER,
  NA_HDR_COUNT
};

typedef struct na_header {
  na_str name;  /* as received */
  na_str value; /* without surrounding white space */
  uint8_t id;   /* enum na_header_id */
  uint8_t hop;  /* hop-by-hop: never forwarded (RFC 9110 7.6.1), Connection-nominated ones included */
} na_header;

#define NA_H1_MAX_HEADERS 256

enum na_body { NA_BODY_NONE, NA_BODY_LENGTH, NA_BODY_CHUNKED, NA_BODY_UNTIL_CLOSE };

/* What routing sees of a request, whichever codec it came by. */
typedef struct na_request {
  na_str method;
  na_str scheme;     /* "http" unless the target was absolute */
  na_str authority;  /* Host, or the absolute target's */
  na_str path;       /* without query; "*" for OPTIONS *; empty for CONNECT */
  na_str query;      /* without '?' */
  na_str path_query; /* both, as sent */
  bool plain;        /* no byte of it needs a look for another spelling; false: perhaps (http_path.h) */
  const na_header *headers;
  uint32_t nheaders;
} na_request;

typedef struct na_h1_head {
  na_request request; /* requests */
  uint16_t status;    /* responses */
  na_str reason;
  uint8_t minor;   /* HTTP/1.minor */
  uint8_t body;    /* enum na_body */
  bool keep_alive; /* the sender allows another message on this connection */
  bool expect_continue;
  bool upgrade; /* Connection: upgrade with an Upgrade header */
  bool is_head; /* method HEAD */
  bool is_connect;
  uint64_t content_length;
  uint32_t head_bytes; /* through the empty line */
  uint32_t nheaders;
  int16_t index[NA_HDR_COUNT]; /* first header of each id, -1 absent */
  na_header headers[NA_H1_MAX_HEADERS];
} na_h1_head;

typedef struct na_h1_limits {
  uint32_t max_head_bytes;
  uint32_t max_headers; /* at most NA_H1_MAX_HEADERS */
  uint32_t max_request_line;
} na_h1_limits;

/* Why a message was refused. `status` is what a server answers with (400, 414, 431, 501, 505); for responses the
 * caller answers 502. `reason` is static. */
typedef struct na_h1_error {
  uint16_t status;
  const char *reason;
} na_h1_error;

/* Parse a request head. `scanned` (0 at first, kept by the caller between calls on the same growing buffer) makes
 * byte-by-byte arrival linear. Returns head_bytes, 0 when more bytes are needed, -1 with *error set. Leading empty
 * lines before the request line are skipped (at most 4 bytes) and are part of head_bytes. */
int na_h1_parse_request(const char *buf, size_t n, uint32_t *scanned, const na_h1_limits *limits, na_h1_head *head,
                        na_h1_error *error);
/* Parse a response head. to_head: the request was HEAD; to_connect likewise. 1xx, 204 and 304 have no body. */
int na_h1_parse_response(const char *buf, size_t n, uint32_t *scanned, const na_h1_limits *limits, bool to_head,
                         bool to_connect, na_h1_head *head, na_h1_error *error);

/* Does a connection's first bytes look like HTTP/1? 1 yes, 0 more bytes needed, -1 no, 2 HTTP/2 preface (RFC 9113
 * 3.4), -2 TLS ClientHello. Decides on as few bytes as it can. */
int na_h1_sniff(const char *buf, size_t n);

/* Chunked framing, validated while it passes: the bytes themselves are forwarded as they are. */
typedef struct na_h1_chunked {
  uint64_t left;       /* data bytes left in the chunk */
  uint64_t data_bytes; /* payload so far */
  uint32_t line_bytes; /* bytes of the current size or trailer line */
  uint32_t trailer_bytes;
  uint32_t candidates; /* forbidden names that the trailer name may still turn out to be */
  uint8_t state;
} na_h1_chunked;

void na_h1_chunked_init(na_h1_chunked *c);
/* Consume framing from buf. Returns how many bytes belong to the message; *done tells that it ended there. -1 with
 * *error for invalid framing (sizes above 2^63-1, bad hex, bare LF, over-long extensions, bad trailers, trailers that
 * are framing or routing headers). */
long na_h1_chunked_feed(na_h1_chunked *c, const char *buf, size_t n, bool *done, na_h1_error *error);

/* A bounded output cursor; `over` is set instead of writing past the end. */
typedef struct na_out {
  char *p;
  size_t n;
  size_t size;
  bool over;
} na_out;

void na_out_bytes(na_out *out, const char *p, size_t n);
void na_out_str(na_out *out, na_str s);
void na_out_cstr(na_out *out, const char *s);
void na_out_u64(na_out *out, uint64_t v);
/* "name: value\r\n" */
void na_out_header(na_out *out, na_str name, na_str value);

bool na_str_eq(na_str a, const char *b);
/* Case-insensitive over ASCII. */
bool na_str_ieq(na_str a, const char *b);
bool na_str_ieq2(na_str a, na_str b);
na_str na_str_of(const char *s);
/* The standard reason phrase, "" if unknown. */
const char *na_h1_reason(unsigned status);
/* The first header of that name (case-insensitive), or NULL. */
const na_header *na_h1_find(const na_request *request, na_str name);

#endif
