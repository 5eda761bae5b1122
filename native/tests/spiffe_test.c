/* SPDX-License-Identifier: Apache-2.0 */
#include "spiffe.h"

#include <string.h>

#include "cmocka_common.h"

static bool parses(const char *text, size_t n) {
  na_spiffe id;
  return na_spiffe_parse(text, n, &id);
}

static void takes_ids_apart(void **state) {
  const char *text = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";
  na_spiffe id;
  assert_true(na_spiffe_parse(text, strlen(text), &id));
  assert_true(na_str_eq(id.trust_domain, "cluster.local"));
  assert_true(na_str_eq(id.path, "/ns/default/sa/bookinfo-reviews"));
  assert_true(na_str_eq(id.namespace, "default"));
  assert_true(na_str_eq(id.service_account, "bookinfo-reviews"));
}

static void leaves_other_paths_whole(void **state) {
  const char *texts[] = {"spiffe://td", "spiffe://td/web/front", "spiffe://td/ns/a/sa", "spiffe://td/ns/a/sa/b/c",
                         "spiffe://td/ns/a/xx/b"};
  for (size_t i = 0; i < COUNT(texts); i++) {
    na_spiffe id;
    assert_true(na_spiffe_parse(texts[i], strlen(texts[i]), &id));
    assert_true(na_str_eq(id.trust_domain, "td"));
    assert_int_equal(id.namespace.n, 0);
    assert_int_equal(id.service_account.n, 0);
  }
}

static void refuses_what_is_no_id(void **state) {
  const char *texts[] = {
      "",
      "spiffe://",
      "spiffe:///ns/a/sa/b",
      "SPIFFE://td/a",
      "https://td/a",
      "spiffe://TD/a",
      "spiffe://td:8080/a",
      "spiffe://user@td/a",
      "spiffe://td/",
      "spiffe://td/a/",
      "spiffe://td//a",
      "spiffe://td/a/../b",
      "spiffe://td/./a",
      "spiffe://td/a?q",
      "spiffe://td/a#f",
      "spiffe://td/a%2fb",
      "spiffe://td/a b",
      "spiffe://td/\xc3\xa9",
  };
  for (size_t i = 0; i < COUNT(texts); i++)
    if (parses(texts[i], strlen(texts[i])))
      fail_msg("'%s' was taken", texts[i]);
  assert_false(parses("spiffe://td/a\0b", 15));
  assert_false(parses("spiffe://td\0/a", 14));
}

static void limits_lengths(void **state) {
  char text[4096] = "spiffe://td/";
  memset(text + 12, 'a', sizeof text - 12);
  assert_true(parses(text, NA_SPIFFE_MAX));
  assert_false(parses(text, NA_SPIFFE_MAX + 1));
  memset(text + 9, 'a', 255);
  text[9 + 255] = '/';
  assert_true(parses(text, 9 + 255 + 2));
  memset(text + 9, 'a', 256);
  text[9 + 256] = '/';
  assert_false(parses(text, 9 + 256 + 2));
}

static void finds_members_of_sets(void **state) {
  const char *set = "spiffe://td/a spiffe://td/b";
  assert_true(na_spiffe_in("spiffe://td/a", 13, set));
  assert_true(na_spiffe_in("spiffe://td/b", 13, set));
  assert_false(na_spiffe_in("spiffe://td/", 12, set));
  assert_false(na_spiffe_in("spiffe://td/ab", 14, set));
  assert_false(na_spiffe_in("spiffe://td/a spiffe://td/b", 27, set));
  assert_false(na_spiffe_in("spiffe://td/a", 13, ""));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(takes_ids_apart),       cmocka_unit_test(leaves_other_paths_whole),
      cmocka_unit_test(refuses_what_is_no_id), cmocka_unit_test(limits_lengths),
      cmocka_unit_test(finds_members_of_sets),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
