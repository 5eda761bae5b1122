/* SPDX-License-Identifier: Apache-2.0
 *
 * Command operators in headers, told of real requests and responses.
 */
#include <stdarg.h>

#include "engine_rig.h"

typedef struct operation {
  enum na_header_side side;
  const char *name, *value;
} operation;

static const operation operations[] = {
    {NA_REQUEST, "x-user", "user=%REQ(x-id?x-other)%"},
    {NA_REQUEST, "x-path", "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%"},
    {NA_REQUEST, "x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%"},
    {NA_REQUEST, "x-there", "%DOWNSTREAM_LOCAL_ADDRESS%"},
    {NA_REQUEST, "x-up", "%UPSTREAM_HOST%"},
    {NA_REQUEST, "x-route", "%ROUTE_NAME%/%UPSTREAM_CLUSTER%/%PROTOCOL%"},
    {NA_REQUEST, "x-when", "%START_TIME%"},
    {NA_REQUEST, "x-since", "%START_TIME(%s)%"},
    {NA_REQUEST, "x-machine", "%HOSTNAME%"},
    {NA_REQUEST, "x-connection", "%CONNECTION_ID%"},
    {NA_REQUEST, "x-nothing", "%REQ(x-absent)%%RESP(x-absent)%%RESPONSE_CODE%%DOWNSTREAM_PEER_URI_SAN%"},
    {NA_REQUEST, "x-kept", "%REQ(x-absent)%"},
    {NA_RESPONSE, "x-echo", "%REQ(x-id)% %REQ(:path)% %REQ(:authority)% %REQ(:method)%"},
    {NA_RESPONSE, "x-answer", "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESP(x-from)%"},
    {NA_RESPONSE, "x-from", "%UPSTREAM_REMOTE_ADDRESS% at 100%%"},
};

static void expect_line(const char *head, const char *name, const char *format, ...) {
  char line[300];
  va_list arguments;
  int n = snprintf(line, sizeof line, "\r\n%s: ", name);
  va_start(arguments, format);
  n += vsnprintf(line + n, sizeof line - (size_t)n, format, arguments);
  va_end(arguments);
  strcpy(line + n, "\r\n");
  assert_has(head, line);
}

static void expect_times(const char *head) {
  int year, month, day, hour, minute, second, ms, end = 0;
  sscanf(strstr(head, "x-when: "), "x-when: %4d-%2d-%2dT%2d:%2d:%2d.%3dZ\r\n%n", &year, &month, &day, &hour, &minute,
         &second, &ms, &end);
  assert_int_equal(end, strlen("x-when: 2018-12-18T00:00:00.000Z\r\n"));
  assert_true(labs(atol(strstr(head, "x-since: ") + 9) - time(NULL)) <= 2);
}

static void expect_request(const char *head, uint16_t port, uint16_t backend, uint16_t client) {
  char machine[200] = "";
  gethostname(machine, sizeof machine - 1);
  expect_line(head, "x-user", "user=7");
  expect_line(head, "x-path", "GET /a?b=c h http");
  expect_line(head, "x-client", "127.0.0.1 %u", client);
  expect_line(head, "x-there", "127.0.0.1:%u", port);
  expect_line(head, "x-up", "127.0.0.1:%u", backend);
  expect_line(head, "x-route", "r/outbound|80||a/HTTP/1.1");
  expect_times(head);
  expect_line(head, "x-machine", "%s", machine);
  assert_true(atol(strstr(head, "x-connection: ") + 14) > 0);
  expect_line(head, "x-kept", "own");
  assert_null(strstr(head, "x-nothing"));
}

static void expect_response(const char *head, uint16_t backend) {
  expect_line(head, "x-echo", "7 /a?b=c h GET");
  expect_line(head, "x-answer", "200 via_upstream app");
  expect_line(head, "x-from", "127.0.0.1:%u at 100%%", backend);
}

static void values_are_those_of_the_request(void **state) {
  rig r = rig_start(NULL);
  uint16_t backend, port = rig_listen(&r);
  int listener = listen_any(&backend);
  na_builder *b = rig_change(&r);
  add_cluster(b, "v/outbound|80||a", backend);
  assert_int_equal(na_builder_table(b, "t", TAG_TABLE, 0), 0);
  na_route *route;
  na_vhost *vhost = new_vhost("vh", "*", "v/outbound|80||a", &route);
  for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
    assert_int_equal(na_route_header(route, operations[i].side, NA_HEADER_SET, operations[i].name, operations[i].value),
                     0);
  assert_int_equal(na_builder_vhost(b, "t", vhost), 0);
  add_destination(b, port, NA_PROTOCOL_HTTP, "t", NULL);
  rig_commit(&r);
  int client = dial(port);
  struct sockaddr_in own;
  socklen_t size = sizeof own;
  assert_int_equal(getsockname(client, (struct sockaddr *)&own, &size), 0);
  put(client, "GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Id:  7 \r\nx-kept: own\r\n\r\n");
  int server = answer(listener);
  expect_request(get_head(server), port, backend, ntohs(own.sin_port));
  put(server, "HTTP/1.1 200 OK\r\nx-from: app\r\ncontent-length: 0\r\n\r\n");
  expect_response(get_head(client), backend);
  close(client);
  close(server);
  close(listener);
  rig_stop(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(values_are_those_of_the_request)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
