/* SPDX-License-Identifier: Apache-2.0
 *
 * Picking endpoints, and what a commit costs in a large mesh: 5,000 clusters, 5,000 virtual hosts in one table.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "snapshot.h"

#define CLUSTERS 5000

static na_snapshots registry;
static na_cluster *clusters[3];

static void check(int rc) {
  if (rc < 0)
    abort();
}

static na_endpoint endpoint(uint32_t number, uint32_t weight) {
  na_endpoint e = {.port = 80, .weight = weight, .healthy = 1, .tag = number};
  e.address[12] = 10;
  e.address[14] = (uint8_t)(number >> 8);
  e.address[15] = (uint8_t)number;
  return e;
}

static void add_vhost(na_builder *b, uint32_t i, const char *cluster) {
  char name[64];
  na_vhost *vhost;
  snprintf(name, sizeof name, "svc-%u", i);
  check(na_vhost_new(name, i, &vhost));
  check(na_vhost_domain(vhost, name));
  snprintf(name, sizeof name, "svc-%u.default.svc.cluster.local", i);
  check(na_vhost_domain(vhost, name));
  check(na_route_forward(na_vhost_route(vhost, "r", i), cluster, 1));
  check(na_builder_vhost(b, "80", vhost));
}

static void build_mesh(void) {
  na_builder *b;
  check(na_snapshots_builder(&registry, &b));
  check(na_builder_table(b, "80", 1, 1));
  for (uint32_t i = 0; i < CLUSTERS; i++) {
    char name[64];
    na_cluster_config config = {.tag = i, .lb = i % 3};
    snprintf(name, sizeof name, "outbound|80||svc-%u.default.svc.cluster.local", i);
    check(na_builder_cluster(b, name, &config));
    static na_endpoint endpoints[5000];
    uint32_t n = i < 3 ? 5000 : 3;
    for (uint32_t k = 0; k < n; k++)
      endpoints[k] = endpoint(k, 1 + k % 3);
    check(na_builder_endpoints(b, name, endpoints, n));
    add_vhost(b, i, name);
  }
  check(na_builder_commit(b));
  for (uint32_t i = 0; i < 3; i++) {
    char name[64];
    snprintf(name, sizeof name, "outbound|80||svc-%u.default.svc.cluster.local", i);
    clusters[i] = na_snapshots_cluster(&registry, name);
  }
}

static void pick(uint32_t i, uint32_t lb) {
  bench_keep(na_cluster_pick(clusters[lb], i * 0x9e3779b97f4a7c15u, 0));
}

static void pick_round_robin(uint32_t i) {
  pick(i, NA_LB_ROUND_ROBIN);
}

static void pick_random(uint32_t i) {
  pick(i, NA_LB_RANDOM);
}

static void pick_least_request(uint32_t i) {
  pick(i, NA_LB_LEAST_REQUEST);
}

static void commit_endpoints(uint32_t i) {
  na_builder *b;
  na_endpoint e[3] = {endpoint(i, 1), endpoint(i + 1, 1), endpoint(i + 2, 1)};
  check(na_snapshots_builder(&registry, &b));
  check(na_builder_endpoints(b, "outbound|80||svc-9.default.svc.cluster.local", e, 3));
  check(na_builder_commit(b));
}

static void commit_vhost(uint32_t i) {
  na_builder *b;
  (void)i;
  check(na_snapshots_builder(&registry, &b));
  add_vhost(b, 9, "outbound|80||svc-9.default.svc.cluster.local");
  check(na_builder_commit(b));
}

int main(void) {
  check(na_snapshots_init(&registry, 1, NULL, NULL));
  uint64_t start = bench_now();
  build_mesh();
  printf("%-48s %8.1f ms\n", "build 5,000 clusters and virtual hosts", (double)(bench_now() - start) / 1e6);
  bench("pick of 5,000 weighted: round robin", 200000, pick_round_robin);
  bench("pick of 5,000 weighted: random", 200000, pick_random);
  bench("pick of 5,000 weighted: least request", 200000, pick_least_request);
  bench("commit the endpoints of one cluster", 200, commit_endpoints);
  bench("commit one virtual host", 50, commit_vhost);
  na_snapshots_free(&registry);
  return 0;
}
