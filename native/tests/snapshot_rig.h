/* SPDX-License-Identifier: Apache-2.0
 *
 * A registry of snapshots, and a small mesh to put in it.
 */
#ifndef NODEAGENT_SNAPSHOT_RIG_H
#define NODEAGENT_SNAPSHOT_RIG_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "snapshot.h"

#define UNUSED __attribute__((unused))

static const uint8_t vip[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1};
static const uint8_t other[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2};

static na_snapshots registry;
static int wakes;

UNUSED static void count_wake(void *context) {
  ++*(int *)context;
}

UNUSED static int set_up(void **state) {
  wakes = 0;
  return na_snapshots_init(&registry, 2, count_wake, &wakes);
}

UNUSED static int tear_down(void **state) {
  na_snapshots_free(&registry);
  return 0;
}

UNUSED static na_builder *begin(void) {
  na_builder *b;
  assert_int_equal(na_snapshots_builder(&registry, &b), 0);
  return b;
}

UNUSED static void commit(na_builder *b) {
  int rc = na_builder_commit(b);
  if (rc)
    fail_msg("commit: %d: %s", rc, registry.error);
}

UNUSED static const na_snapshot *current(void) {
  return na_snapshots_current(&registry);
}

UNUSED static void add_cluster(na_builder *b, const char *name, uint32_t tag) {
  na_cluster_config config = {.tag = tag};
  assert_int_equal(na_builder_cluster(b, name, &config), 0);
}

UNUSED static na_vhost *vhost_to(const char *name, const char *domain, const char *cluster) {
  na_vhost *vhost;
  assert_int_equal(na_vhost_new(name, 7, &vhost), 0);
  assert_int_equal(na_vhost_domain(vhost, domain), 0);
  na_route *route = na_vhost_route(vhost, "r", 8);
  assert_int_equal(na_route_forward(route, cluster, 1), 0);
  return vhost;
}

UNUSED static na_endpoint endpoint(uint8_t last) {
  na_endpoint e = {.port = 80, .weight = 1, .healthy = 1, .tag = last};
  memcpy(e.address, vip, 16);
  e.address[15] = last;
  return e;
}

/* A small mesh: clusters a and b, table "80" with virtual hosts va -> a and vb -> b, view "v" with a destination. */
UNUSED static void build_mesh(void) {
  na_builder *b = begin();
  add_cluster(b, "a", 1);
  add_cluster(b, "b", 2);
  na_endpoint e = endpoint(9);
  assert_int_equal(na_builder_endpoints(b, "a", &e, 1), 0);
  assert_int_equal(na_builder_table(b, "80", 3, 0), 0);
  assert_int_equal(na_builder_vhost(b, "80", vhost_to("va", "a.example", "a")), 0);
  assert_int_equal(na_builder_vhost(b, "80", vhost_to("vb", "b.example", "b")), 0);
  na_destination_config http = {.tag = 4, .protocol = NA_PROTOCOL_HTTP, .table = "80"};
  assert_int_equal(na_builder_destination(b, "v", NULL, 80, &http, NULL, NULL, 0), 0);
  commit(b);
}

UNUSED static na_vhost *find_vhost(const char *authority) {
  const na_table *table = na_snapshots_table(&registry, "80");
  bool wait;
  return table ? na_table_vhost(table, na_str_of(authority), &wait) : NULL;
}

UNUSED static na_cluster *cluster_of(const na_vhost *vhost) {
  return na_snapshot_cluster(current(), vhost->routes->destinations[0].slot);
}

/* ---- what is built ------------------------------------------------------------------------------------------ */

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

#endif
