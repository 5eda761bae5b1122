/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of external authorization. That they are what others understand is tested with grpcio
 * (tests/unit/dataplane/test_engine_callouts.py); here are the malformed ones.
 */
#include "check_message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"

typedef struct bytes {
  const char *p;
  size_t n;
} bytes;

#define B(text)                                                                                                        \
  { text, sizeof(text) - 1 }

static int read_message(const char *p, size_t n) {
  na_check_response *response = malloc(sizeof *response);
  char *copy = malloc(n ? n : 1); /* its end is one that ASan sees */
  memcpy(copy, p, n);
  int rc = na_check_response_read((na_str){copy, (uint32_t)n}, response);
  if (!rc)
    na_check_response_clear(response);
  free(copy);
  free(response);
  return rc;
}

static void takes_what_is_whole(void **state) {
  const bytes table[] = {
      B(""),
      B("\x0a\x00"),                 /* a status without a code */
      B("\x0a\x02\x08\x07"),         /* code 7 */
      B("\x0a\x03\x08\x87\x00"),     /* in more bytes than it needs */
      B("\xf8\x07\x01"),             /* a field that nobody knows */
      B("\xfd\x07\x01\x02\x03\x04"), /* others, of each kind */
      B("\xf9\x07\x01\x02\x03\x04\x05\x06\x07\x08"),
      B("\xfa\x07\x01x"),
  };
  for (size_t i = 0; i < COUNT(table); i++)
    if (read_message(table[i].p, table[i].n))
      fail_msg("message %zu was refused", i);
}

static void refuses_what_is_malformed(void **state) {
  const bytes table[] = {
      B("\x0a"),                                         /* no length */
      B("\x0a\x05\x08"),                                 /* too short */
      B("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), /* a length beyond all bounds */
      B("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), /* a number beyond 64 bits */
      B("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"), /* in more than ten bytes */
      B("\x00\x00"),                                     /* field 0 */
      B("\x0b\x0c"),                                     /* groups */
      B("\x0e\x00"),                                     /* no type */
      B("\x08\x01"),                                     /* a status that is a number */
      B("\x0a\x02\x0a\x00"),                             /* a code that is a text */
      B("\x0a\x02\x08\x07\x12\x04\x0a\x02\x08\x63"),     /* HTTP status 99 */
      B("\x0a\x02\x08\x07\x12\x05\x0a\x03\x08\xd8\x04"), /* 600 */
      B("\x1a\x04\x12\x02\x18\x04"),                     /* an append_action that nobody knows */
      B("\x22\x02\x0a\x00"),                             /* metadata without a value */
      B("\x22\x07\x0a\x05\x0a\x01\x00\x12\x00"),         /* with a NUL in its name */
      B("\x22\x08\x0a\x06\x0a\x01x\x12\x01\x1a"),        /* cut off within a text */
      B("\x22\x09\x0a\x07\x0a\x01x\x12\x02\x1a\x01"),
  };
  for (size_t i = 0; i < COUNT(table); i++)
    assert_int_equal(read_message(table[i].p, table[i].n), -EBADMSG);
}

/* Metadata nested `depth` lists deep. */
static int nested(int depth) {
  char message[512];
  size_t n = sizeof message;
  message[--n] = 0; /* the innermost value: 0 under null_value */
  message[--n] = 8;
  size_t end = sizeof message;
  for (int i = 0; i < depth; i++) {
    const uint8_t value = (uint8_t)(end - n);
    message[--n] = (char)value;
    message[--n] = 0x0a; /* ListValue.values */
    const uint8_t list = (uint8_t)(end - n);
    message[--n] = (char)list;
    message[--n] = 0x32; /* Value.list_value */
  }
  const uint8_t value = (uint8_t)(end - n);
  message[--n] = (char)value;
  message[--n] = 0x12;
  message[--n] = 'x';
  message[--n] = 1;
  message[--n] = 0x0a;
  const uint8_t field = (uint8_t)(end - n);
  message[--n] = (char)field;
  message[--n] = 0x0a;
  const uint8_t all = (uint8_t)(end - n);
  message[--n] = (char)all;
  message[--n] = 0x22;
  return read_message(message + n, end - n);
}

static void bounds_depth_and_numbers(void **state) {
  assert_int_equal(nested(1), 0);
  assert_int_equal(nested(10), 0);
  assert_int_equal(nested(25), -EBADMSG);
  char *message = malloc(10 * (NA_MAX_CHECK_HEADERS + 1));
  size_t n = 0;
  for (int i = 0; i <= NA_MAX_CHECK_HEADERS; i++) {
    memcpy(message + n, "\x1a\x03\x2a\x01x", 5); /* each ok_response takes the place of the one before */
    n += 5;
  }
  assert_int_equal(read_message(message, n), 0);
  n = 0;
  message[n++] = 0x1a;
  const size_t body = 3 * (NA_MAX_CHECK_HEADERS + 1);
  message[n++] = (char)(body | 128);
  message[n++] = (char)(body >> 7);
  for (int i = 0; i <= NA_MAX_CHECK_HEADERS; i++) {
    memcpy(message + n, "\x2a\x01x", 3);
    n += 3;
  }
  assert_int_equal(read_message(message, n), -EBADMSG);
  free(message);
}

static void knows_utf8(void **state) {
  const bytes good[] = {B(""),
                        B("a\x7f"),
                        B("\xc2\x80"),
                        B("\xdf\xbf"),
                        B("\xe0\xa0\x80"),
                        B("\xed\x9f\xbf"),
                        B("\xef\xbf\xbf"),
                        B("\xf0\x90\x80\x80"),
                        B("\xf4\x8f\xbf\xbf")};
  const bytes bad[] = {B("\x80"),
                       B("\xc0\x80"),
                       B("\xc1\xbf"),
                       B("\xc2"),
                       B("\xc2\x41"),
                       B("\xe0\x9f\xbf"),
                       B("\xed\xa0\x80"),
                       B("\xef\xbf"),
                       B("\xf0\x8f\xbf\xbf"),
                       B("\xf4\x90\x80\x80"),
                       B("\xf5\x80\x80\x80"),
                       B("\xff"),
                       B("a\xfe")};
  for (size_t i = 0; i < COUNT(good); i++)
    assert_true(na_utf8_valid((na_str){good[i].p, (uint32_t)good[i].n}));
  for (size_t i = 0; i < COUNT(bad); i++)
    assert_false(na_utf8_valid((na_str){bad[i].p, (uint32_t)bad[i].n}));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(takes_what_is_whole),
      cmocka_unit_test(refuses_what_is_malformed),
      cmocka_unit_test(bounds_depth_and_numbers),
      cmocka_unit_test(knows_utf8),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
