/* SPDX-License-Identifier: Apache-2.0
 *
 * Snapshots: what a builder refuses, and that what is in force stays as it was.
 */
#include "snapshot_rig.h"

/* ---- refusals ----------------------------------------------------------------------------------------------- */

/* The commit fails, says why, and nothing changes. */
static void assert_refused(na_builder *b, int expected, const char *why) {
  const na_snapshot *before = current();
  uint64_t committed = na_snapshots_committed(&registry);
  assert_int_equal(na_builder_commit(b), expected);
  if (!strstr(registry.error, why))
    fail_msg("'%s' does not say '%s'", registry.error, why);
  assert_ptr_equal(current(), before);
  assert_int_equal(na_snapshots_committed(&registry), committed);
}

static void refuses_dangling_references(void **state) {
  na_builder *b = begin();
  na_builder_table(b, "80", 1, 0);
  na_builder_vhost(b, "80", vhost_to("va", "a", "nowhere"));
  assert_refused(b, -EINVAL, "route 'r' of virtual host 'va' in route table '80' leads to cluster 'nowhere'");

  b = begin();
  na_destination_config tcp = {.tag = 1};
  na_builder_destination(b, "v", vip, 80, &tcp, (const char *[]){"nowhere"}, (uint32_t[]){1}, 1);
  assert_refused(b, -EINVAL, "destination with port 80 of view 'v' leads to cluster 'nowhere'");

  b = begin();
  na_destination_config http = {.protocol = NA_PROTOCOL_HTTP, .table = "81"};
  na_builder_destination(b, "v", vip, 80, &http, NULL, NULL, 0);
  assert_refused(b, -EINVAL, "route table '81'");
}

static void refuses_removal_of_what_is_in_use(void **state) {
  build_mesh();
  na_builder *b = begin();
  na_builder_cluster_remove(b, "b");
  assert_refused(b, -EINVAL, "virtual host 'vb' in route table '80' leads to cluster 'b'");
  b = begin();
  na_builder_table_remove(b, "80");
  assert_refused(b, -EINVAL, "route table '80'");
  /* With their users they may go. */
  b = begin();
  na_builder_vhost_remove(b, "80", "vb");
  na_builder_cluster_remove(b, "b");
  commit(b);
  b = begin();
  na_builder_view_remove(b, "v");
  na_builder_table_remove(b, "80");
  na_builder_cluster_remove(b, "a");
  commit(b);
  assert_null(na_snapshots_cluster(&registry, "a"));
}

static void refuses_routes_without_action(void **state) {
  na_builder *b = begin();
  na_vhost *vhost;
  na_vhost_new("v", 1, &vhost);
  na_vhost_route(vhost, "empty", 1);
  na_builder_table(b, "80", 1, 0);
  na_builder_vhost(b, "80", vhost);
  assert_refused(b, -EINVAL, "route 'empty' of virtual host 'v' in route table '80' has no action");
}

static void refuses_taken_domains(void **state) {
  build_mesh();
  na_builder *b = begin();
  assert_int_equal(na_builder_vhost(b, "80", vhost_to("new", "A.Example", "a")), -EEXIST);
  assert_string_equal(na_builder_error(b),
                      "domain 'a.example' of virtual host 'new' in route table '80' belongs to 'va'");
  /* A replacement that conflicts leaves the old one whole. */
  assert_int_equal(na_builder_vhost(b, "80", vhost_to("vb", "a.example", "a")), -EEXIST);
  commit(b);
  assert_string_equal(find_vhost("b.example")->name, "vb");
  /* A domain may move when its owner gives it up first. */
  b = begin();
  assert_int_equal(na_builder_vhost_remove(b, "80", "va"), 0);
  assert_int_equal(na_builder_vhost(b, "80", vhost_to("new", "a.example", "a")), 0);
  commit(b);
  assert_string_equal(find_vhost("a.example")->name, "new");
}

static void refuses_what_is_not_there(void **state) {
  na_builder *b = begin();
  na_endpoint e = endpoint(1);
  assert_int_equal(na_builder_endpoints(b, "x", &e, 1), -ENOENT);
  assert_string_equal(na_builder_error(b), "cluster 'x' does not exist; add it before its endpoints");
  assert_int_equal(na_builder_cluster_remove(b, "x"), -ENOENT);
  assert_int_equal(na_builder_table_remove(b, "x"), -ENOENT);
  assert_int_equal(na_builder_vhost(b, "x", vhost_to("v", "a", "c")), -ENOENT);
  assert_int_equal(na_builder_vhost_remove(b, "x", "v"), -ENOENT);
  assert_int_equal(na_builder_host_unknown(b, "x", "h", 1), -ENOENT);
  assert_int_equal(na_builder_view_remove(b, "x"), -ENOENT);
  assert_int_equal(na_builder_destination_remove(b, "x", vip, 80), -ENOENT);
  assert_null(na_snapshot_view(b ? current() : NULL, "x"));
  na_builder_abort(b);
}

static void refuses_bad_values(void **state) {
  na_builder *b = begin();
  na_cluster_config config = {.lb = 9};
  assert_int_equal(na_builder_cluster(b, "a", &config), -EINVAL);
  assert_int_equal(na_builder_cluster(b, "", &(na_cluster_config){0}), -EINVAL);
  add_cluster(b, "a", 1);
  na_endpoint twice[] = {endpoint(1), endpoint(1)};
  assert_int_equal(na_builder_endpoints(b, "a", twice, 2), -EINVAL);
  assert_string_equal(na_builder_error(b), "cluster 'a': endpoint ::ffff:10.0.0.1 port 80 is there twice");
  twice[1] = endpoint(2);
  twice[1].weight = 0;
  assert_int_equal(na_builder_endpoints(b, "a", twice, 2), -EINVAL);
  assert_string_equal(na_builder_error(b),
                      "cluster 'a': endpoint ::ffff:10.0.0.2 has port 80 and weight 0; neither may be 0");
  na_inbound_port odd = {.port = 1, .protocol = 9};
  assert_int_equal(na_builder_inbound(b, 1, &odd, 1, NA_PROTOCOL_TCP), -EINVAL);
  assert_int_equal(na_builder_inbound(b, 1, NULL, 0, 9), -EINVAL);
  na_destination_config http = {.protocol = NA_PROTOCOL_DETECT};
  assert_int_equal(na_builder_destination(b, "v", vip, 80, &http, NULL, NULL, 0), -EINVAL);
  na_destination_config tcp = {0};
  assert_int_equal(na_builder_destination(b, "v", vip, 0, &tcp, NULL, NULL, 0), -EINVAL);
  assert_int_equal(na_builder_destination(b, "v", vip, 80, &tcp, (const char *[]){"a"}, (uint32_t[]){0}, 1), -EINVAL);
  na_builder_abort(b);
}

static void refuses_a_builder_that_was_overtaken(void **state) {
  na_builder *slow = begin(), *fast = begin();
  add_cluster(slow, "a", 1);
  add_cluster(fast, "b", 1);
  commit(fast);
  assert_refused(slow, -ESTALE, "another commit");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(refuses_dangling_references),
      TEST(refuses_removal_of_what_is_in_use),
      TEST(refuses_routes_without_action),
      TEST(refuses_taken_domains),
      TEST(refuses_what_is_not_there),
      TEST(refuses_bad_values),
      TEST(refuses_a_builder_that_was_overtaken),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
