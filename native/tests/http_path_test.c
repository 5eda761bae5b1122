/* SPDX-License-Identifier: Apache-2.0
 *
 * The normal form of paths.
 */
#include "http_path.h"

#include <nodeagent/engine.h>
#include <string.h>

#include "cmocka_common.h"

static void finds_the_normal_form(void **state) {
  static const struct {
    const char *path, *normal;
  } cases[] = {
      {"/", "/"},
      {"/a/b", "/a/b"},
      {"/a/./b", "/a/b"},
      {"/a/../b", "/b"},
      {"/a/..", "/"},
      {"/a/.", "/a/"},
      {"/..", "/"},
      {"/../../a", "/a"},
      {"/a/b/../../c", "/c"},
      {"/a/b/..", "/a/"},
      {"/.", "/"},
      {"/...", "/..."},
      {"/.a/..b/c..", "/.a/..b/c.."},
      {"/a//b", "/a//b"}, /* BASE does not merge slashes */
      {"/a//../b", "/a/b"},
      {"/%2e/a", "/a"},
      {"/a/%2E%2e/b", "/b"},
      {"/a/.%2e/b", "/b"},
      {"/%61dmin", "/admin"},
      {"/%41%5f%7E", "/A_~"},
      {"/a%2fb", "/a%2fb"}, /* an encoded slash is none */
      {"/a%2Fb", "/a%2Fb"},
      {"/a%5cb", "/a%5cb"},
      {"/a\\b", "/a/b"},
      {"\\a", "/a"},
      {"/a\\..\\b", "/b"},
      {"/%", "/%"},
      {"/%4", "/%4"},
      {"/%zz", "/%zz"},
      {"/%252e", "/%252e"},
      /* What is no encoding does not become one. */
      {"/%2%65/", "/%2%65/"},
      {"/%%32e/", "/%%32e/"},
      {"/%%32%65/", "/%%32e/"},
      {"/a|b", "/a%7Cb"},
      {"/\"<>^`{}", "/%22%3C%3E%5E%60%7B%7D"},
      {"/a%7cb", "/a%7cb"},
      {"/[a]!$&'()*+,;=:@~_-", "/[a]!$&'()*+,;=:@~_-"},
      {"/a;b=c/../d", "/d"},
      {"/x/..;/admin", "/admin"}, /* parameters hide no dots */
      {"/x/..;a=b;c/admin", "/admin"},
      {"/x/.;/admin", "/x/admin"},
      {"/x/%2e%2e;/admin", "/admin"},
      {"/x\\..;\\admin", "/admin"},
      {"/..;", "/"},
      {"/x/...;/..a;/;..", "/x/...;/..a;/;.."},
      {"*", "*"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    char out[128], again[128];
    na_str path = na_str_of(cases[i].path);
    long n = na_path_normalise(path, 0, out);
    assert_true(n >= 0 && n <= (long)path.n * NA_PATH_GROWTH);
    out[n] = '\0';
    if (strcmp(out, cases[i].normal) != 0)
      fail_msg("%s became %s, not %s", cases[i].path, out, cases[i].normal);
    if (na_path_is_plain(path))
      assert_string_equal(out, cases[i].path);
    assert_int_equal(na_path_normalise((na_str){out, (uint32_t)n}, 0, again), n); /* it is the normal form */
    assert_memory_equal(again, cases[i].normal, (size_t)n);
  }
}

static void reads_slashes_as_wanted(void **state) {
  static const struct {
    uint32_t flags;
    const char *path, *normal; /* NULL: refused */
  } cases[] = {
      {NA_SLASHES_MERGE, "//", "/"},
      {NA_SLASHES_MERGE, "//a///b//", "/a/b/"},
      {NA_SLASHES_MERGE, "/a//../b", "/a/b"}, /* dots first, as Envoy */
      {NA_SLASHES_MERGE, "/a\\\\b", "/a/b"},
      {NA_SLASHES_MERGE, "/a%2f%2Fb", "/a%2f%2Fb"},
      {NA_SLASHES_DECODE, "/a%2fb%5Cc", "/a/b/c"},
      {NA_SLASHES_DECODE, "/a%2fb/../c", "/a/c"},
      {NA_SLASHES_DECODE, "/a%2f..%2fb", "/b"},
      {NA_SLASHES_DECODE, "/a%252fb", "/a%252fb"},
      {NA_SLASHES_DECODE, "/a%2f/b", "/a//b"},
      {NA_SLASHES_DECODE | NA_SLASHES_MERGE, "/a%2f/%5c%2Fb", "/a/b"},
      {NA_SLASHES_REJECT, "/a%2fb", NULL},
      {NA_SLASHES_REJECT, "/a%5Cb", NULL},
      {NA_SLASHES_REJECT, "/a//b", "/a//b"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    char out[128];
    long n = na_path_normalise(na_str_of(cases[i].path), cases[i].flags, out);
    if (!cases[i].normal) {
      assert_int_equal(n, -1);
      continue;
    }
    assert_true(n >= 0);
    out[n] = '\0';
    assert_string_equal(out, cases[i].normal);
  }
}

static void refuses_nul(void **state) {
  char out[64];
  assert_int_equal(na_path_normalise(na_str_of("/a%00"), 0, out), -1);
  assert_int_equal(na_path_normalise(na_str_of("/%00/.."), 0, out), -1);
}

static void knows_what_needs_no_look(void **state) {
  static const char *const plain[] = {"/", "/a/b.c", "/a..b", "*", ""};
  static const char *const other[] = {"/.a", "/a/..", "/%41", "/a\\b", ".", "/a|b"};
  for (size_t i = 0; i < COUNT(plain); i++)
    assert_true(na_path_is_plain(na_str_of(plain[i])));
  for (size_t i = 0; i < COUNT(other); i++)
    assert_false(na_path_is_plain(na_str_of(other[i])));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finds_the_normal_form),
      cmocka_unit_test(reads_slashes_as_wanted),
      cmocka_unit_test(refuses_nul),
      cmocka_unit_test(knows_what_needs_no_look),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
