/* SPDX-License-Identifier: Apache-2.0
 *
 * Following message bodies: every way in which their bytes can arrive gives the same.
 */
#include "http_body.h"

#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"

static const char chunked[] = "5\r\nhello\r\nA;x=y\r\n0123456789\r\n1\r\n!\r\n0\r\nx-end: 1\r\n\r\n";
static const char payload[] = "hello0123456789!";
static const char next[] = "GET /next";

static na_h1_body start(uint8_t kind, uint64_t length) {
  na_h1_head head = {.body = kind, .content_length = length};
  na_h1_body body;
  na_h1_body_init(&body, &head);
  return body;
}

/* Decode [from, to) of the message into out; returns the payload's length. */
static size_t decode(na_h1_body *body, const char *bytes, size_t n, char *out, size_t *taken) {
  na_h1_error error;
  char *copy = malloc(n ? n : 1); /* of its exact size, for the sanitizer */
  size_t length = 0;
  memcpy(copy, bytes, n);
  long rc = na_h1_body_decode(body, copy, n, &length, &error);
  assert_true(rc >= 0 && length <= (size_t)rc);
  memcpy(out, copy, length);
  free(copy);
  *taken = (size_t)rc;
  return length;
}

static void decodes_chunks_however_they_arrive(void **state) {
  char bytes[128], out[128];
  size_t n = strlen(chunked);
  memcpy(bytes, chunked, n);
  strcpy(bytes + n, next);
  size_t all = n + strlen(next);
  for (size_t first = 0; first <= n; first++)
    for (size_t second = first; second <= n; second++) {
      na_h1_body body = start(NA_BODY_CHUNKED, 0);
      size_t taken, got = decode(&body, bytes, first, out, &taken);
      assert_int_equal(taken, first);
      got += decode(&body, bytes + first, second - first, out + got, &taken);
      assert_int_equal(taken, second - first);
      assert_int_equal(body.done, second == n);
      got += decode(&body, bytes + second, all - second, out + got, &taken);
      assert_int_equal(taken, n - second); /* what follows is not the body's */
      assert_true(body.done);
      assert_int_equal(got, strlen(payload));
      assert_memory_equal(out, payload, got);
      assert_int_equal(body.bytes, got);
    }
}

static void follows_chunks_without_decoding(void **state) {
  na_h1_error error;
  for (size_t first = 0; first < strlen(chunked); first++) {
    na_h1_body body = start(NA_BODY_CHUNKED, 0);
    assert_int_equal(na_h1_body_feed(&body, chunked, first, &error), first);
    assert_false(body.done);
    assert_int_equal(na_h1_body_feed(&body, chunked + first, strlen(chunked) - first, &error), strlen(chunked) - first);
    assert_true(body.done);
    assert_int_equal(body.bytes, strlen(payload));
    assert_int_equal(na_h1_body_feed(&body, next, 3, &error), 0);
  }
}

static void refuses_bad_chunks(void **state) {
  static const char *const bad[] = {"x\r\n", "5\nhello", "5\r\nhelloX", "-1\r\n", "10000000000000000\r\n", "0\r\n\n"};
  for (size_t i = 0; i < COUNT(bad); i++) {
    char copy[64];
    size_t length;
    na_h1_error error = {0};
    na_h1_body body = start(NA_BODY_CHUNKED, 0);
    assert_int_equal(na_h1_body_feed(&body, bad[i], strlen(bad[i]), &error), -1);
    assert_int_equal(error.status, 400);
    body = start(NA_BODY_CHUNKED, 0);
    strcpy(copy, bad[i]);
    assert_int_equal(na_h1_body_decode(&body, copy, strlen(copy), &length, &error), -1);
  }
}

static void follows_lengths(void **state) {
  na_h1_error error;
  na_h1_body body = start(NA_BODY_LENGTH, 10);
  assert_int_equal(na_h1_body_feed(&body, payload, 4, &error), 4);
  assert_false(body.done);
  assert_int_equal(na_h1_body_feed(&body, payload, 16, &error), 6);
  assert_true(body.done);
  assert_int_equal(body.bytes, 10);
  assert_true(start(NA_BODY_LENGTH, 0).done);
  assert_true(start(NA_BODY_NONE, 0).done);
  body = start(NA_BODY_UNTIL_CLOSE, 0);
  assert_int_equal(na_h1_body_feed(&body, payload, 16, &error), 16);
  assert_false(body.done);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(decodes_chunks_however_they_arrive),
      cmocka_unit_test(follows_chunks_without_decoding),
      cmocka_unit_test(refuses_bad_chunks),
      cmocka_unit_test(follows_lengths),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
