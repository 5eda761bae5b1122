/* SPDX-License-Identifier: Apache-2.0
 *
 * Stages that wait for somebody's answer, here the test: what waits goes on, is refused, or goes away meanwhile.
 */
#include <pthread.h>

#include "authz.h"
#include "conn.h"
#include "engine.h"
#include "guard_rig.h"
#include "h2_peer.h"

static const na_config logged = {.access_log = 1};

/* ---- a stage whose answer the test gives ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static na_asker *waiting; /* under the lock */
static int asked, abandoned;

static void abandon(void *state) {
  pthread_mutex_lock(&lock);
  abandoned++;
  waiting = NULL;
  pthread_mutex_unlock(&lock);
}

static enum na_verdict ask(const na_stage *stage, na_subject *subject, na_refusal *refusal) {
  if (subject->again || !subject->asker)
    return NA_VERDICT_ALLOW;
  pthread_mutex_lock(&lock);
  waiting = subject->asker;
  waiting->abandon = abandon;
  asked++;
  pthread_mutex_unlock(&lock);
  return NA_VERDICT_WAIT;
}

static void explain(const na_stage *stage, const na_subject *subject, na_out *out) {}

static void stage_free(na_stage *stage) {
  free(stage);
}

static const na_stage_kind kind = {.name = "test", .keeps = true, .ask = ask, .explain = explain, .free = stage_free};

/* Guards of the stage, and behind it rules that deny the path /denied. */
static na_guards *waiting_guards(enum na_guarded guarded) {
  na_guards *guards;
  na_stage *stage = calloc(1, sizeof *stage);
  stage->kind = &kind;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_append(guards, guarded, stage), 0);
  assert_int_equal(na_guards_rules(guards, guarded, NA_RULE_DENY, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "behind"), 0);
  guard_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/denied", 0);
  return guards;
}

typedef struct verdict_call {
  enum na_verdict verdict;
} verdict_call;

static void give(na_worker *worker, void *argument) {
  const verdict_call *call = argument;
  const na_header tells = {.name = na_str_of("x-why"), .value = na_str_of("because")};
  const na_refusal refusal = {.status = 429,
                              .flags = NA_FLAG_UAEX,
                              .detail = "ext_authz_denied",
                              .body = na_str_of("no"),
                              .headers = &tells,
                              .nheaders = 1};
  na_asker *asker = waiting;
  waiting = NULL;
  if (asker)
    asker->resume(asker, call->verdict, &refusal);
}

static void await_asked(int n) {
  for (int i = 0; i < RIG_WAIT_MS; i++) {
    pthread_mutex_lock(&lock);
    bool there = asked == n;
    pthread_mutex_unlock(&lock);
    if (there)
      return;
    sleep_ms(1);
  }
  fail_msg("nobody was asked");
}

static void answer_with(hbone_scene *s, enum na_verdict verdict) {
  verdict_call call = {verdict};
  na_worker_call(&s->r.engine->workers[0], give, &call);
}

static hbone_scene begin(enum na_protocol protocol, enum na_guarded guarded) {
  hbone_scene s = hbone_scene_of(&logged, protocol, protocol);
  asked = abandoned = 0;
  guard_workload(&s.r, 2, s.backend, protocol, waiting_guards(guarded), NULL);
  return s;
}

/* ---- requests ---- */

static void requests_wait(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_HTTP, NA_GUARDED_REQUEST);
  int client = dial(s.port);
  put(client, "POST /a/../b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
  await_asked(1);
  int server = answer(s.listener); /* the tunnel's 200 needs the application */
  expect_silence(server, 20);
  assert_int_equal(counter(&s.r, "guards_waiting"), 1);
  answer_with(&s, NA_VERDICT_ALLOW);
  expect_head(server, "POST /b HTTP/1.1");
  expect(server, "body");
  put(server, OK_HELLO);
  expect_head(client, "HTTP/1.1 200 OK");
  expect(client, "hello");
  put(client, GET_ROOT);
  await_asked(2);
  answer_with(&s, NA_VERDICT_DENY);
  const char *head = expect_head(client, "HTTP/1.1 429 Too Many Requests");
  assert_has(head, "x-why: because\r\n");
  expect(client, "no");
  put(client, "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n");
  await_asked(3);
  answer_with(&s, NA_VERDICT_ALLOW); /* the stage behind it has its say, too */
  expect_head(client, "HTTP/1.1 403 Forbidden");
  expect_silence(server, 20);
  assert_int_equal(counter(&s.r, "guards_waiting"), 0);
  assert_int_equal(abandoned, 0);
  close(client);
  close(server);
  hbone_end(&s);
}

