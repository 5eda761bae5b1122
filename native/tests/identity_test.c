/* SPDX-License-Identifier: Apache-2.0
 *
 * Identities: what can be one, and how they come and go.
 */
#include "engine_rig.h"
#include "identity.h"
#include "pki.h"

#define ID "spiffe://cluster.local/ns/x/sa/a"

static int set(rig *r, const credential *leaf, const char *key, const char *bundle) {
  return na_identity_set(r->engine, "a", leaf->chain, key, bundle, NULL, 0);
}

static void refused(rig *r, int got, int error, const char *why) {
  assert_int_equal(got, error);
  assert_has(na_engine_error(r->engine), "identity 'a'");
  assert_has(na_engine_error(r->engine), why);
}

static void says_what_is_wrong(void **state) {
  rig r = rig_start(NULL);
  credential ca = new_ca("root"), other = new_leaf(&ca, &(leaf_spec){.uris = {ID}});
  credential leaf = new_leaf(&ca, &(leaf_spec){.uris = {ID}});
  refused(&r, set(&r, &leaf, other.key_pem, ca.chain), -EINVAL, "not the certificate's");
  refused(&r, set(&r, &leaf, "nonsense", ca.chain), -EINVAL, "not a private key");
  refused(&r, set(&r, &leaf, leaf.key_pem, ""), -EINVAL, "trust bundle holds no certificate");
  refused(&r, na_identity_set(r.engine, "a", "", leaf.key_pem, ca.chain, NULL, 0), -EINVAL, "chain holds no");
  const struct {
    leaf_spec spec;
    int error;
    const char *why;
  } cases[] = {
      {{.uris = {ID}, .from = -100, .to = -10}, -EKEYEXPIRED, "has expired"},
      {{.uris = {NULL}}, -EINVAL, "no URI SAN"},
      {{.uris = {ID, ID "2"}}, -EINVAL, "more than one URI SAN"},
      {{.uris = {ID "\0.evil"}, .uri_bytes = sizeof ID + 5}, -EINVAL, "NUL"},
      {{.uris = {"https://cluster.local"}}, -EINVAL, "not a SPIFFE ID"},
      {{.uris = {ID}, .is_ca = true}, -EINVAL, "a CA's"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    credential bad = new_leaf(&ca, &cases[i].spec);
    refused(&r, set(&r, &bad, bad.key_pem, ca.chain), cases[i].error, cases[i].why);
    free_credential(&bad);
  }
  assert_int_equal(na_engine_committed(r.engine), 0);
  free_credential(&leaf);
  free_credential(&other);
  free_credential(&ca);
  rig_stop(&r);
}

static void comes_and_goes(void **state) {
  rig r = rig_start(NULL);
  credential ca = new_ca("root"), leaf = new_leaf(&ca, &(leaf_spec){.uris = {ID}});
  assert_int_equal(na_identity_remove(r.engine, "a"), -ENOENT);
  assert_int_equal(set(&r, &leaf, leaf.key_pem, ca.chain), 0);
  assert_int_equal(set(&r, &leaf, leaf.key_pem, ca.chain), 0);
  assert_int_equal(na_identity_remove(r.engine, "a"), 0);
  assert_int_equal(na_identity_remove(r.engine, "a"), -ENOENT);
  free_credential(&leaf);
  free_credential(&ca);
  rig_stop(&r);
}

static void trusts_domains(void **state) {
  credential ca = new_ca("root"), leaf = new_leaf(&ca, &(leaf_spec){.uris = {ID}});
  na_identity_args args = {.name = "a", .chain_pem = leaf.chain, .key_pem = leaf.key_pem, .bundle_pem = ca.chain};
  char why[128];
  na_identity *identity;
  assert_int_equal(na_identity_create(&args, why, sizeof why, &identity), 0);
  assert_string_equal(identity->uri, ID);
  assert_true(na_identity_trusts(identity, na_str_of("cluster.local")));
  assert_false(na_identity_trusts(identity, na_str_of("cluster.locals")));
  na_identity_unref(identity);
  const char *domains[] = {"one", "two"};
  args.trust_domains = domains;
  args.n = 2;
  assert_int_equal(na_identity_create(&args, why, sizeof why, &identity), 0);
  assert_true(na_identity_trusts(identity, na_str_of("two")));
  assert_false(na_identity_trusts(identity, na_str_of("cluster.local")));
  na_identity_unref(identity);
  free_credential(&leaf);
  free_credential(&ca);
}

static void workloads_are_told_once(void **state) {
  rig r = rig_start(NULL);
  assert_int_equal(na_workload_identity(r.engine, 99, ID), -ENOENT);
  assert_int_equal(na_workload_identity(r.engine, 1, ""), -EINVAL);
  assert_int_equal(na_workload_identity(r.engine, 1, ID), 0);
  assert_int_equal(na_workload_identity(r.engine, 1, ID), 0);
  assert_int_equal(na_workload_identity(r.engine, 1, ID "2"), -EEXIST);
  assert_int_equal(na_workload_baggage(r.engine, 1, "a=b\r\nx: y"), -EINVAL);
  char large[NA_MAX_BAGGAGE + 2];
  memset(large, 'a', sizeof large - 1);
  large[sizeof large - 1] = '\0';
  assert_int_equal(na_workload_baggage(r.engine, 1, large), -EINVAL);
  assert_int_equal(na_workload_baggage(r.engine, 1, large + 1), 0);
  rig_stop(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(says_what_is_wrong),
      cmocka_unit_test(comes_and_goes),
      cmocka_unit_test(trusts_domains),
      cmocka_unit_test(workloads_are_told_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
