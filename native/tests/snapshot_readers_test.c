/* SPDX-License-Identifier: Apache-2.0
 *
 * Snapshots: that readers on other threads never see freed memory (the sanitizer tells).
 */
#include <pthread.h>
#include <sched.h>

#include "snapshot_rig.h"

/* ---- generations -------------------------------------------------------------------------------------------- */

static void settles_when_every_worker_has_moved_on(void **state) {
  na_snapshots_online(&registry, 0);
  na_snapshots_online(&registry, 1);
  build_mesh();
  assert_int_equal(na_snapshots_settled(&registry), 0);
  assert_int_equal(na_snapshots_enter(&registry, 0)->generation, 2);
  assert_int_equal(na_snapshots_settled(&registry), 0);
  assert_non_null(registry.retired);
  na_snapshots_enter(&registry, 1);
  assert_int_equal(na_snapshots_settled(&registry), 1);
  assert_null(registry.retired);
  na_snapshots_offline(&registry, 0);
  na_snapshots_offline(&registry, 1);
}

/* ---- threads ------------------------------------------------------------------------------------------------ */

typedef struct reader {
  uint32_t worker;
  atomic_bool *stop;
  uint64_t turns;
} reader;

/* A worker: each turn looks up all the way to an endpoint, and keeps references over the next turn, as requests do. */
static void *read_snapshots(void *argument) {
  reader *self = argument;
  na_vhost *held = NULL;
  na_cluster *cluster = NULL;
  const na_host *host = NULL;
  while (!atomic_load(self->stop)) {
    const na_snapshot *snapshot = na_snapshots_enter(&registry, self->worker);
    if (held) {
      na_host_release(host);
      na_cluster_unref(cluster);
      na_vhost_unref(held);
      held = NULL;
    }
    na_destination *destination = na_view_destination(na_snapshot_view(snapshot, "v"), vip, 80);
    const na_table *table = na_snapshot_table(snapshot, destination->table_slot);
    bool wait;
    na_vhost *vhost = na_table_vhost(table, na_str_of("b.example"), &wait);
    na_cluster *found = na_snapshot_cluster(snapshot, vhost->routes->destinations[0].slot);
    na_mark_used(&vhost->used);
    host = na_cluster_pick(found, self->turns, self->worker);
    if (host) {
      held = na_vhost_ref(vhost);
      cluster = na_cluster_ref(found);
      na_host_acquire(host);
    }
    self->turns++;
  }
  if (held) {
    na_host_release(host);
    na_cluster_unref(cluster);
    na_vhost_unref(held);
  }
  return NULL;
}

static void change_at_random(unsigned *seed) {
  na_builder *b = begin();
  char name[16];
  snprintf(name, sizeof name, "x%d", rand_r(seed) % 30);
  na_endpoint e[] = {endpoint((uint8_t)rand_r(seed)), endpoint(1)};
  switch (rand_r(seed) % 5) {
  case 0:
    na_builder_vhost(b, "80", vhost_to("vb", "b.example", rand_r(seed) % 2 ? "a" : "b"));
    break;
  case 1:
    na_builder_endpoints(b, "b", e, e[0].address[15] == 1 ? 1 : 2);
    break;
  case 2:
    add_cluster(b, name, 1);
    break;
  case 3:
    if (na_snapshots_cluster(&registry, name))
      na_builder_cluster_remove(b, name);
    break;
  default:
    na_builder_destination(b, "v", NULL, 80, &(na_destination_config){.protocol = NA_PROTOCOL_HTTP, .table = "80"},
                           NULL, NULL, 0);
  }
  commit(b);
}

static void readers_survive_a_thousand_commits(void **state) {
  build_mesh();
  atomic_bool stop = false;
  reader readers[2] = {{.worker = 0, .stop = &stop}, {.worker = 1, .stop = &stop}};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    na_snapshots_online(&registry, readers[i].worker);
    assert_int_equal(pthread_create(&threads[i], NULL, read_snapshots, &readers[i]), 0);
  }
  unsigned seed = 11;
  for (int i = 0; i < 1000; i++)
    change_at_random(&seed);
  while (na_snapshots_settled(&registry) != na_snapshots_committed(&registry))
    sched_yield();
  assert_null(registry.retired);
  atomic_store(&stop, true);
  for (int i = 0; i < 2; i++) {
    pthread_join(threads[i], NULL);
    na_snapshots_offline(&registry, readers[i].worker);
    assert_true(readers[i].turns > 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(settles_when_every_worker_has_moved_on),
      TEST(readers_survive_a_thousand_commits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
