/* SPDX-License-Identifier: Apache-2.0
 *
 * Which name a question is answered with: wildcards, search lists, namespaces.
 */
#include "dns_names.h"

#include <errno.h>
#include <string.h>

#include "cmocka_common.h"

#define SEARCH "shop.svc.cluster.local svc.cluster.local cluster.local"

static const uint8_t one[2][16] = {{[0] = 0xfd, [15] = 1}, {[10] = 0xff, 0xff, 10, 0, 0, 1}};

static na_map names;

static void add(const char *key) {
  na_dns_name *name;
  assert_int_equal(na_dns_name_new(key, one[0], 2, &name), 0);
  assert_int_equal(na_map_put(&names, name->key, name->key_n, name), 0);
}

static int set_up(void **state) {
  na_map_init(&names, &na_dns_name_ops);
  add("web.shop.svc.cluster.local");
  add("db.data.svc.cluster.local");
  add("api.example.com");
  add("api.example.com/shop");
  add("private.example.com/other");
  add("*.example.com");
  add("*.deep.example.com");
  return 0;
}

static int tear_down(void **state) {
  na_map_clear(&names);
  return 0;
}

static void finds_names(void **state) {
  static const struct {
    const char *question;
    const char *key; /* NULL: none */
    const char *alias;
  } cases[] = {
      {"web.shop.svc.cluster.local", "web.shop.svc.cluster.local", NULL},
      {"web", "web.shop.svc.cluster.local", NULL},
      {"db", NULL, NULL}, /* of another namespace */
      {"db.data", "db.data.svc.cluster.local", NULL},
      {"db.data.svc", "db.data.svc.cluster.local", NULL},
      {"db.data.shop.svc.cluster.local", NULL, NULL}, /* may be a pod's of a headless service */
      {"api.example.com", "api.example.com/shop", NULL},
      {"a.example.com", "*.example.com", NULL},
      {"a.b.example.com", "*.example.com", NULL},
      {"a.deep.example.com", "*.deep.example.com", NULL},
      {"deep.example.com", "*.example.com", NULL},
      {"private.example.com", "*.example.com", NULL},
      {"example.com", NULL, NULL},
      {"xexample.com", NULL, NULL},
      {"api.example.com.shop.svc.cluster.local", "api.example.com/shop", "api.example.com"},
      {"b.example.com.svc.cluster.local", "*.example.com", "b.example.com"},
      {"b.example.com.cluster.local", "*.example.com", "b.example.com"},
      {"example.com.cluster.local", NULL, NULL},
      {"cluster.local", NULL, NULL},
      {".cluster.local", NULL, NULL},
      {"*.example.com", "*.example.com", NULL},
      {"", NULL, NULL},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_dns_match match;
    bool found = na_dns_find(&names, cases[i].question, SEARCH, &match);
    if (found != (cases[i].key != NULL))
      fail_msg("%s is %s", cases[i].question, found ? match.name->key : "not found");
    if (!found)
      continue;
    assert_string_equal(match.name->key, cases[i].key);
    if (cases[i].alias)
      assert_string_equal(match.alias, cases[i].alias);
    else
      assert_null(match.alias);
  }
}

static void does_without_a_search_list(void **state) {
  na_dns_match match;
  assert_false(na_dns_find(&names, "web", "", &match));
  assert_true(na_dns_find(&names, "api.example.com", "", &match));
  assert_string_equal(match.name->key, "api.example.com");
}

static void bounds_what_it_puts_together(void **state) {
  char question[NA_DNS_NAME_TEXT], search[2 * NA_DNS_NAME_TEXT];
  na_dns_match match;
  memset(question, 'a', sizeof question - 1);
  for (size_t i = 0; i < sizeof question; i += 2)
    question[i] = '.';
  question[sizeof question - 1] = 0;
  memset(search, 'b', sizeof search - 1);
  search[sizeof search - 1] = 0;
  assert_false(na_dns_find(&names, question, search, &match));
  assert_false(na_dns_find(&names, question, SEARCH, &match));
}

static void sorts_addresses_by_family(void **state) {
  na_dns_name *name = na_map_find(&names, "db.data.svc.cluster.local", 25);
  assert_int_equal(name->n[0], 1);
  assert_int_equal(name->n[1], 1);
  assert_memory_equal(name->addresses[0][0], one[1], 16);
  assert_memory_equal(name->addresses[1][0], one[0], 16);
}

static void refuses_what_nobody_can_ask_for(void **state) {
  static const char *const bad[] = {"", ".", "a.", ".a", "a..b", "A.b", "a b", "a\x01", "/x", "a.b/"};
  static uint8_t many[NA_DNS_MAX_ADDRESSES + 1][16];
  char longest[NA_DNS_NAME_TEXT + 1];
  na_dns_name *name;
  for (size_t i = 0; i < COUNT(bad); i++)
    if (na_dns_name_new(bad[i], one[0], 1, &name) != -EINVAL)
      fail_msg("took '%s'", bad[i]);
  memset(longest, 'a', sizeof longest - 1);
  longest[63] = longest[127] = longest[191] = '.';
  longest[sizeof longest - 1] = 0;
  assert_int_equal(na_dns_name_new(longest, one[0], 1, &name), -EINVAL);
  assert_int_equal(na_dns_name_new("a", many[0], NA_DNS_MAX_ADDRESSES + 1, &name), -EINVAL);
  assert_int_equal(na_dns_name_new("a", many[0], NA_DNS_MAX_ADDRESSES, &name), 0);
  na_dns_name_ops.unref(name);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finds_names),
      cmocka_unit_test(does_without_a_search_list),
      cmocka_unit_test(bounds_what_it_puts_together),
      cmocka_unit_test(sorts_addresses_by_family),
      cmocka_unit_test(refuses_what_nobody_can_ask_for),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
