/* SPDX-License-Identifier: Apache-2.0
 *
 * Clusters: balancing, priorities and panic, limits, states that survive replacement. Random numbers come from fixed
 * seeds, so each distribution is the same in every run.
 */
#include <errno.h>
#include <string.h>

#include "bypass_abi.h"
#include "cluster.h"
#include "cmocka_common.h"

/* splitmix64 */
static uint64_t next_random(uint64_t *seed) {
  uint64_t x = *seed += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

/* Endpoint 10.0.x.y, numbered by its tag. */
static na_endpoint endpoint(uint32_t number, uint32_t weight, bool healthy, uint8_t priority) {
  na_endpoint e = {.port = 80, .weight = weight, .healthy = healthy, .priority = priority, .tag = number};
  memcpy(e.address, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0", 14);
  e.address[14] = (uint8_t)(number >> 8);
  e.address[15] = (uint8_t)number;
  return e;
}

static na_slots *names;

static na_cluster *make(uint32_t lb, const na_cluster *previous, na_hosts *hosts, uint32_t workers) {
  na_cluster_config config = {.lb = lb};
  na_cluster_args args = {.name = "c",
                          .config = &config,
                          .names = names,
                          .workers = workers,
                          .seed = 1,
                          .previous = previous,
                          .hosts = hosts};
  na_cluster *cluster;
  assert_int_equal(na_slots_intern(names, "c", &args.slot), 0);
  assert_int_equal(na_cluster_create(&args, &cluster), 0);
  return cluster;
}

static na_cluster *cluster_of(uint32_t lb, const na_endpoint *endpoints, size_t n) {
  na_hosts *hosts;
  assert_int_equal(na_hosts_create(endpoints, n, NULL, &hosts), 0);
  na_cluster *cluster = make(lb, NULL, hosts, 2);
  na_hosts_unref(hosts);
  return cluster;
}

static void count_picks(const na_cluster *cluster, uint32_t picks, uint32_t *counts) {
  uint64_t seed = 42;
  for (uint32_t i = 0; i < picks; i++)
    counts[na_cluster_pick(cluster, next_random(&seed), 0)->endpoint.tag]++;
}

/* Counts follow the weights: the sum of squares lies below the 99.99 % point of chi-square for n - 1 <= 9. */
static void assert_distribution(const uint32_t *counts, const uint32_t *weights, uint32_t n, uint32_t picks) {
  double total = 0, chi = 0;
  for (uint32_t i = 0; i < n; i++)
    total += weights[i];
  for (uint32_t i = 0; i < n; i++) {
    double expected = picks * weights[i] / total;
    chi += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  if (chi > 33.7)
    fail_msg("chi-square %f", chi);
}

/* ---- round robin -------------------------------------------------------------------------------------------- */

static void round_robin_takes_turns(void **state) {
  na_endpoint endpoints[5];
  for (uint32_t i = 0; i < 5; i++)
    endpoints[i] = endpoint(i, 7, true, 0);
  na_cluster *cluster = cluster_of(NA_LB_ROUND_ROBIN, endpoints, 5);
  uint32_t first = na_cluster_pick(cluster, 0, 0)->endpoint.tag;
  for (uint32_t i = 1; i < 20; i++)
    assert_int_equal(na_cluster_pick(cluster, 0, 0)->endpoint.tag, (first + i) % 5);
  na_cluster_unref(cluster);
}

static void round_robin_weights_are_exact_and_smooth(void **state) {
  const uint32_t weights[] = {50, 10, 10, 30};
  na_endpoint endpoints[4];
  for (uint32_t i = 0; i < 4; i++)
    endpoints[i] = endpoint(i, weights[i], true, 0);
  na_cluster *cluster = cluster_of(NA_LB_ROUND_ROBIN, endpoints, 4);
  uint32_t counts[4] = {0}, run = 0, longest = 0, last = 99;
  for (uint32_t i = 0; i < 1000; i++) {
    uint32_t tag = na_cluster_pick(cluster, 0, 0)->endpoint.tag;
    run = tag == last ? run + 1 : 1;
    longest = run > longest ? run : longest;
    last = tag;
    counts[tag]++;
  }
  for (uint32_t i = 0; i < 4; i++)
    assert_int_equal(counts[i], weights[i] * 10);
  assert_true(longest <= 2);
  na_cluster_unref(cluster);
}

static void workers_have_turns_of_their_own(void **state) {
  na_endpoint endpoints[3];
  for (uint32_t i = 0; i < 3; i++)
    endpoints[i] = endpoint(i, 1, true, 0);
  na_cluster *cluster = cluster_of(NA_LB_ROUND_ROBIN, endpoints, 3);
  uint32_t first = na_cluster_pick(cluster, 0, 0)->endpoint.tag;
  for (int i = 0; i < 4; i++)
    na_cluster_pick(cluster, 0, 1);
  assert_int_equal(na_cluster_pick(cluster, 0, 0)->endpoint.tag, (first + 1) % 3);
  na_cluster_unref(cluster);
}

/* ---- random and least request ------------------------------------------------------------------------------- */

static void random_follows_weights(void **state) {
  const uint32_t weights[] = {1, 2, 3, 10};
  na_endpoint endpoints[4];
  for (uint32_t i = 0; i < 4; i++)
    endpoints[i] = endpoint(i, weights[i], true, 0);
  na_cluster *cluster = cluster_of(NA_LB_RANDOM, endpoints, 4);
  uint32_t counts[4] = {0};
  count_picks(cluster, 16000, counts);
  assert_distribution(counts, weights, 4, 16000);
  na_cluster_unref(cluster);
}

static void least_request_is_fair_when_idle(void **state) {
  const uint32_t weights[] = {1, 1, 1, 1, 1};
  na_endpoint endpoints[5];
  for (uint32_t i = 0; i < 5; i++)
    endpoints[i] = endpoint(i, 1, true, 0);
  na_cluster *cluster = cluster_of(NA_LB_LEAST_REQUEST, endpoints, 5);
  uint32_t counts[5] = {0};
  count_picks(cluster, 10000, counts);
  assert_distribution(counts, weights, 5, 10000);
  na_cluster_unref(cluster);
}

static void least_request_follows_weights_when_idle(void **state) {
  const uint32_t weights[] = {2, 1, 5};
  na_endpoint endpoints[3];
  for (uint32_t i = 0; i < 3; i++)
    endpoints[i] = endpoint(i, weights[i], true, 0);
  na_cluster *cluster = cluster_of(NA_LB_LEAST_REQUEST, endpoints, 3);
  uint32_t counts[3] = {0};
  count_picks(cluster, 16000, counts);
  assert_distribution(counts, weights, 3, 16000);
  na_cluster_unref(cluster);
}

static void least_request_avoids_the_busy_one(void **state) {
  na_endpoint endpoints[4];
  for (uint32_t i = 0; i < 4; i++)
    endpoints[i] = endpoint(i, 1, true, 0);
  na_cluster *cluster = cluster_of(NA_LB_LEAST_REQUEST, endpoints, 4);
  for (int i = 0; i < 3; i++)
    na_host_acquire(&cluster->hosts->hosts[2]);
  uint32_t counts[4] = {0};
  count_picks(cluster, 16000, counts);
  /* Taken only when both choices fall on it: one time in sixteen. */
  const uint32_t weights[] = {5, 5, 1, 5};
  assert_distribution(counts, weights, 4, 16000);
  for (int i = 0; i < 3; i++)
    na_host_release(&cluster->hosts->hosts[2]);
  na_cluster_unref(cluster);
}

/* With requests that last, active requests settle in proportion to the weights. */
static void least_request_settles_by_weight(void **state) {
  const uint32_t weights[] = {1, 3};
  na_endpoint endpoints[] = {endpoint(0, 1, true, 0), endpoint(1, 3, true, 0)};
  na_cluster *cluster = cluster_of(NA_LB_LEAST_REQUEST, endpoints, 2);
  uint64_t seed = 7;
  for (int i = 0; i < 400; i++)
    na_host_acquire(na_cluster_pick(cluster, next_random(&seed), 0));
  for (int i = 0; i < 2; i++) {
    uint32_t active = cluster->hosts->hosts[i].state->active;
    assert_in_range(active, weights[i] * 90, weights[i] * 110);
    while (cluster->hosts->hosts[i].state->active)
      na_host_release(&cluster->hosts->hosts[i]);
  }
  na_cluster_unref(cluster);
}

static void picks_among_thousands(void **state) {
  static na_endpoint endpoints[5000];
  for (uint32_t i = 0; i < 5000; i++)
    endpoints[i] = endpoint(i, 1 + i % 7, true, 0);
  for (uint32_t lb = NA_LB_ROUND_ROBIN; lb <= NA_LB_LEAST_REQUEST; lb++) {
    na_cluster *cluster = cluster_of(lb, endpoints, 5000);
    static uint32_t counts[5000];
    memset(counts, 0, sizeof counts);
    count_picks(cluster, 200000, counts);
    uint32_t met = 0;
    for (uint32_t i = 0; i < 5000; i++)
      met += counts[i] > 0;
    assert_true(met > 4990);
    na_cluster_unref(cluster);
  }
}

/* ---- health and priorities ---------------------------------------------------------------------------------- */

/* How many of `picks` go to each endpoint, given healthy/total of two priorities. Tag = priority * 10 + index. */
static void pick_by_health(uint32_t healthy0, uint32_t total0, uint32_t healthy1, uint32_t total1, uint32_t *counts) {
  na_endpoint endpoints[20];
  size_t n = 0;
  for (uint32_t i = 0; i < total0; i++)
    endpoints[n++] = endpoint(i, 1, i < healthy0, 0);
  for (uint32_t i = 0; i < total1; i++)
    endpoints[n++] = endpoint(10 + i, 1, i < healthy1, 3);
  na_cluster *cluster = cluster_of(NA_LB_RANDOM, endpoints, n);
  memset(counts, 0, 20 * sizeof *counts);
  count_picks(cluster, 10000, counts);
  na_cluster_unref(cluster);
}

static uint32_t sum(const uint32_t *counts, uint32_t from, uint32_t to) {
  uint32_t total = 0;
  while (from < to)
    total += counts[from++];
  return total;
}

static const struct {
  const char *what;
  uint32_t healthy0, total0, healthy1, total1;
  uint32_t share0; /* of 10,000, within 200 */
  bool ill0, ill1; /* ill hosts of the priority get some */
} levels[] = {
    {"all well", 4, 4, 4, 4, 10000, false, false},
    {"3 of 4: still all", 3, 4, 4, 4, 10000, false, false},
    {"2 of 4: 70 %", 2, 4, 4, 4, 7000, false, false},
    {"1 of 4: 35 %", 1, 4, 4, 4, 3500, false, false},
    {"none of 4: all spill", 0, 4, 4, 4, 0, false, false},
    {"one priority, 3 of 4", 3, 4, 0, 0, 10000, false, false},
    {"one priority, 2 of 4", 2, 4, 0, 0, 10000, false, false},
    {"one priority, 1 of 4: panic", 1, 4, 0, 0, 10000, true, false},
    {"one priority, none: panic", 0, 4, 0, 0, 10000, true, false},
    /* 35 % and 35 %: scaled to 50:50, and both panic */
    {"both low", 1, 4, 1, 4, 5000, true, true},
    /* none anywhere: by number of hosts */
    {"both gone", 0, 3, 0, 1, 7500, true, true},
};

static void shares_by_priority_as_envoy_does(void **state) {
  for (size_t i = 0; i < COUNT(levels); i++) {
    uint32_t counts[20];
    pick_by_health(levels[i].healthy0, levels[i].total0, levels[i].healthy1, levels[i].total1, counts);
    uint32_t share0 = sum(counts, 0, 10);
    if (share0 + 200 < levels[i].share0 || share0 > levels[i].share0 + 200)
      fail_msg("%s: %u", levels[i].what, share0);
    if ((sum(counts, levels[i].healthy0, levels[i].total0) > 0) != levels[i].ill0)
      fail_msg("%s: ill hosts of priority 0", levels[i].what);
    if ((sum(counts, 10 + levels[i].healthy1, 10 + levels[i].total1) > 0) != levels[i].ill1)
      fail_msg("%s: ill hosts of the other priority", levels[i].what);
  }
}

/* Thirds of a hundred leave one over; nobody is lost for it, whatever the random number. */
static void shares_add_up(void **state) {
  na_endpoint endpoints[] = {endpoint(0, 1, false, 0), endpoint(1, 1, false, 1), endpoint(2, 1, false, 200)};
  na_cluster *cluster = cluster_of(NA_LB_RANDOM, endpoints, 3);
  const uint32_t weights[] = {33, 33, 34};
  uint32_t counts[3] = {0};
  count_picks(cluster, 10000, counts);
  assert_distribution(counts, weights, 3, 10000);
  assert_int_equal(na_cluster_pick(cluster, UINT64_MAX, 0)->endpoint.tag, 2);
  assert_int_equal(na_cluster_pick(cluster, 0, 0)->endpoint.tag, 0);
  na_cluster_unref(cluster);
}

static void empty_clusters_give_nothing(void **state) {
  na_cluster *cluster = make(NA_LB_RANDOM, NULL, NULL, 1);
  assert_null(na_cluster_pick(cluster, 1, 0));
  assert_null(na_cluster_pick_other(cluster, 1, 0, NULL, 0));
  na_cluster_unref(cluster);
}

static void other_kinds_pick_nothing(void **state) {
  na_endpoint one = endpoint(0, 1, true, 0);
  na_cluster *cluster = cluster_of(NA_LB_RANDOM, &one, 1);
  cluster->config.kind = NA_CLUSTER_BLACKHOLE;
  assert_null(na_cluster_pick(cluster, 1, 0));
  na_cluster_unref(cluster);
}

/* ---- another attempt ---------------------------------------------------------------------------------------- */

static void another_attempt_goes_elsewhere(void **state) {
  na_endpoint endpoints[3];
  for (uint32_t i = 0; i < 3; i++)
    endpoints[i] = endpoint(i, i == 0 ? 1000000 : 1, true, 0);
  for (uint32_t lb = NA_LB_ROUND_ROBIN; lb <= NA_LB_LEAST_REQUEST; lb++) {
    na_cluster *cluster = cluster_of(lb, endpoints, 3);
    uint64_t seed = 3;
    const na_host *hosts = cluster->hosts->hosts;
    const na_host_state *tried[] = {hosts[0].state, hosts[1].state, hosts[2].state};
    for (int i = 0; i < 100; i++) {
      assert_int_not_equal(na_cluster_pick_other(cluster, next_random(&seed), 0, tried, 1)->endpoint.tag, 0);
      assert_int_equal(na_cluster_pick_other(cluster, next_random(&seed), 0, tried, 2)->endpoint.tag, 2);
      assert_non_null(na_cluster_pick_other(cluster, next_random(&seed), 0, tried, 3));
    }
    na_cluster_unref(cluster);
  }
}

/* ---- what connect() drew ---- */

static na_local_endpoint local(uint32_t number, uint32_t workload) {
  na_local_endpoint l = {.port = 80, .workload = workload};
  memcpy(l.address, endpoint(number, 1, true, 0).address, sizeof l.address);
  return l;
}

/* Connections as connect() would send them on: by a slot for each unit of weight, of which those of the local endpoints
 * are not empty. */
static void count_drawn(const na_cluster *cluster, const na_endpoint *endpoints, const na_local_endpoint *places,
                        uint32_t n, uint32_t picks, uint32_t *counts) {
  uint64_t seed = 7, total = 0;
  for (uint32_t i = 0; i < n; i++)
    total += endpoints[i].weight;
  for (uint32_t i = 0; i < picks; i++) {
    uint64_t slot = next_random(&seed) % total;
    uint32_t at = 0;
    while (slot >= endpoints[at].weight)
      slot -= endpoints[at++].weight;
    uint32_t drawn = places[at].workload ? places[at].workload : NA_DRAWN_ELSEWHERE;
    counts[na_cluster_pick_drawn(cluster, next_random(&seed), 0, drawn, NULL, 0)->endpoint.tag]++;
  }
}

static void a_drawn_endpoint_gets_its_share(void **state) {
  enum { N = 8, PICKS = 40000 };
  const uint32_t weights[N] = {1, 1, 1, 1, 1, 1, 1, 1}, uneven[N] = {4, 1, 9, 2, 1, 3, 5, 2};
  for (uint32_t lb = NA_LB_ROUND_ROBIN; lb <= NA_LB_LEAST_REQUEST; lb++)
    for (uint32_t locals = 0; locals <= N; locals++) {
      /* Neighbours in the order, as addresses of a node are. */
      const uint32_t *weight = locals % 2 ? uneven : weights;
      na_endpoint endpoints[N];
      na_local_endpoint places[N];
      uint32_t counts[N] = {0};
      for (uint32_t i = 0; i < N; i++) {
        endpoints[i] = endpoint(i, weight[i], true, 0);
        places[i] = local(i, i < locals ? 100 + i : 0);
      }
      na_cluster *cluster = cluster_of(lb, endpoints, N);
      na_hosts_note_local(cluster->hosts, places, N);
      count_drawn(cluster, endpoints, places, N, PICKS, counts);
      assert_distribution(counts, weight, N, PICKS);
      na_cluster_unref(cluster);
    }
}

static void what_was_drawn_is_not_the_only_one(void **state) {
  na_endpoint endpoints[] = {endpoint(0, 1, true, 0), endpoint(1, 1, true, 0), endpoint(2, 1, true, 0)};
  na_local_endpoint places[] = {local(1, 7), local(9, 8)};
  na_cluster *cluster = cluster_of(NA_LB_RANDOM, endpoints, 3);
  const na_host *hosts = cluster->hosts->hosts;
  const na_host_state *remote[] = {hosts[0].state, hosts[2].state}, *here[] = {hosts[1].state};
  assert_null(na_cluster_pick_drawn(cluster, 1, 0, 7, NULL, 0)); /* nothing was said yet */
  na_hosts_note_local(cluster->hosts, places, 2);
  assert_ptr_equal(na_cluster_pick_drawn(cluster, 1, 0, 7, NULL, 0), &hosts[1]);
  assert_null(na_cluster_pick_drawn(cluster, 1, 0, 7, here, 1));
  assert_null(na_cluster_pick_drawn(cluster, 1, 0, 8, NULL, 0)); /* there is no such endpoint any more */
  for (uint64_t random = 1; random < 50; random++) {
    assert_ptr_not_equal(na_cluster_pick_drawn(cluster, random, 0, NA_DRAWN_ELSEWHERE, NULL, 0), &hosts[1]);
    assert_ptr_equal(na_cluster_pick_drawn(cluster, random, 0, NA_DRAWN_ELSEWHERE, remote, 1), &hosts[2]);
  }
  assert_null(na_cluster_pick_drawn(cluster, 1, 0, NA_DRAWN_ELSEWHERE, remote, 2));
  na_hosts_note_local(cluster->hosts, NULL, 0);
  assert_null(na_cluster_pick_drawn(cluster, 1, 0, 7, NULL, 0));
  na_cluster_unref(cluster);
}

/* ---- state and limits --------------------------------------------------------------------------------------- */

static void states_survive_replacement(void **state) {
  na_endpoint before[] = {endpoint(1, 1, true, 0), endpoint(2, 1, true, 0)};
  na_endpoint after[] = {endpoint(3, 1, true, 0), endpoint(2, 5, false, 0)};
  na_cluster *old = cluster_of(NA_LB_RANDOM, before, 2);
  na_host_acquire(&old->hosts->hosts[1]);
  assert_true(na_cluster_acquire(old, NA_LIMIT_REQUESTS));
  na_hosts *hosts;
  assert_int_equal(na_hosts_create(after, 2, old->hosts, &hosts), 0);
  na_cluster *new = make(NA_LB_RANDOM, old, hosts, 2);
  na_hosts_unref(hosts);
  assert_ptr_equal(new->state, old->state);
  assert_ptr_equal(new->hosts->hosts[0].state, old->hosts->hosts[1].state);
  assert_int_equal(new->hosts->hosts[0].endpoint.weight, 5);
  assert_int_equal(new->hosts->hosts[0].state->active, 1);
  assert_int_equal(new->hosts->hosts[1].state->active, 0);
  na_host_release(&new->hosts->hosts[0]);
  na_cluster_release(new, NA_LIMIT_REQUESTS);
  assert_int_equal(old->state->in_use[NA_LIMIT_REQUESTS], 0);
  na_cluster_unref(old);
  na_cluster *config_only = make(NA_LB_ROUND_ROBIN, new, NULL, 2);
  assert_ptr_equal(config_only->hosts, new->hosts);
  na_cluster_unref(new);
  na_cluster_unref(config_only);
}

static void limits_hold_and_count(void **state) {
  na_cluster *cluster = make(NA_LB_RANDOM, NULL, NULL, 1);
  cluster->config.max_requests = 2;
  assert_true(na_cluster_acquire(cluster, NA_LIMIT_REQUESTS));
  assert_true(na_cluster_acquire(cluster, NA_LIMIT_REQUESTS));
  assert_false(na_cluster_acquire(cluster, NA_LIMIT_REQUESTS));
  assert_int_equal(cluster->state->overflows[NA_LIMIT_REQUESTS], 1);
  na_cluster_release(cluster, NA_LIMIT_REQUESTS);
  assert_true(na_cluster_acquire(cluster, NA_LIMIT_REQUESTS));
  for (int i = 0; i < 1000; i++)
    assert_true(na_cluster_acquire(cluster, NA_LIMIT_CONNECTIONS));
  assert_int_equal(cluster->state->overflows[NA_LIMIT_CONNECTIONS], 0);
  na_cluster_unref(cluster);
}

static void refuses_bad_endpoints(void **state) {
  na_hosts *hosts;
  na_endpoint twice[] = {endpoint(1, 1, true, 0), endpoint(1, 2, true, 0)};
  assert_int_equal(na_hosts_create(twice, 2, NULL, &hosts), -EINVAL);
  na_endpoint weightless = endpoint(1, 0, true, 0);
  assert_int_equal(na_hosts_create(&weightless, 1, NULL, &hosts), -EINVAL);
  na_endpoint portless = endpoint(1, 1, true, 0);
  portless.port = 0;
  assert_int_equal(na_hosts_create(&portless, 1, NULL, &hosts), -EINVAL);
}

static void fills_in_defaults(void **state) {
  na_cluster *cluster = make(NA_LB_RANDOM, NULL, NULL, 1);
  assert_int_equal(cluster->config.connect_timeout_ms, 10000);
  assert_int_equal(cluster->config.max_requests, NA_NEVER);
  na_cluster_unref(cluster);
}

static int set_up(void **state) {
  return na_slots_new(&names);
}

static int tear_down(void **state) {
  na_slots_free(names);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(round_robin_takes_turns),
      cmocka_unit_test(round_robin_weights_are_exact_and_smooth),
      cmocka_unit_test(workers_have_turns_of_their_own),
      cmocka_unit_test(random_follows_weights),
      cmocka_unit_test(least_request_is_fair_when_idle),
      cmocka_unit_test(least_request_follows_weights_when_idle),
      cmocka_unit_test(least_request_avoids_the_busy_one),
      cmocka_unit_test(least_request_settles_by_weight),
      cmocka_unit_test(picks_among_thousands),
      cmocka_unit_test(shares_by_priority_as_envoy_does),
      cmocka_unit_test(shares_add_up),
      cmocka_unit_test(empty_clusters_give_nothing),
      cmocka_unit_test(other_kinds_pick_nothing),
      cmocka_unit_test(another_attempt_goes_elsewhere),
      cmocka_unit_test(a_drawn_endpoint_gets_its_share),
      cmocka_unit_test(what_was_drawn_is_not_the_only_one),
      cmocka_unit_test(states_survive_replacement),
      cmocka_unit_test(limits_hold_and_count),
      cmocka_unit_test(refuses_bad_endpoints),
      cmocka_unit_test(fills_in_defaults),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
