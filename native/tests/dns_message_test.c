/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS messages: what is read of queries, what answers look like, which responses belong to which query.
 */
#include "dns_message.h"

#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"

#define HEADER      "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
#define HEADER_EDNS "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01"
#define WWW                                                                                                            \
  "\x03wWw\x07"                                                                                                        \
  "eXample\x03"                                                                                                        \
  "com\x00"
#define A_IN                      "\x00\x01\x00\x01"
#define OPT(size, version, flags) "\x00\x00\x29" size "\x00" version flags "\x00\x00"

typedef struct message {
  const char *bytes;
  size_t n;
} message;

#define M(text) ((message){text, sizeof(text) - 1})

/* The verdict on bytes that lie at the end of their memory, where a sanitizer sees a step too far. */
static enum na_dns_kind parse(message m, na_dns_query *query) {
  uint8_t *copy = malloc(m.n ? m.n : 1);
  memcpy(copy, m.bytes, m.n);
  enum na_dns_kind kind = na_dns_parse(copy, m.n, query);
  free(copy);
  return kind;
}

static void reads_a_question(void **state) {
  na_dns_query q;
  assert_int_equal(parse(M(HEADER WWW A_IN), &q), NA_DNS_QUESTION);
  assert_string_equal(q.name, "www.example.com");
  assert_int_equal(q.type, NA_DNS_A);
  assert_int_equal(q.question_n, sizeof(WWW A_IN) - 1);
  assert_false(q.edns);
  assert_int_equal(q.payload, NA_DNS_UDP_PLAIN);
}

static void reads_edns(void **state) {
  na_dns_query q;
  assert_int_equal(parse(M(HEADER_EDNS WWW A_IN OPT("\x10\x00", "\x00", "\x80\x00")), &q), NA_DNS_QUESTION);
  assert_true(q.edns && q.dnssec_ok);
  assert_int_equal(q.payload, 4096);
  assert_int_equal(q.version, 0);
  assert_int_equal(parse(M(HEADER_EDNS WWW A_IN OPT("\x02\x00", "\x01", "\x00\x00")), &q), NA_DNS_QUESTION);
  assert_int_equal(q.version, 1);
}

static void tells_what_is_no_query(void **state) {
  static const struct {
    message message;
    enum na_dns_kind kind;
  } cases[] = {
      {M(""), NA_DNS_NOTHING},
      {M("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00"), NA_DNS_NOTHING},
      {M("\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00" WWW A_IN), NA_DNS_NOTHING}, /* a response */
      {M("\x12\x34\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00" WWW A_IN), NA_DNS_OTHER},   /* an update */
      {M("\x12\x34\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"), NA_DNS_OTHER},            /* no question */
      {M("\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00" WWW A_IN WWW A_IN), NA_DNS_OTHER},
      {M(HEADER WWW "\x00\x01\x00\x03"), NA_DNS_OTHER},        /* class CHAOS */
      {M(HEADER), NA_DNS_MALFORMED},                           /* no name */
      {M(HEADER "\x03ww"), NA_DNS_MALFORMED},                  /* a cut label */
      {M(HEADER "\x03www"), NA_DNS_MALFORMED},                 /* no end */
      {M(HEADER "\x03www\x00\x00\x01\x00"), NA_DNS_MALFORMED}, /* no class */
      {M(HEADER "\xc0\x0c" A_IN), NA_DNS_MALFORMED},           /* points to itself */
      {M(HEADER "\x03www\xc0\x0c" A_IN), NA_DNS_MALFORMED},    /* goes round */
      {M(HEADER "\x40" A_IN), NA_DNS_MALFORMED},               /* a label of another kind */
      {M(HEADER_EDNS WWW A_IN), NA_DNS_MALFORMED},             /* no record */
      {M(HEADER_EDNS WWW A_IN "\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x05"), NA_DNS_MALFORMED},     /* cut options */
      {M(HEADER_EDNS WWW A_IN "\xc0\x0c\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00"), NA_DNS_MALFORMED}, /* of a name */
      {M("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x02" WWW A_IN OPT("\x10\x00", "\x00", "\x00\x00")
             OPT("\x10\x00", "\x00", "\x00\x00")),
       NA_DNS_MALFORMED}, /* two */
      {M("\x12\x34\x01\x00\x00\x01\xff\xff\xff\xff\xff\xff" WWW A_IN), NA_DNS_MALFORMED},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_dns_query q;
    enum na_dns_kind kind = parse(cases[i].message, &q);
    if (kind != cases[i].kind)
      fail_msg("case %zu is %d, not %d", i, kind, cases[i].kind);
  }
}

