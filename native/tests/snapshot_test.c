/* SPDX-License-Identifier: Apache-2.0
 *
 * Snapshots: what a builder makes, what is found in it, and what it shares.
 */
#include "snapshot_rig.h"

static void begins_empty(void **state) {
  assert_null(na_snapshot_view(current(), "v"));
  assert_null(na_snapshots_cluster(&registry, "a"));
  assert_null(na_snapshot_inbound(current(), 1));
  assert_false(na_snapshot_hinted(current(), vip, 80));
  assert_int_equal(na_snapshots_committed(&registry), 0);
  assert_int_equal(na_snapshots_settled(&registry), 0);
}

static void leads_from_destination_to_endpoint(void **state) {
  build_mesh();
  assert_int_equal(wakes, 1);
  assert_int_equal(na_snapshots_committed(&registry), 1);
  const na_view *view = na_snapshot_view(current(), "v");
  na_destination *destination = na_view_destination(view, vip, 80);
  assert_int_equal(destination->tag, 4);
  assert_null(na_view_destination(view, vip, 81));
  const na_table *table = na_snapshot_table(current(), destination->table_slot);
  assert_string_equal(table->name, "80");
  bool wait;
  na_vhost *vhost = na_table_vhost(table, na_str_of("A.example:80"), &wait);
  assert_string_equal(vhost->name, "va");
  assert_false(wait);
  na_cluster *cluster = cluster_of(vhost);
  assert_string_equal(cluster->name, "a");
  assert_int_equal(na_cluster_pick(cluster, 0, 0)->endpoint.tag, 9);
}

static void prefers_exact_destinations(void **state) {
  na_builder *b = begin();
  add_cluster(b, "a", 1);
  na_destination_config any = {.tag = 1}, exact = {.tag = 2};
  assert_int_equal(na_builder_destination(b, "v", NULL, 80, &any, (const char *[]){"a"}, (uint32_t[]){1}, 1), 0);
  assert_int_equal(na_builder_destination(b, "v", vip, 80, &exact, NULL, NULL, 0), 0);
  commit(b);
  const na_view *view = na_snapshot_view(current(), "v");
  assert_int_equal(na_view_destination(view, vip, 80)->tag, 2);
  assert_int_equal(na_view_destination(view, other, 80)->tag, 1);
  bool passthrough;
  assert_null(na_snapshot_pick_cluster(current(), na_view_destination(view, vip, 80), 0, &passthrough));
  assert_true(passthrough);
  assert_non_null(na_snapshot_pick_cluster(current(), na_view_destination(view, other, 80), 0, &passthrough));
  assert_false(passthrough);
  b = begin();
  assert_int_equal(na_builder_destination_remove(b, "v", vip, 80), 0);
  assert_int_equal(na_builder_destination_remove(b, "v", vip, 80), -ENOENT);
  commit(b);
  assert_int_equal(na_view_destination(na_snapshot_view(current(), "v"), vip, 80)->tag, 1);
}

static void splits_tcp_by_weight(void **state) {
  na_builder *b = begin();
  add_cluster(b, "a", 1);
  add_cluster(b, "b", 2);
  na_destination_config tcp = {.tag = 1};
  assert_int_equal(na_builder_destination(b, "v", vip, 80, &tcp, (const char *[]){"a", "b"}, (uint32_t[]){1, 3}, 2), 0);
  commit(b);
  na_destination *destination = na_view_destination(na_snapshot_view(current(), "v"), vip, 80);
  uint32_t to_a = 0;
  for (uint64_t i = 0; i < 400; i++) {
    bool passthrough;
    uint64_t random = i * (UINT64_MAX / 400) + UINT64_MAX / 800;
    to_a += na_snapshot_pick_cluster(current(), destination, random, &passthrough)->config.tag == 1;
  }
  assert_int_equal(to_a, 100);
}

static void knows_hints(void **state) {
  na_builder *b = begin();
  uint8_t addresses[32];
  memcpy(addresses, other, 16);
  memcpy(addresses + 16, vip, 16);
  assert_int_equal(na_builder_hints(b, addresses, 2, (uint16_t[]){8080, 65535}, 2), 0);
  commit(b);
  assert_true(na_snapshot_hinted(current(), vip, 1));
  assert_true(na_snapshot_hinted(current(), other, 1));
  uint8_t none[16] = {1};
  assert_false(na_snapshot_hinted(current(), none, 1));
  assert_true(na_snapshot_hinted(current(), none, 8080));
  assert_true(na_snapshot_hinted(current(), none, 65535));
  b = begin();
  assert_int_equal(na_builder_hints(b, NULL, 0, NULL, 0), 0);
  commit(b);
  assert_false(na_snapshot_hinted(current(), vip, 8080));
}

