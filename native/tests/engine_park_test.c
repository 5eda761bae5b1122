/* SPDX-License-Identifier: Apache-2.0
 *
 * Configuration on demand: connections and requests that wait for it.
 */
#include "scene_rig.h"

static void hint(na_builder *b, uint16_t port) {
  uint8_t ip[16];
  v4_mapped(ip, "127.0.0.1");
  assert_int_equal(na_builder_hints(b, ip, 1, &port, 1), 0);
}

/* View "v" knows of no destination, but that there may be one. */
static scene begin(const na_config *config) {
  scene s = scene_begin(config);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_view(b, "v", 0), 0);
  hint(b, s.port);
  rig_commit(&s.r);
  return s;
}

/* The table is there, on demand, with only `*`, which answers 200 "default". */
static scene begin_hosts(const na_config *config) {
  scene s = begin(config);
  na_builder *b = rig_change(&s.r);
  na_route *route;
  na_vhost *vhost = new_vhost("allow_any", "*", NULL, &route);
  assert_int_equal(na_route_respond(route, 200, (const uint8_t *)"default", 7), 0);
  add_cluster(b, "c", s.backend);
  assert_int_equal(na_builder_table(b, "t", TAG_TABLE, 1), 0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  add_destination(b, s.port, NA_PROTOCOL_HTTP, "t", NULL);
  rig_commit(&s.r);
  return s;
}

/* The events raised within a while; none if *n is 0. */
static const na_event *get_events(scene *s, int wait_ms, int *n) {
  static na_event events[16];
  *n = readable_within(na_engine_event_fd(s->r.engine), wait_ms) ? na_engine_events(s->r.engine, events, 16) : 0;
  return events;
}

static void a_connection_waits_for_its_destination(void **state) {
  scene s = begin(NULL);
  uint8_t ip[16];
  int n;
  v4_mapped(ip, "127.0.0.1");
  int client = dial(s.port);
  put(client, GET_ROOT);
  const na_event *event = get_events(&s, RIG_WAIT_MS, &n);
  assert_int_equal(n, 1);
  assert_int_equal(event->kind, NA_EVENT_DESTINATION);
  assert_int_equal(event->workload, 1);
  assert_int_equal(event->port, s.port);
  assert_memory_equal(event->address, ip, 16);
  assert_string_equal(event->view, "v");
  await_counter(&s.r, "on_demand_waiting", 1); /* counted after the event was raised */
  expect_silence(client, 20);
  hint(rig_change(&s.r), s.port); /* a commit without the answer: it waits on */
  rig_commit(&s.r);
  await_counter(&s.r, "on_demand_waiting", 1);
  rig_serve(&s.r, s.port, NA_PROTOCOL_HTTP, s.backend);
  int server = answer(s.listener);
  get_head(server);
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  assert_int_equal(counter(&s.r, "on_demand_waiting"), 0);
  assert_int_equal(counter(&s.r, "on_demand_waits_total"), 1);
  assert_int_equal(counter(&s.r, "on_demand_timeouts_total"), 0);
  close(client);
  close(server);
  scene_end(&s);
}

static void a_need_is_raised_once_a_second(void **state) {
  na_config config = {.on_demand_timeout_ms = 1500};
  scene s = begin(&config);
  int clients[5], n;
  for (int i = 0; i < 5; i++)
    clients[i] = dial(s.port);
  await_counter(&s.r, "on_demand_waiting", 5);
  get_events(&s, RIG_WAIT_MS, &n);
  assert_int_equal(n, 1);
  get_events(&s, 700, &n);
  assert_int_equal(n, 0);
  get_events(&s, 600, &n); /* it lasts: raised again after a second */
  assert_int_equal(n, 1);
  for (int i = 0; i < 5; i++)
    close(clients[i]);
  scene_end(&s);
}

static void waiting_ends_in_default_routing(void **state) {
  na_config config = {.on_demand_timeout_ms = 50};
  scene s = begin(&config);
  int client = dial(s.port);
  expect_reset(client); /* to the original destination, which here would be the listener itself */
  assert_int_equal(counter(&s.r, "on_demand_timeouts_total"), 1);
  assert_int_equal(counter(&s.r, "downstream_cx_loop_total"), 1);
  close(client);
  scene_end(&s);
}

static void a_waiting_client_may_leave(void **state) {
  scene s = begin(NULL);
  struct linger hard = {.l_onoff = 1};
  int client = dial(s.port);
  await_counter(&s.r, "on_demand_waiting", 1);
  setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close(client);
  await_counter(&s.r, "on_demand_waiting", 0);
  await_counter(&s.r, "downstream_cx_active", 0);
  scene_end(&s);
}

static void unhinted_destinations_do_not_wait(void **state) {
  scene s = begin(NULL);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_hints(b, NULL, 0, NULL, 0), 0);
  rig_commit(&s.r);
  int client = dial(s.port), n;
  expect_reset(client);
  get_events(&s, 20, &n);
  assert_int_equal(n, 0);
  close(client);
  scene_end(&s);
}