static void requests_go_away_while_they_wait(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_HTTP, NA_GUARDED_REQUEST);
  int client = dial(s.port);
  put(client, GET_ROOT);
  await_asked(1);
  close(answer(s.listener));
  sleep_ms(150); /* at once it could still wait for the answer */
  close(client);
  await_counter(&s.r, "guards_waiting", 0);
  assert_int_equal(abandoned, 1);
  answer_with(&s, NA_VERDICT_ALLOW); /* too late: nobody is told */
  hbone_end(&s);
}

static void requests_wait_over_changes(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_HTTP, NA_GUARDED_REQUEST);
  int client = dial(s.port);
  put(client, "GET /denied HTTP/1.1\r\nHost: a\r\n\r\n");
  await_asked(1);
  guard_workload(&s.r, 2, s.backend, NA_PROTOCOL_HTTP, NULL, NULL);
  answer_with(&s, NA_VERDICT_ALLOW); /* by the guards that it was asked by */
  expect_head(client, "HTTP/1.1 403 Forbidden");
  close(client);
  close(answer(s.listener));
  hbone_end(&s);
}

/* ---- connections ---- */

static void connects_wait(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_TCP, NA_GUARDED_CONNECTION);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  await_asked(1);
  expect_silence(s.listener, 20);
  answer_with(&s, NA_VERDICT_ALLOW);
  assert_int_equal(h2_status(&peer, 1), 200);
  int server = answer(s.listener);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "hello", 5));
  expect(server, "hello");
  assert_true(h2_connect(&peer, 3, &s));
  await_asked(2);
  answer_with(&s, NA_VERDICT_DENY);
  assert_int_equal(h2_status(&peer, 3), 401);
  na_access_record record = get_record(&s.r);
  assert_string_equal(record.detail, "ext_authz_denied");
  assert_int_equal(record.flags, NA_FLAG_UAEX);
  expect_silence(s.listener, 20);
  assert_int_equal(asked, 2); /* once for each */
  h2_close(&peer);
  close(server);
  hbone_end(&s);
}

static void connections_go_away_while_they_wait(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_TCP, NA_GUARDED_CONNECTION);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  await_asked(1);
  h2_close(&peer);
  await_counter(&s.r, "guards_waiting", 0);
  assert_int_equal(abandoned, 1);
  answer_with(&s, NA_VERDICT_ALLOW);
  expect_silence(s.listener, 20);
  hbone_end(&s);
}

/* What was read before the protocol showed is kept for the application. */
static void detected_connections_wait(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_DETECT, NA_GUARDED_CONNECTION);
  h2_peer peer;
  h2_dial(&peer, &s);
  assert_true(h2_connect(&peer, 1, &s));
  assert_int_equal(h2_status(&peer, 1), 200);
  int server = answer(s.listener);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "\x16\x03\x01", 3));
  await_asked(1);
  assert_true(h2_send(&peer, H2_DATA, 0, 1, "more", 4));
  expect_silence(server, 20);
  answer_with(&s, NA_VERDICT_ALLOW);
  expect(server, "\x16\x03\x01more");
  h2_close(&peer);
  close(server);
  hbone_end(&s);
}

static void engines_stop_while_somebody_waits(void **state) {
  hbone_scene s = begin(NA_PROTOCOL_HTTP, NA_GUARDED_REQUEST);
  int client = dial(s.port);
  put(client, GET_ROOT);
  await_asked(1);
  hbone_end(&s);
  assert_int_equal(abandoned, 1);
  close(client);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(requests_wait),
      cmocka_unit_test(requests_go_away_while_they_wait),
      cmocka_unit_test(requests_wait_over_changes),
      cmocka_unit_test(connects_wait),
      cmocka_unit_test(connections_go_away_while_they_wait),
      cmocka_unit_test(detected_connections_wait),
      cmocka_unit_test(engines_stop_while_somebody_waits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
