/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of memory, at each allocation in turn: the failing call says -ENOMEM, nothing leaks, what is in force stays
 * usable. Linked with --wrap for the allocating functions (CMakeLists.txt).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "oom.h"
#include "snapshot.h"

static int make_vhost(na_vhost **out) {
  int rc = na_vhost_new("vhost", 1, out);
  if (rc)
    return rc;
  na_vhost *vhost = *out;
  na_route *route = NULL;
  (rc = na_vhost_domain(vhost, "a.example")) || (rc = na_vhost_domain(vhost, "*.example")) ||
      (rc = na_vhost_domain(vhost, "a.*")) || (rc = na_vhost_domain(vhost, "*")) ||
      (rc = na_vhost_header(vhost, NA_REQUEST, NA_HEADER_SET, "a", "b"));
  if (!rc)
    rc = (route = na_vhost_route(vhost, "route", 1)) ? 0 : -ENOMEM;
  if (!rc)
    (rc = na_route_path(route, NA_MATCH_PREFIX, "/a", 0)) ||
        (rc = na_route_match_header(route, NA_MATCH_EXACT, "a", "b", 0)) ||
        (rc = na_route_match_query(route, NA_MATCH_EXACT, "a", "b", 0)) ||
        (rc = na_route_rewrite_prefix(route, "/b")) || (rc = na_route_rewrite_authority(route, "b"));
  if (!rc)
    rc = na_route_forward(route, "cluster", 1);
  return rc < 0 ? rc : 0;
}

static int add_routes(na_builder *b) {
  na_vhost *vhost = NULL;
  int rc = na_builder_table(b, "table", 1, 1);
  if (rc)
    return rc;
  rc = na_builder_host_unknown(b, "table", "unknown.example", 1);
  if (rc)
    return rc;
  rc = make_vhost(&vhost);
  if (rc) {
    if (vhost)
      na_vhost_free(vhost);
    return rc;
  }
  return na_builder_vhost(b, "table", vhost);
}

static int add_rest(na_builder *b) {
  static const uint8_t address[16] = {1};
  const na_destination_config http = {.protocol = NA_PROTOCOL_HTTP, .table = "table"};
  const na_inbound_port port = {.port = 80};
  const char *clusters[] = {"cluster"};
  const uint32_t weights[] = {1};
  int rc;
  (rc = na_builder_view(b, "view", 1)) ||
      (rc = na_builder_destination(b, "view", address, 80, &http, clusters, weights, 1)) ||
      (rc = na_builder_inbound(b, 1, &port, 1, 0)) || (rc = na_builder_hints(b, address, 1, NULL, 0)) ||
      (rc = na_builder_dns(b, "name.example", address, 1)) || (rc = na_builder_dns(b, "gone.example", NULL, 0));
  return rc;
}

/* One change of everything; 0, or the error of the call that failed. */
static int change(na_snapshots *registry) {
  const na_cluster_config config = {0};
  const na_endpoint endpoints[] = {{.port = 1, .weight = 1, .healthy = 1}, {.port = 2, .weight = 2, .healthy = 1}};
  na_builder *b;
  int rc = na_snapshots_builder(registry, &b);
  if (rc)
    return rc;
  (rc = na_builder_cluster(b, "cluster", &config)) || (rc = na_builder_endpoints(b, "cluster", endpoints, 2)) ||
      (rc = add_routes(b)) || (rc = add_rest(b));
  if (rc) {
    na_builder_abort(b);
    return rc;
  }
  return na_builder_commit(b);
}

static void assert_usable(na_snapshots *registry) {
  const na_snapshot *snapshot = na_snapshots_current(registry);
  static const uint8_t address[16] = {1};
  bool wait;
  const na_destination *destination = na_view_destination(na_snapshot_view(snapshot, "view"), address, 80);
  const na_table *table = na_snapshot_table(snapshot, destination->table_slot);
  const na_vhost *vhost = na_table_vhost(table, na_str_of("a.example"), &wait);
  const na_cluster *cluster = na_snapshot_cluster(snapshot, vhost->routes->destinations[0].slot);
  assert_non_null(na_cluster_pick(cluster, 1, 0));
}

/* Let each allocation of the first, and of a later, change fail. */
static void changes_survive_want_of_memory(void **state) {
  na_snapshots registry;
  for (int with_base = 0; with_base < 2; with_base++) {
    int rc = -ENOMEM;
    for (long n = 0; rc; n++) {
      assert_int_equal(na_snapshots_init(&registry, 1, NULL, NULL), 0);
      if (with_base)
        assert_int_equal(change(&registry), 0);
      until_failure = n;
      rc = change(&registry);
      until_failure = -1;
      assert_true(rc == 0 || rc == -ENOMEM);
      if (with_base || !rc)
        assert_usable(&registry);
      assert_int_equal(change(&registry), 0); /* with memory again, all is well */
      assert_usable(&registry);
      na_snapshots_free(&registry);
      assert_true(n < 1000);
    }
  }
}

static void registries_survive_want_of_memory(void **state) {
  na_snapshots registry;
  int rc = -ENOMEM;
  for (long n = 0; rc; n++) {
    until_failure = n;
    rc = na_snapshots_init(&registry, 1, NULL, NULL);
    until_failure = -1;
    assert_true(rc == 0 || rc == -ENOMEM);
  }
  na_snapshots_free(&registry);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(changes_survive_want_of_memory),
      cmocka_unit_test(registries_survive_want_of_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