static void nobody_waits_while_nobody_answers(void **state) {
  scene s = begin_hosts(NULL);
  int early = dial(s.port), n;
  put(early, GET_ROOT);
  await_counter(&s.r, "on_demand_waiting", 1);
  get_events(&s, RIG_WAIT_MS, &n);
  assert_int_equal(na_builder_answered(rig_change(&s.r), 0), 0);
  rig_commit(&s.r);
  expect_head(early, "HTTP/1.1 200 OK"); /* of `*`; who waits already waits no more */
  int late = dial(s.port);
  put(late, "GET / HTTP/1.1\r\nHost: other\r\n\r\n");
  expect_head(late, "HTTP/1.1 200 OK");
  assert_string_equal(get_events(&s, RIG_WAIT_MS, &n)->host, "other"); /* for when there is somebody again */
  assert_int_equal(counter(&s.r, "on_demand_unanswered_total"), 2);
  assert_int_equal(counter(&s.r, "on_demand_timeouts_total"), 0);
  assert_int_equal(na_builder_answered(rig_change(&s.r), 1), 0);
  rig_commit(&s.r);
  int again = dial(s.port);
  put(again, "GET / HTTP/1.1\r\nHost: third\r\n\r\n");
  await_counter(&s.r, "on_demand_waiting", 1);
  close(early);
  close(late);
  close(again);
  scene_end(&s);
}

static void at_most_max_parked_wait(void **state) {
  na_config config = {.max_parked = 1};
  scene s = begin(&config);
  int first = dial(s.port);
  await_counter(&s.r, "on_demand_waiting", 1);
  int second = dial(s.port);
  expect_reset(second); /* default routing at once */
  assert_int_equal(counter(&s.r, "on_demand_overflow_total"), 1);
  close(first);
  close(second);
  scene_end(&s);
}

static void a_request_waits_for_its_host(void **state) {
  scene s = begin_hosts(NULL);
  int client = dial(s.port), n;
  put(client, "POST /x HTTP/1.1\r\nHost: Reviews.default:9080\r\ncontent-length: 8\r\n\r\nhalf");
  const na_event *event = get_events(&s, RIG_WAIT_MS, &n);
  assert_int_equal(n, 1);
  assert_int_equal(event->kind, NA_EVENT_HOST);
  assert_int_equal(event->tag, TAG_TABLE);
  assert_string_equal(event->host, "reviews.default");
  put(client, "half"); /* not read meanwhile */
  expect_silence(client, 20);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_vhost(b, "t", new_vhost("reviews", "reviews.default", "c", NULL)), 0);
  rig_commit(&s.r);
  int server = answer(s.listener);
  expect_head(server, "POST /x HTTP/1.1");
  expect(server, "halfhalf");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  put(client, "GET / HTTP/1.1\r\nHost: reviews.default\r\n\r\n");
  get_head(server);
  close(client);
  close(server);
  scene_end(&s);
}

static void an_unknown_host_goes_to_the_wildcard(void **state) {
  scene s = begin_hosts(NULL);
  int client = dial(s.port), n;
  put(client, GET_ROOT);
  get_events(&s, RIG_WAIT_MS, &n);
  assert_int_equal(n, 1);
  na_builder *b = rig_change(&s.r);
  assert_int_equal(na_builder_host_unknown(b, "t", "a", 1), 0);
  rig_commit(&s.r);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "default");
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 200 OK"); /* known to be unknown: no wait, no event */
  expect(client, "default");
  assert_int_equal(counter(&s.r, "on_demand_waits_total"), 1);
  close(client);
  scene_end(&s);
}

static void waiting_for_a_host_ends_in_the_wildcard(void **state) {
  na_config config = {.on_demand_timeout_ms = 50};
  scene s = begin_hosts(&config);
  int client = dial(s.port);
  put(client, GET_ROOT);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "default");
  assert_int_equal(counter(&s.r, "on_demand_timeouts_total"), 1);
  close(client);
  scene_end(&s);
}

static void a_waiting_requests_client_may_leave(void **state) {
  scene s = begin_hosts(NULL);
  int client = dial(s.port);
  put(client, GET_ROOT);
  await_counter(&s.r, "on_demand_waiting", 1);
  close(client);
  await_counter(&s.r, "on_demand_waiting", 0);
  await_counter(&s.r, "downstream_rq_active", 0);
  scene_end(&s);
}

static void stopping_ends_all_waiting(void **state) {
  scene s = begin_hosts(NULL);
  int request = dial(s.port);
  put(request, GET_ROOT);
  await_counter(&s.r, "on_demand_waiting", 1);
  na_builder *b = rig_change(&s.r);
  uint8_t ip[16];
  v4_mapped(ip, "127.0.0.1");
  assert_int_equal(na_builder_destination_remove(b, "v", ip, s.port), 0);
  rig_commit(&s.r);
  int connection = dial(s.port);
  sleep_ms(20);
  scene_end(&s);
  close(request);
  close(connection);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_connection_waits_for_its_destination),
      cmocka_unit_test(a_need_is_raised_once_a_second),
      cmocka_unit_test(waiting_ends_in_default_routing),
      cmocka_unit_test(a_waiting_client_may_leave),
      cmocka_unit_test(unhinted_destinations_do_not_wait),
      cmocka_unit_test(nobody_waits_while_nobody_answers),
      cmocka_unit_test(at_most_max_parked_wait),
      cmocka_unit_test(a_request_waits_for_its_host),
      cmocka_unit_test(an_unknown_host_goes_to_the_wildcard),
      cmocka_unit_test(waiting_for_a_host_ends_in_the_wildcard),
      cmocka_unit_test(a_waiting_requests_client_may_leave),
      cmocka_unit_test(stopping_ends_all_waiting),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
