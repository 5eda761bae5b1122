/* SPDX-License-Identifier: Apache-2.0
 *
 * Values of headers with command operators: what is read, what is refused, what is written.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_common.h"
#include "header_format.h"
#include "router.h"

/* Writes headers' names as they are asked for, and nothing of REQ(none); a port is 8080. */
static void write_test(const na_format_source *source, const na_format_part *part, na_out *out) {
  if (part->command == NA_FORMAT_DOWNSTREAM_REMOTE_PORT)
    na_out_u64(out, 8080);
  else if (part->command != NA_FORMAT_REQ)
    na_out_cstr(out, "?");
  else if (!na_str_eq(part->text, "none"))
    na_out_str(out, part->text), na_out_str(out, part->other);
}

static const na_format_source test_source = {write_test};

static const struct {
  const char *text, *written;
} good[] = {
    {"%PROTOCOL%", "?"},
    {"plain", "plain"},
    {"100%%", "100%"},
    {"%%%%", "%%"},
    {"a %REQ(x-user)% b", "a x-user b"},
    {"%REQ(X?Y)%", "XY"},
    {"%REQ(:authority)%", ":authority"},
    {"%REQ(x-user):3%", "x-u"},
    {"%REQ(x-user):300%", "x-user"},
    {"%DOWNSTREAM_REMOTE_PORT%%%%DOWNSTREAM_REMOTE_PORT%", "8080%8080"},
    {"%REQ(none)%", ""},
    {"%START_TIME%", "?"},
    {"%START_TIME(%Y/%m/%dT%H:%M:%S.%3f %s)%", "?"},
    {"%DOWNSTREAM_REMOTE_PORT():2%", NULL},
    {"%REQ%", NULL},
    {"%REQ()%", NULL},
    {"%REQ(a b)%", NULL},
    {"%REQ(?b)%", NULL},
    {"%REQ(a?)%", NULL},
    {"%REQ(:)%", NULL},
    {"%REQ(a", NULL},
    {"%REQ(a)", NULL},
    {"%REQ(a):%", NULL},
    {"%REQ(a):0%", NULL},
    {"%REQ(a):-1%", NULL},
    {"%REQ(a):99999999999%", NULL},
    {"%START_TIME(%n)%", NULL},
    {"%START_TIME(%)%", NULL},
    {"%START_TIME(%0f)%", NULL},
    {"%NO_SUCH%", NULL},
    {"%PROTOCOLS%", NULL},
    {"%protocol%", NULL},
    {"50% off", NULL},
    {"%", NULL},
};

static void reads_and_writes_values(void **state) {
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    na_format *format = NULL;
    char error[160] = "", text[100];
    int rc = na_format_new(good[i].text, &format, error, sizeof error);
    if (rc != (good[i].written ? 0 : -EINVAL) || (rc && !error[0]))
      fail_msg("%s: %d %s", good[i].text, rc, error);
    if (rc)
      continue;
    na_out out = {.p = text, .size = sizeof text};
    na_format_write(format, &test_source, &out);
    text[out.n] = 0;
    assert_string_equal(text, good[i].written);
    assert_int_equal(na_format_is_empty(format, &test_source), !out.n);
    na_format_free(format);
  }
}

static void has_a_bound(void **state) {
  char text[8 * NA_MAX_FORMAT_PARTS + 16] = "", error[160];
  na_format *format;
  for (int i = 0; i < NA_MAX_FORMAT_PARTS / 2; i++)
    strcat(text, "%REQ(a)%b");
  assert_int_equal(na_format_new(text, &format, error, sizeof error), 0);
  na_format_free(format);
  strcat(text, "%REQ(a)%");
  assert_int_equal(na_format_new(text, &format, error, sizeof error), -EINVAL);
  assert_string_equal(error, "more than 64 pieces");
}

static const struct {
  const char *form, *written;
} times[] = {
    {"", "2018-12-18T01:02:03.045Z"},
    {"%s", "1545094923"},
    {"%s.%6f", "1545094923.045678"},
    {"%1f%2f%9f", "004045678000"},
    {"%Y/%m/%d %H:%M:%S %Z", "2018/12/18 01:02:03 GMT"},
    {"100", "100"},
};

static void writes_times(void **state) {
  for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
    char text[100];
    na_out out = {.p = text, .size = sizeof text};
    na_format_time(na_str_of(times[i].form), 1545094923045678, &out);
    text[out.n] = 0;
    assert_string_equal(text, times[i].written);
  }
}

static const struct {
  enum na_header_op op;
  const char *value, *written;
} changes[] = {
    {NA_HEADER_SET, "%REQ(b)%", "a: b\r\n"},
    {NA_HEADER_SET, "%REQ(none)%", "a: 1\r\n"},
    {NA_HEADER_ADD, "%REQ(b)%", "a: 1\r\na: b\r\n"},
    {NA_HEADER_ADD, "%REQ(none)%", "a: 1\r\n"},
    {NA_HEADER_SET, "", "a: \r\n"},
    {NA_HEADER_ADD_IF_ABSENT, "%REQ(b)%", "a: 1\r\n"},
};

static void a_header_stays_when_there_is_nothing_to_set(void **state) {
  for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
    na_vhost *vhost;
    char text[100];
    const na_header header = {.name = na_str_of("a"), .value = na_str_of("1")};
    assert_int_equal(na_vhost_new("v", 0, &vhost), 0);
    assert_int_equal(na_vhost_header(vhost, NA_REQUEST, changes[i].op, "a", changes[i].value), 0);
    na_header_levels levels = {{&vhost->mutations[NA_REQUEST]}, &test_source};
    na_out out = {.p = text, .size = sizeof text};
    na_write_headers(&header, 1, NULL, &levels, (na_str){0}, &out);
    text[out.n] = 0;
    assert_string_equal(text, changes[i].written);
    na_vhost_free(vhost);
  }
}

static void names_the_header_that_cannot_be_made(void **state) {
  na_vhost *vhost;
  assert_int_equal(na_vhost_new("v", 0, &vhost), 0);
  assert_int_equal(na_vhost_header(vhost, NA_REQUEST, NA_HEADER_SET, "a", "%NONE%"), -EINVAL);
  assert_string_equal(na_vhost_error(vhost), "value of header 'a': %NONE% is no command that is known here");
  assert_int_equal(na_vhost_header(vhost, NA_REQUEST, NA_HEADER_SET, "host", "%REQ(a)%"), -EINVAL);
  na_vhost_free(vhost);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_and_writes_values),
      cmocka_unit_test(has_a_bound),
      cmocka_unit_test(writes_times),
      cmocka_unit_test(a_header_stays_when_there_is_nothing_to_set),
      cmocka_unit_test(names_the_header_that_cannot_be_made),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