static void knows_inbound_ports(void **state) {
  na_builder *b = begin();
  na_inbound_port ports[] = {{.port = 9080, .protocol = NA_PROTOCOL_HTTP, .tag = 5}, {.port = 22, .tag = 6}};
  assert_int_equal(na_builder_inbound(b, 3, ports, 2, NA_PROTOCOL_DETECT), 0);
  commit(b);
  assert_null(na_snapshot_inbound(current(), 4));
  const na_inbound *inbound = na_snapshot_inbound(current(), 3);
  uint32_t tag;
  assert_int_equal(na_inbound_protocol(inbound, 9080, &tag), NA_PROTOCOL_HTTP);
  assert_int_equal(tag, 5);
  assert_int_equal(na_inbound_protocol(inbound, 22, &tag), NA_PROTOCOL_TCP);
  assert_int_equal(tag, 6);
  assert_int_equal(na_inbound_protocol(inbound, 80, &tag), NA_PROTOCOL_DETECT);
  assert_int_equal(tag, 0);
  assert_int_equal(na_snapshots_drop_inbound(&registry, 3), 0);
  assert_null(na_snapshot_inbound(current(), 3));
  uint64_t committed = na_snapshots_committed(&registry);
  assert_int_equal(na_snapshots_drop_inbound(&registry, 3), 0);
  assert_int_equal(na_snapshots_committed(&registry), committed);
  b = begin();
  ports[1].port = 9080;
  assert_int_equal(na_builder_inbound(b, 3, ports, 2, NA_PROTOCOL_TCP), -EINVAL);
  assert_string_equal(na_builder_error(b), "workload 3: port 9080 is there twice");
  na_builder_abort(b);
}

static void refuses_guarded_inbound_ports(void **state) {
  na_builder *b = begin();
  na_inbound_port port = {.port = 9080, .protocol = NA_PROTOCOL_REFUSE};
  assert_int_equal(na_builder_inbound(b, 3, &port, 1, NA_PROTOCOL_DETECT), 0);
  assert_int_equal(na_builder_inbound(b, 4, NULL, 0, NA_PROTOCOL_REFUSE), 0);
  commit(b);
  assert_null(na_snapshot_inbound_port(current(), 3, 9080));
  assert_non_null(na_snapshot_inbound_port(current(), 3, 9081));
  assert_null(na_snapshot_inbound_port(current(), 4, 1));
  b = begin();
  port.protocol = NA_PROTOCOL_REFUSE + 1;
  assert_int_equal(na_builder_inbound(b, 3, &port, 1, NA_PROTOCOL_DETECT), -EINVAL);
  na_builder_abort(b);
}

static void waits_for_hosts_on_demand(void **state) {
  na_builder *b = begin();
  add_cluster(b, "a", 1);
  na_builder_table(b, "80", 1, 1);
  na_builder_vhost(b, "80", vhost_to("all", "*", "a"));
  na_builder_vhost(b, "80", vhost_to("va", "a.example", "a"));
  assert_int_equal(na_builder_host_unknown(b, "80", "Gone.example:80", 1), 0);
  commit(b);
  const na_table *table = na_snapshots_table(&registry, "80");
  bool wait;
  assert_string_equal(na_table_vhost(table, na_str_of("a.example"), &wait)->name, "va");
  assert_false(wait);
  assert_string_equal(na_table_vhost(table, na_str_of("gone.EXAMPLE:8080"), &wait)->name, "all");
  assert_false(wait);
  assert_string_equal(na_table_vhost(table, na_str_of("new.example"), &wait)->name, "all");
  assert_true(wait);
  assert_non_null(na_table_vhost(table, na_str_of(""), &wait));
  assert_false(wait);
  b = begin();
  na_builder_host_unknown(b, "80", "gone.example", 0);
  commit(b);
  na_table_vhost(na_snapshots_table(&registry, "80"), na_str_of("gone.example"), &wait);
  assert_true(wait);
}

static void forgets_the_oldest_unknown_host(void **state) {
  na_builder *b = begin();
  na_builder_table(b, "80", 1, 1);
  for (int i = 0; i < 4098; i++) {
    char host[32];
    snprintf(host, sizeof host, "h%d", i);
    assert_int_equal(na_builder_host_unknown(b, "80", host, 1), 0);
  }
  commit(b);
  const na_table *table = na_snapshots_table(&registry, "80");
  assert_int_equal(table->unknown.count, 4096);
  assert_int_equal(registry.unknown_evicted, 2);
  assert_false(na_table_host_unknown(table, "h1", 2));
  assert_true(na_table_host_unknown(table, "h2", 2));
  assert_true(na_table_host_unknown(table, "h4097", 5));
}

static void takes_hosts_out_of_authorities(void **state) {
  static const struct {
    const char *authority, *host;
  } rows[] = {{"A.b:80", "a.b"},  {"a", "a"}, {"[::1]:80", "[::1]"},
              {"[::1]", "[::1]"}, {"", ""},   {"abcdefghijkl", "abcdefg"}};
  for (size_t i = 0; i < COUNT(rows); i++) {
    char host[8];
    assert_int_equal(na_host_of(na_str_of(rows[i].authority), host, sizeof host), strlen(rows[i].host));
    assert_string_equal(host, rows[i].host);
  }
}

/* ---- sharing ------------------------------------------------------------------------------------------------ */

