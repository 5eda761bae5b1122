/* SPDX-License-Identifier: Apache-2.0
 *
 * The public calls on a whole engine that concern its configuration: commits and their errors, usage, explanations.
 */
#include <errno.h>
#include <string.h>

#include <nodeagent/engine.h>
#include <nodeagent/flows.h>

#include "cmocka_common.h"

static na_engine *engine;

static int set_up(void **state) {
  na_config config = {.workers = 1};
  return na_engine_new(&config, &engine);
}

static int tear_down(void **state) {
  na_engine_free(engine);
  return 0;
}

/* Table "80": host "reviews" with a route for jason to v2, and all else split over v1 and v3. */
static void build_reviews(void) {
  static const char *const clusters[] = {"v1", "v2", "v3"};
  na_builder *b;
  na_vhost *vhost;
  assert_int_equal(na_builder_new(engine, &b), 0);
  for (size_t i = 0; i < COUNT(clusters); i++) {
    na_cluster_config config = {.tag = (uint32_t)i + 1};
    assert_int_equal(na_builder_cluster(b, clusters[i], &config), 0);
  }
  assert_int_equal(na_builder_table(b, "80", 9, 0), 0);
  assert_int_equal(na_vhost_new("reviews:80", 7, &vhost), 0);
  assert_int_equal(na_vhost_domain(vhost, "reviews"), 0);
  na_route *jason = na_vhost_route(vhost, "jason", 1);
  assert_int_equal(na_route_match_header(jason, NA_MATCH_EXACT, "end-user", "jason", 0), 0);
  assert_int_equal(na_route_match_query(jason, NA_MATCH_PRESENT, "q", NULL, 0), 0);
  assert_int_equal(na_route_forward(jason, "v2", 100), 0);
  na_route *rest = na_vhost_route(vhost, "rest", 2);
  assert_int_equal(na_route_path(rest, NA_MATCH_PREFIX, "/r", 0), 0);
  assert_int_equal(na_route_forward(rest, "v1", 80), 0);
  assert_int_equal(na_route_forward(rest, "v3", 20), 1);
  assert_int_equal(na_builder_vhost(b, "80", vhost), 0);
  assert_int_equal(na_builder_commit(b), 0);
}

static const struct {
  const char *table, *authority, *path, *headers;
  size_t n;
  int rc;
  const char *route, *cluster;
} explained[] = {
    {"80", "reviews:80", "/r?q", "end-user\0jason\0", 15, 0, "jason", "v2"},
    {"80", "REVIEWS", "/r?q", "other\0x\0End-User\0jason\0", 23, 0, "jason", "v2"},
    {"80", "reviews", "/r", "end-user\0jason\0", 15, 0, "rest", "v1"},
    {"80", "reviews", "/r", "", 0, 0, "rest", "v1"},
    {"80", "reviews", "/x", "", 0, -ENOENT, "", ""},
    {"80", "ratings", "/r", "", 0, -ENOENT, "", ""},
    {"81", "reviews", "/r", "", 0, -ENOENT, "", ""},
    {"80", "reviews", "/r", "end-user", 8, -EINVAL, "", ""},
    {"80", "reviews", "/r", "end-user\0jason", 14, -EINVAL, "", ""},
};

static void explains_routes(void **state) {
  build_reviews();
  for (size_t i = 0; i < COUNT(explained); i++) {
    char route[16] = "", cluster[16] = "";
    int rc =
        na_engine_explain_route(engine, explained[i].table, "GET", explained[i].authority, explained[i].path,
                                explained[i].headers, explained[i].n, route, sizeof route, cluster, sizeof cluster);
    if (rc != explained[i].rc || strcmp(route, explained[i].route) != 0 || strcmp(cluster, explained[i].cluster) != 0)
      fail_msg("row %zu: %d '%s' '%s'", i, rc, route, cluster);
  }
}

static void keeps_the_last_good_configuration(void **state) {
  build_reviews();
  assert_int_equal(na_engine_committed(engine), 1);
  assert_int_equal(na_engine_settled(engine), 1); /* no worker runs */
  na_builder *b;
  assert_int_equal(na_builder_new(engine, &b), 0);
  assert_int_equal(na_builder_cluster_remove(b, "v2"), 0);
  assert_int_equal(na_builder_commit(b), -EINVAL);
  assert_string_equal(na_engine_error(engine),
                      "route 'jason' of virtual host 'reviews:80' in route table '80' leads to "
                      "cluster 'v2', which does not exist");
  assert_int_equal(na_engine_committed(engine), 1);
  char route[16], cluster[16];
  assert_int_equal(na_engine_explain_route(engine, "80", "GET", "reviews", "/r?q", "end-user\0jason\0", 15, route,
                                           sizeof route, cluster, sizeof cluster),
                   0);
  assert_string_equal(cluster, "v2");
  uint32_t tags[4];
  assert_int_equal(na_engine_usage(engine, tags, 4), 0); /* explaining is no use */
}

static void local_endpoints_are_told_in_order(void **state) {
  na_local_endpoint places[] = {{.port = 80, .workload = 1}, {.port = 81, .workload = 2}};
  build_reviews();
  assert_int_equal(na_cluster_local(engine, "v1", places, 2), 0); /* that are not there yet */
  assert_int_equal(na_cluster_local(engine, "v1", NULL, 0), 0);
  assert_int_equal(na_cluster_local(engine, "v9", places, 2), -ENOENT);
  places[1].port = 80;
  assert_int_equal(na_cluster_local(engine, "v1", places, 2), -EINVAL);
  assert_string_equal(na_engine_error(engine), "cluster 'v1': local endpoint 1 is not behind the one before it");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {TEST(explains_routes), TEST(keeps_the_last_good_configuration),
                                     TEST(local_endpoints_are_told_in_order)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
