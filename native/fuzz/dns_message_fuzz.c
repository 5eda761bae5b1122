/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS messages of clients and of name servers. The first byte says which: as a query it is read and answered, and the
 * answer must be a response to it; as a response it is compared with a query.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dns_message.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const uint8_t addresses[40][16];

static void answer(const uint8_t *bytes, const na_dns_query *query, const char *alias) {
  uint8_t out[NA_DNS_UDP_MAX];
  bool truncated;
  na_dns_answer made = {.asked = bytes, .query = query, .alias = alias, .addresses = addresses, .n = 40, .first = 7};
  size_t room = query->payload < NA_DNS_UDP_PLAIN ? NA_DNS_UDP_PLAIN : query->payload;
  room = room > sizeof out ? sizeof out : room;
  size_t n = na_dns_write_answer(&made, out, room, &truncated);
  CHECK(n <= room);
  CHECK(na_dns_is_response(out, n, bytes, query->question_n));
  CHECK(truncated == (na_dns_get16(out + 2) >> 9 & 1));
}

static void query(const uint8_t *bytes, size_t n) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  na_dns_query q;
  enum na_dns_kind kind = na_dns_parse(bytes, n, &q);
  CHECK(strlen(q.name) < NA_DNS_NAME_TEXT);
  CHECK(kind == NA_DNS_NOTHING || n >= NA_DNS_HEADER);
  CHECK(q.question_n + (size_t)NA_DNS_HEADER <= n || !q.question_n);
  if (kind == NA_DNS_NOTHING)
    return;
  CHECK(na_dns_write_error(bytes, q.question_n ? &q : NULL, NA_DNS_SERVFAIL, out) <= sizeof out);
  if (kind != NA_DNS_QUESTION)
    return;
  answer(bytes, &q, NULL);
  const char *dot = strrchr(q.name, '.');
  if (dot && dot != q.name) {
    q.name[dot - q.name] = 0;
    answer(bytes, &q, q.name);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  static const uint8_t asked[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01"
                                 "a\x00\x00\x01\x00\x01";
  if (!n)
    return 0;
  if (data[0] & 1)
    (void)na_dns_is_response(data + 1, n - 1, asked, sizeof asked - 1 - NA_DNS_HEADER);
  else
    query(data + 1, n - 1);
  return 0;
}