static void shares_what_does_not_change(void **state) {
  build_mesh();
  na_snapshots_online(&registry, 0); /* keep the old snapshot to compare with */
  const na_snapshot *before = current();
  na_vhost *va = find_vhost("a.example"), *vb = find_vhost("b.example");
  na_cluster *a = cluster_of(va), *b_cluster = cluster_of(vb);

  na_builder *b = begin();
  na_endpoint e[] = {endpoint(9), endpoint(10)};
  assert_int_equal(na_builder_endpoints(b, "a", e, 2), 0);
  commit(b);
  assert_ptr_equal(current()->tables, before->tables);
  assert_ptr_equal(current()->views, before->views);
  assert_ptr_equal(current()->inbounds, before->inbounds);
  assert_ptr_equal(current()->hints, before->hints);
  assert_ptr_equal(find_vhost("a.example"), va);
  assert_ptr_equal(cluster_of(vb), b_cluster);
  assert_ptr_not_equal(cluster_of(va), a); /* the shared virtual host leads to the new cluster */
  assert_ptr_equal(cluster_of(va)->state, a->state);
  assert_int_equal(cluster_of(va)->hosts->n, 2);
  assert_int_equal(na_snapshot_cluster(before, a->slot)->hosts->n, 1);

  b = begin();
  na_builder_vhost(b, "80", vhost_to("vc", "c.example", "b"));
  commit(b);
  assert_ptr_equal(find_vhost("a.example"), va);
  assert_ptr_not_equal(current()->tables, before->tables);
  na_snapshots_offline(&registry, 0);
}

static void slots_do_not_move_under_a_held_virtual_host(void **state) {
  build_mesh();
  na_vhost *held = na_vhost_ref(find_vhost("a.example"));
  uint32_t slot = held->routes->destinations[0].slot;
  /* The virtual host and its cluster go, and other names come. */
  na_builder *b = begin();
  assert_int_equal(na_builder_vhost_remove(b, "80", "va"), 0);
  assert_int_equal(na_builder_cluster_remove(b, "a"), 0);
  commit(b);
  assert_null(na_snapshot_cluster(current(), slot));
  for (int i = 0; i < 20; i++) {
    char name[8];
    snprintf(name, sizeof name, "n%d", i);
    b = begin();
    add_cluster(b, name, 1);
    commit(b);
    assert_null(na_snapshot_cluster(current(), slot));
  }
  /* It comes back to where the held virtual host looks for it. */
  b = begin();
  add_cluster(b, "a", 77);
  commit(b);
  assert_int_equal(na_snapshot_cluster(current(), slot)->config.tag, 77);
  na_vhost_unref(held);
}

static void state_survives_removal_within_a_commit(void **state) {
  build_mesh();
  na_cluster *a = na_cluster_ref(na_snapshots_cluster(&registry, "a"));
  assert_true(na_cluster_acquire(a, NA_LIMIT_REQUESTS));
  na_builder *b = begin();
  na_builder_cluster_remove(b, "a");
  add_cluster(b, "a", 5);
  commit(b);
  na_cluster *again = na_snapshots_cluster(&registry, "a");
  assert_ptr_equal(again->state, a->state);
  na_cluster_release(again, NA_LIMIT_REQUESTS);
  na_cluster_unref(a);
}

static void replaces_virtual_hosts(void **state) {
  build_mesh();
  na_mark_used(&find_vhost("a.example")->used);
  na_builder *b = begin();
  na_vhost *vhost = vhost_to("va", "new.example", "b");
  assert_int_equal(na_builder_vhost(b, "80", vhost), 0);
  commit(b);
  assert_null(find_vhost("a.example"));
  assert_string_equal(find_vhost("new.example")->name, "va");
  assert_int_equal(find_vhost("new.example")->used, 1); /* use is remembered */
}

/* ---- usage -------------------------------------------------------------------------------------------------- */

static void reports_use_once(void **state) {
  build_mesh();
  uint32_t tags[8];
  assert_int_equal(na_snapshots_usage(&registry, tags, 8), 0);
  na_mark_used(&na_snapshots_cluster(&registry, "b")->state->used);
  na_mark_used(&find_vhost("a.example")->used);
  na_mark_used(&na_view_destination(na_snapshot_view(current(), "v"), vip, 80)->used);
  assert_int_equal(na_snapshots_usage(&registry, tags, 2), 2);
  assert_int_equal(tags[0], 2);
  assert_int_equal(tags[1], 7);
  assert_int_equal(na_snapshots_usage(&registry, tags, 2), 1);
  assert_int_equal(tags[0], 4);
  assert_int_equal(na_snapshots_usage(&registry, tags, 8), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(begins_empty),
      TEST(leads_from_destination_to_endpoint),
      TEST(prefers_exact_destinations),
      TEST(splits_tcp_by_weight),
      TEST(knows_hints),
      TEST(knows_inbound_ports),
      TEST(refuses_guarded_inbound_ports),
      TEST(waits_for_hosts_on_demand),
      TEST(forgets_the_oldest_unknown_host),
      TEST(takes_hosts_out_of_authorities),
      TEST(shares_what_does_not_change),
      TEST(slots_do_not_move_under_a_held_virtual_host),
      TEST(state_survives_removal_within_a_commit),
      TEST(replaces_virtual_hosts),
      TEST(reports_use_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