static void bounds_names(void **state) {
  char bytes[600] = HEADER;
  na_dns_query q;
  size_t n = 12;
  for (int i = 0; i < 3; i++, n += 64)
    memset(memset(bytes + n, 63, 1) + 1, 'a', 63);
  memset(memset(bytes + n, 61, 1) + 1, 'b', 61); /* 3 * 64 + 62 + 1 = 255 */
  n += 62;
  memcpy(bytes + n, "\0" A_IN, 5);
  assert_int_equal(parse((message){bytes, n + 5}, &q), NA_DNS_QUESTION);
  assert_int_equal(strlen(q.name), 253);
  n -= 62;
  memset(memset(bytes + n, 62, 1) + 1, 'b', 62); /* one more */
  n += 63;
  memcpy(bytes + n, "\0" A_IN, 5);
  assert_int_equal(parse((message){bytes, n + 5}, &q), NA_DNS_MALFORMED);
}

static void takes_no_strange_label_for_a_host(void **state) {
  na_dns_query q;
  assert_int_equal(parse(M(HEADER "\x07www.com\x00" A_IN), &q), NA_DNS_QUESTION);
  assert_string_equal(q.name, "");
  assert_int_equal(parse(M(HEADER "\x03"
                                  "a/b\x00" A_IN),
                         &q),
                   NA_DNS_QUESTION);
  assert_string_equal(q.name, "");
  assert_int_equal(parse(M(HEADER "\x03"
                                  "a\x00"
                                  "b\x00" A_IN),
                         &q),
                   NA_DNS_QUESTION);
  assert_string_equal(q.name, "");
}

static const uint8_t v4[3][16] = {
    {[10] = 0xff, 0xff, 10, 0, 0, 1}, {[10] = 0xff, 0xff, 10, 0, 0, 2}, {[10] = 0xff, 0xff, 10, 0, 0, 3}};

static size_t write_answer(message m, uint8_t *out, size_t room, na_dns_answer answer, bool *truncated) {
  na_dns_query q;
  assert_int_equal(na_dns_parse((const uint8_t *)m.bytes, m.n, &q), NA_DNS_QUESTION);
  answer.asked = (const uint8_t *)m.bytes;
  answer.query = &q;
  return na_dns_write_answer(&answer, out, room, truncated);
}

static void echoes_the_question_as_it_was_spelt(void **state) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  bool truncated;
  size_t n = write_answer(M(HEADER WWW A_IN), out, sizeof out, (na_dns_answer){.addresses = v4, .n = 1, .ttl = 30},
                          &truncated);
  static const char expected[] = "\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00" WWW A_IN
                                 "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x0a\x00\x00\x01";
  assert_int_equal(n, sizeof expected - 1);
  assert_memory_equal(out, expected, n);
  assert_false(truncated);
}

static void goes_round(void **state) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  bool truncated;
  size_t n = write_answer(M(HEADER WWW A_IN), out, sizeof out,
                          (na_dns_answer){.addresses = v4, .n = 3, .first = 2, .ttl = 30}, &truncated);
  static const uint8_t last[] = {3, 1, 2};
  for (int i = 0; i < 3; i++)
    assert_int_equal(out[n - 16 * (size_t)(2 - i) - 1], last[i]);
}

static void answers_edns_with_edns(void **state) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  bool truncated;
  size_t n = write_answer(M(HEADER_EDNS WWW A_IN OPT("\x10\x00", "\x00", "\x80\x00")), out, sizeof out,
                          (na_dns_answer){.addresses = v4, .n = 0, .ttl = 30}, &truncated);
  assert_memory_equal(out + n - 11, "\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00", 11);
  assert_int_equal(na_dns_get16(out + 6), 0);
  assert_int_equal(na_dns_get16(out + 10), 1);
}

