/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS messages (RFC 1035, 4; EDNS: RFC 6891): reading queries, writing answers, and telling which response is to which
 * query. Pure functions over bytes. Work is linear in the bytes: compression is never followed, only stepped over.
 */
#ifndef NODEAGENT_DNS_MESSAGE_H
#define NODEAGENT_DNS_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NA_DNS_HEADER 12
/* A message without EDNS, over UDP (RFC 1035, 4.2.1), and any message (two bytes of length over TCP). */
#define NA_DNS_UDP_PLAIN   512
#define NA_DNS_MAX_MESSAGE 65535
/* Answers over UDP are never longer, however much the client takes: they stay within the pod. */
#define NA_DNS_UDP_MAX 4096
/* Text of a name with its NUL: RFC 1035, 2.3.4 allows 255 bytes on the wire, which are 253 of text. */
#define NA_DNS_NAME_TEXT 254

enum na_dns_type {
  NA_DNS_A = 1,
  NA_DNS_CNAME = 5,
  NA_DNS_AAAA = 28,
  NA_DNS_OPT = 41,
  NA_DNS_IXFR = 251,
  NA_DNS_AXFR = 252,
};

enum na_dns_rcode {
  NA_DNS_NOERROR = 0,
  NA_DNS_FORMERR = 1,
  NA_DNS_SERVFAIL = 2,
  NA_DNS_REFUSED = 5,
  NA_DNS_BADVERS = 16,
};

/* What bytes are. */
enum na_dns_kind {
  NA_DNS_NOTHING,   /* no header, or a response: deserves no answer */
  NA_DNS_MALFORMED, /* FORMERR */
  NA_DNS_OTHER,     /* well formed, but not one question of the Internet class: for a name server to answer */
  NA_DNS_QUESTION,
};

typedef struct na_dns_query {
  uint16_t type;
  uint16_t question_n; /* bytes of the question, which begins after the header */
  uint16_t payload;    /* what the client takes over UDP */
  uint8_t version;     /* of EDNS */
  bool edns;
  bool dnssec_ok;
  /* In lower case with dots and without the last one; "" for the root, and for labels that no host name has: a dot, a
   * slash, what is not visible. */
  char name[NA_DNS_NAME_TEXT];
} na_dns_query;

/* What a client has sent. Fills *out for NA_DNS_QUESTION, and zeros it before otherwise. */
enum na_dns_kind na_dns_parse(const uint8_t *bytes, size_t n, na_dns_query *out);

/* An answer that is known here. */
typedef struct na_dns_answer {
  const uint8_t *asked; /* the client's bytes, which `query` was parsed from */
  const na_dns_query *query;
  const char *alias;              /* the name is one of this name, which has the addresses; NULL: it has them itself */
  const uint8_t (*addresses)[16]; /* of the family that was asked for */
  uint32_t n;
  uint32_t first; /* the answer begins with this one and goes round */
  uint32_t ttl;   /* seconds */
} na_dns_answer;

/* Write an answer into at most `room` bytes (NA_DNS_UDP_PLAIN at least); returns its length. What does not fit is left
 * out, and the message says so (TC), as *truncated does. The question is echoed as it was spelt. */
size_t na_dns_write_answer(const na_dns_answer *answer, uint8_t *out, size_t room, bool *truncated);
/* An error for a query, whose question is repeated as far as it was understood (query NULL: not at all). At most
 * NA_DNS_UDP_PLAIN bytes. */
size_t na_dns_write_error(const uint8_t *asked, const na_dns_query *query, enum na_dns_rcode rcode, uint8_t *out);

/* Whether `response` is to the query of which `asked` is the header, with the id that it was sent with, and the
 * question (question_n 0: one that was not understood). */
bool na_dns_is_response(const uint8_t *response, size_t n, const uint8_t *asked, size_t question_n);

static inline uint16_t na_dns_get16(const uint8_t *p) {
  return (uint16_t)(p[0] << 8 | p[1]);
}

static inline void na_dns_put16(uint8_t *p, uint16_t value) {
  p[0] = (uint8_t)(value >> 8);
  p[1] = (uint8_t)value;
}

#endif
