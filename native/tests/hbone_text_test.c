/* SPDX-License-Identifier: Apache-2.0
 *
 * What HBONE peers write: authorities, baggage, forwarded, traceparent.
 */
#include "hbone_authority.h"
#include "hbone_headers.h"

#include "cmocka_common.h"

static void reads_authorities(void **state) {
  const struct {
    const char *text;
    const char *formatted; /* NULL: a host */
    const char *host;
    uint16_t port;
  } cases[] = {
      {"10.1.2.3:80", "10.1.2.3:80", "", 80},
      {"[fd00::1]:65535", "[fd00::1]:65535", "", 65535},
      {"[::ffff:10.1.2.3]:1", "10.1.2.3:1", "", 1},
      {"reviews.default.svc.cluster.local:9080", NULL, "reviews.default.svc.cluster.local", 9080},
      {"1.2.3.com:1", NULL, "1.2.3.com", 1},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_hbone_authority got;
    char text[NA_ADDRESS_TEXT];
    if (!na_hbone_parse_authority(na_str_of(cases[i].text), &got))
      fail_msg("'%s' was refused", cases[i].text);
    assert_int_equal(got.address.port, cases[i].port);
    assert_int_equal(got.host.n, strlen(cases[i].host));
    assert_true(got.host.n == 0 || na_str_eq(got.host, cases[i].host));
    na_address_format(&got.address, text);
    if (cases[i].formatted)
      assert_string_equal(text, cases[i].formatted);
  }
}

static void refuses_authorities(void **state) {
  const char *texts[] = {"",
                         ":",
                         ":80",
                         "10.1.2.3",
                         "10.1.2.3:",
                         "10.1.2.3:0",
                         "h:080",
                         "h:65536",
                         "h:+80",
                         "h:8 0",
                         "h:999999",
                         "[::1]",
                         "[::1:80",
                         "::1:80",
                         "[]:80",
                         "[fe80::1%lo]:80",
                         "10.1.2:80",
                         "10.1.2.3.4:80",
                         "256.1.1.1:80",
                         "u@h:80",
                         "h/p:80",
                         "h..x:80",
                         ".h:80",
                         "http://h:80",
                         " h:80",
                         "010.1.1.1:80"};
  for (size_t i = 0; i < COUNT(texts); i++) {
    na_hbone_authority got;
    if (na_hbone_parse_authority(na_str_of(texts[i]), &got))
      fail_msg("'%s' was taken", texts[i]);
  }
  na_hbone_authority got;
  assert_false(na_hbone_parse_authority((na_str){"10.0.0.1\0:80", 12}, &got));
}

static void finds_in_baggage(void **state) {
  na_str baggage = na_str_of("k8s.namespace.name=x , service.name = web;meta=1,empty=,last=l");
  assert_true(na_str_eq(na_baggage_find(baggage, "k8s.namespace.name"), "x"));
  assert_true(na_str_eq(na_baggage_find(baggage, "service.name"), "web"));
  assert_true(na_str_eq(na_baggage_find(baggage, "empty"), ""));
  assert_true(na_str_eq(na_baggage_find(baggage, "last"), "l"));
  assert_int_equal(na_baggage_find(baggage, "name").n, 0);
  assert_int_equal(na_baggage_find(na_str_of(",,=;,"), "x").n, 0);
}

static void knows_traceparents(void **state) {
  char made[NA_TRACEPARENT_TEXT];
  na_traceparent_new(0, 0, 0, made);
  assert_true(na_traceparent_valid(na_str_of(made)));
  assert_true(na_traceparent_valid(na_str_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")));
  assert_true(na_traceparent_valid(na_str_of("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more")));
  const char *wrong[] = {"",
                         "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                         "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                         "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                         "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                         "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                         "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"};
  for (size_t i = 0; i < COUNT(wrong); i++)
    assert_false(na_traceparent_valid(na_str_of(wrong[i])));
}

static void formats_forwarded(void **state) {
  na_hbone_authority client;
  char out[128];
  assert_true(na_hbone_parse_authority(na_str_of("[fd00::1]:99"), &client));
  na_forwarded_format(&client.address, na_str_of("web.x"), out, sizeof out);
  assert_string_equal(out, "for=\"[fd00::1]:99\";host=web.x");
  na_forwarded_format(&client.address, na_str_of("web.x:80"), out, sizeof out);
  assert_string_equal(out, "for=\"[fd00::1]:99\";host=\"web.x:80\"");
  na_forwarded_format(&client.address, na_str_of("a\";by=evil"), out, sizeof out);
  assert_string_equal(out, "for=\"[fd00::1]:99\"");
  assert_int_equal(na_forwarded_format(&client.address, na_str_of("web"), out, 8), 7);
}

static void reads_forwarded(void **state) {
  const char *cases[][2] = {{"for=\"10.0.0.1:80\";host=x", "10.0.0.1:80"},
                            {"For=10.0.0.1, for=10.0.0.2", "10.0.0.1"},
                            {"for=\"[fd00::1]:9\"", "[fd00::1]:9"},
                            {"for=_hidden;proto=http", "_hidden"},
                            {"for=\"unended", "unended"}};
  for (size_t i = 0; i < COUNT(cases); i++)
    assert_true(na_str_eq(na_forwarded_client(na_str_of(cases[i][0])), cases[i][1]));
  assert_int_equal(na_forwarded_client(na_str_of("host=x")).n, 0);
  assert_int_equal(na_forwarded_client(na_str_of("for=")).n, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_authorities),  cmocka_unit_test(refuses_authorities), cmocka_unit_test(finds_in_baggage),
      cmocka_unit_test(knows_traceparents), cmocka_unit_test(formats_forwarded),   cmocka_unit_test(reads_forwarded),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