static void says_that_not_all_fits(void **state) {
  static uint8_t many[64][16];
  uint8_t *out = malloc(NA_DNS_UDP_PLAIN);
  bool truncated;
  size_t n = write_answer(M(HEADER_EDNS WWW A_IN OPT("\x02\x00", "\x00", "\x00\x00")), out, NA_DNS_UDP_PLAIN,
                          (na_dns_answer){.addresses = (const uint8_t(*)[16])many, .n = 64, .ttl = 30}, &truncated);
  assert_true(truncated && n <= NA_DNS_UDP_PLAIN);
  assert_int_equal(na_dns_get16(out + 2) & 0x200, 0x200);
  /* 512 bytes less the header, the question and EDNS hold this many records. */
  assert_int_equal(na_dns_get16(out + 6), (NA_DNS_UDP_PLAIN - 12 - (sizeof(WWW A_IN) - 1) - 11) / 16);
  assert_int_equal(na_dns_get16(out + 10), 1);
  free(out);
}

static void names_what_an_alias_stands_for(void **state) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  bool truncated;
  size_t n = write_answer(M(HEADER WWW A_IN), out, sizeof out,
                          (na_dns_answer){.addresses = v4, .n = 1, .ttl = 30, .alias = "www"}, &truncated);
  static const char expected[] = "\x12\x34\x85\x80\x00\x01\x00\x02\x00\x00\x00\x00" WWW A_IN
                                 "\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x1e\x00\x05\x03www\x00"
                                 "\xc0\x2d\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x0a\x00\x00\x01";
  assert_int_equal(n, sizeof expected - 1);
  assert_memory_equal(out, expected, n);
}

static void writes_errors(void **state) {
  uint8_t out[NA_DNS_UDP_PLAIN];
  message m = M(HEADER_EDNS WWW A_IN OPT("\x10\x00", "\x01", "\x00\x00"));
  na_dns_query q;
  na_dns_parse((const uint8_t *)m.bytes, m.n, &q);
  size_t n = na_dns_write_error((const uint8_t *)m.bytes, &q, NA_DNS_BADVERS, out);
  assert_int_equal(out[3] & 0xf, 0);
  assert_memory_equal(out + n - 11, "\x00\x00\x29\x10\x00\x01\x00\x00\x00\x00\x00", 11); /* the upper bits */
  n = na_dns_write_error((const uint8_t *)m.bytes, NULL, NA_DNS_FORMERR, out);
  assert_int_equal(n, NA_DNS_HEADER);
  assert_memory_equal(out, "\x12\x34\x81\x81\x00\x00\x00\x00\x00\x00\x00\x00", n);
}

static void knows_its_response(void **state) {
  static const char asked[] = HEADER WWW A_IN;
  static const struct {
    message response;
    bool is;
  } cases[] = {
      {M("\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00" WWW A_IN), true},
      {M("\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07"
         "example\x03"
         "COM\x00" A_IN),
       true},
      {M("\x12\x34\x81\x82\x00\x00\x00\x00\x00\x00\x00\x00"), true}, /* SERVFAIL without the question */
      {M("\x12\x34\x81\x80\x00\x00\x00\x00\x00\x00\x00\x00"), false},
      {M("\x12\x35\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00" WWW A_IN), false}, /* another id */
      {M("\x12\x34\x01\x80\x00\x01\x00\x00\x00\x00\x00\x00" WWW A_IN), false}, /* a query */
      {M("\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x03ftp\x07"
         "example\x03"
         "com\x00" A_IN),
       false},
      {M("\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00" WWW "\x00\x1c\x00\x01"), false},
      {M("\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x03www"), false},
      {M("\x12\x34\x81"), false},
  };
  for (size_t i = 0; i < COUNT(cases); i++)
    if (na_dns_is_response((const uint8_t *)cases[i].response.bytes, cases[i].response.n, (const uint8_t *)asked,
                           sizeof(WWW A_IN) - 1) != cases[i].is)
      fail_msg("case %zu", i);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_a_question),
      cmocka_unit_test(reads_edns),
      cmocka_unit_test(tells_what_is_no_query),
      cmocka_unit_test(bounds_names),
      cmocka_unit_test(takes_no_strange_label_for_a_host),
      cmocka_unit_test(echoes_the_question_as_it_was_spelt),
      cmocka_unit_test(goes_round),
      cmocka_unit_test(answers_edns_with_edns),
      cmocka_unit_test(says_that_not_all_fits),
      cmocka_unit_test(names_what_an_alias_stands_for),
      cmocka_unit_test(writes_errors),
      cmocka_unit_test(knows_its_response),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
