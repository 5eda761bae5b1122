/* SPDX-License-Identifier: Apache-2.0 */
#include "dns_message.h"

#include <assert.h>
#include <string.h>

#define FLAG_QR   0x8000u
#define FLAG_AA   0x0400u
#define FLAG_TC   0x0200u
#define FLAG_RD   0x0100u
#define FLAG_RA   0x0080u
#define FLAG_CD   0x0010u
#define OPCODE    0x7800u
#define CLASS_IN  1
#define DNSSEC_OK 0x8000u

#define MAX_LABEL 63
#define MAX_NAME  255
#define OPT_BYTES 11            /* without options */
#define RR_FIXED  10            /* type, class, TTL, length */
#define POINTER   0xc000u       /* RFC 1035, 4.1.4 */
#define QUESTION  NA_DNS_HEADER /* where the question's name is, for pointers */

/* ---- reading ---- */

static char lower(uint8_t c) {
  return (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
}

static bool is_host_character(uint8_t c) {
  return c > ' ' && c < 0x7f && c != '.' && c != '/';
}

/* The name at *at, which may not be compressed: nothing comes before it that it could point to. False if it is none. */
static bool read_name(const uint8_t *bytes, size_t n, size_t *at, char text[NA_DNS_NAME_TEXT]) {
  size_t used = 0, p = *at;
  bool is_host = true;
  for (; p < n && bytes[p]; p += (size_t)bytes[p] + 1) {
    size_t length = bytes[p];
    if (length > MAX_LABEL || p + length >= n || p + length + 2 - *at > MAX_NAME)
      return false;
    if (used)
      text[used++] = '.';
    for (size_t i = 1; i <= length; i++) {
      is_host = is_host && is_host_character(bytes[p + i]);
      text[used++] = lower(bytes[p + i]);
    }
  }
  if (p >= n)
    return false;
  text[is_host ? used : 0] = 0;
  *at = p + 1;
  return true;
}

/* Step over a name, compressed or not. */
static bool skip_name(const uint8_t *bytes, size_t n, size_t *at) {
  size_t p = *at;
  while (p < n && bytes[p] && bytes[p] <= MAX_LABEL)
    p += (size_t)bytes[p] + 1;
  if (p >= n)
    return false;
  if (bytes[p] && (bytes[p] & 0xc0) != 0xc0)
    return false;
  *at = p + (bytes[p] ? 2 : 1);
  return *at <= n;
}

static void read_opt(const uint8_t *record, na_dns_query *out) {
  out->edns = true;
  out->payload = na_dns_get16(record + 2);
  out->version = record[5];
  out->dnssec_ok = na_dns_get16(record + 6) & DNSSEC_OK;
}

/* Step over all records, and find EDNS among those of the last section. */
static bool read_records(const uint8_t *bytes, size_t n, size_t at, na_dns_query *out) {
  uint32_t before = (uint32_t)na_dns_get16(bytes + 6) + na_dns_get16(bytes + 8);
  uint32_t all = before + na_dns_get16(bytes + 10);
  for (uint32_t i = 0; i < all; i++) {
    size_t start = at;
    if (!skip_name(bytes, n, &at) || n - at < RR_FIXED)
      return false;
    size_t length = na_dns_get16(bytes + at + 8);
    if (n - at - RR_FIXED < length)
      return false;
    if (i >= before && na_dns_get16(bytes + at) == NA_DNS_OPT) {
      if (out->edns || bytes[start]) /* RFC 6891, 6.1.1: one, of the root */
        return false;
      read_opt(bytes + at, out);
    }
    at += RR_FIXED + length;
  }
  return true;
}

enum na_dns_kind na_dns_parse(const uint8_t *bytes, size_t n, na_dns_query *out) {
  memset(out, 0, sizeof *out);
  out->payload = NA_DNS_UDP_PLAIN;
  if (n < NA_DNS_HEADER || na_dns_get16(bytes + 2) & FLAG_QR)
    return NA_DNS_NOTHING;
  if (na_dns_get16(bytes + 2) & OPCODE || na_dns_get16(bytes + 4) != 1)
    return NA_DNS_OTHER;
  size_t at = NA_DNS_HEADER;
  if (!read_name(bytes, n, &at, out->name) || n - at < 4)
    return NA_DNS_MALFORMED;
  out->type = na_dns_get16(bytes + at);
  uint16_t class = na_dns_get16(bytes + at + 2);
  at += 4;
  out->question_n = (uint16_t)(at - NA_DNS_HEADER);
  if (!read_records(bytes, n, at, out))
    return NA_DNS_MALFORMED;
  return class == CLASS_IN ? NA_DNS_QUESTION : NA_DNS_OTHER;
}

/* ---- writing ---- */

typedef struct writer {
  uint8_t *out;
  size_t n;
  size_t room;
} writer;

static bool put(writer *w, const void *bytes, size_t n) {
  if (w->room - w->n < n)
    return false;
  memcpy(w->out + w->n, bytes, n);
  w->n += n;
  return true;
}

static void begin(writer *w, const uint8_t *asked, const na_dns_query *query, uint16_t flags) {
  uint16_t theirs = na_dns_get16(asked + 2);
  uint8_t header[NA_DNS_HEADER] = {asked[0], asked[1]};
  na_dns_put16(header + 2, (uint16_t)(FLAG_QR | FLAG_RA | (theirs & (OPCODE | FLAG_RD | FLAG_CD)) | flags));
  na_dns_put16(header + 4, query && query->question_n);
  put(w, header, sizeof header);
  if (query)
    put(w, asked + NA_DNS_HEADER, query->question_n);
}

static void count(writer *w, size_t section) {
  na_dns_put16(w->out + section, (uint16_t)(na_dns_get16(w->out + section) + 1));
}

static void put_opt(writer *w, const na_dns_query *query, enum na_dns_rcode rcode) {
  uint8_t record[OPT_BYTES] = {0};
  na_dns_put16(record + 1, NA_DNS_OPT);
  na_dns_put16(record + 3, NA_DNS_UDP_MAX);
  record[5] = (uint8_t)((unsigned)rcode >> 4);
  na_dns_put16(record + 7, query->dnssec_ok ? DNSSEC_OK : 0); /* RFC 3225, 3: copied */
  if (put(w, record, sizeof record))
    count(w, 10);
}

static void fill_record(uint8_t record[2 + RR_FIXED], uint16_t name, uint16_t type, uint32_t ttl, size_t length) {
  na_dns_put16(record, (uint16_t)(POINTER | name));
  na_dns_put16(record + 2, type);
  na_dns_put16(record + 4, CLASS_IN);
  na_dns_put16(record + 6, (uint16_t)(ttl >> 16));
  na_dns_put16(record + 8, (uint16_t)ttl);
  na_dns_put16(record + 10, (uint16_t)length);
}

/* The name as labels; its length. A name of the configuration, which is no longer than one of a question. */
static size_t encode_name(const char *text, uint8_t out[MAX_NAME]) {
  size_t n = 0;
  for (const char *label = text; *label;) {
    size_t length = strcspn(label, ".");
    assert(length && length <= MAX_LABEL && n + length + 2 <= MAX_NAME);
    out[n++] = (uint8_t)length;
    memcpy(out + n, label, length);
    n += length;
    label += length + (label[length] == '.');
  }
  out[n++] = 0;
  return n;
}

/* Say that the question's name stands for another one. Returns where that one is, for pointers; 0: no room. */
static uint16_t put_alias(writer *w, const na_dns_answer *answer) {
  uint8_t record[2 + RR_FIXED + MAX_NAME];
  size_t length = encode_name(answer->alias, record + 2 + RR_FIXED);
  fill_record(record, QUESTION, NA_DNS_CNAME, answer->ttl, length);
  size_t at = w->n + 2 + RR_FIXED;
  if (!put(w, record, 2 + RR_FIXED + length))
    return 0;
  count(w, 6);
  return (uint16_t)at;
}

static bool put_address(writer *w, const na_dns_answer *answer, uint16_t name, uint32_t i) {
  uint8_t record[2 + RR_FIXED + 16];
  const uint8_t *address = answer->addresses[(answer->first + i) % answer->n];
  bool v6 = answer->query->type == NA_DNS_AAAA;
  size_t length = v6 ? 16 : 4;
  fill_record(record, name, answer->query->type, answer->ttl, length);
  memcpy(record + 2 + RR_FIXED, v6 ? address : address + 12, length);
  if (!put(w, record, 2 + RR_FIXED + length))
    return false;
  count(w, 6);
  return true;
}

size_t na_dns_write_answer(const na_dns_answer *answer, uint8_t *out, size_t room, bool *truncated) {
  assert(room >= NA_DNS_UDP_PLAIN);
  const na_dns_query *query = answer->query;
  size_t reserved = query->edns ? OPT_BYTES : 0;
  writer w = {out, 0, room - reserved};
  uint16_t name = QUESTION;
  begin(&w, answer->asked, query, FLAG_AA);
  if (answer->alias)
    name = put_alias(&w, answer);
  bool fits = name != 0;
  for (uint32_t i = 0; fits && i < answer->n; i++)
    fits = put_address(&w, answer, name, i);
  if (!fits)
    na_dns_put16(out + 2, (uint16_t)(na_dns_get16(out + 2) | FLAG_TC));
  *truncated = !fits;
  w.room += reserved;
  if (query->edns)
    put_opt(&w, query, NA_DNS_NOERROR);
  return w.n;
}

size_t na_dns_write_error(const uint8_t *asked, const na_dns_query *query, enum na_dns_rcode rcode, uint8_t *out) {
  writer w = {out, 0, NA_DNS_UDP_PLAIN};
  begin(&w, asked, query, (uint16_t)(rcode & 0xf));
  if (query && query->edns)
    put_opt(&w, query, rcode);
  return w.n;
}

/* ---- responses ---- */

static bool same_question(const uint8_t *a, const uint8_t *b, size_t n) {
  /* Types and classes are compared likewise: none of those in use differ by 0x20 alone. */
  for (size_t i = 0; i < n; i++)
    if (lower(a[i]) != lower(b[i]))
      return false;
  return true;
}

bool na_dns_is_response(const uint8_t *response, size_t n, const uint8_t *asked, size_t question_n) {
  if (n < NA_DNS_HEADER || memcmp(response, asked, 2) != 0)
    return false;
  uint16_t flags = na_dns_get16(response + 2);
  if (!(flags & FLAG_QR) || (flags & OPCODE) != (na_dns_get16(asked + 2) & OPCODE))
    return false;
  uint16_t questions = na_dns_get16(response + 4);
  if (!question_n || (!questions && flags & 0xf)) /* some servers do not repeat it beside an error */
    return true;
  return questions == 1 && n - NA_DNS_HEADER >= question_n &&
         same_question(response + NA_DNS_HEADER, asked + NA_DNS_HEADER, question_n);
}
