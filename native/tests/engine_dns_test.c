/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS of a workload, captured by nft in a namespace of the test's own: what is answered here, what goes to the name
 * server (which the test plays at OTHER's address), and what becomes of it when that one misbehaves.
 */
#include "capture_rig.h"
#include "dns_message.h"

/* The engine's own questions come from other ports than clients', and pass. */
static const char rules[] =
    CAPTURE_CHAIN "add rule inet capture out udp sport 40000-60999 udp dport 53 redirect to :15053\n"
                  "add rule inet capture out tcp sport 40000-60999 tcp dport 53 redirect to :15053\n";

enum { TIMEOUT_MS = 300, IDLE_MS = 400, MAX_QUESTIONS = 5, SOCKET_QUESTIONS = 3, MAX_STREAMS = 2 };

static rig engine;
static bool ready;
static int datagrams[2], connections[2]; /* the name server's sockets, by family */

/* ---- sockets ---- */

static int bound(bool v6, int type, int host, uint16_t port) {
  socklen_t size;
  int one = 1, fd = socket(v6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);
  struct sockaddr_storage address = address_of(v6, host, port, &size);
  if (type == SOCK_STREAM)
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
  limit_waits(fd);
  return fd;
}

static int on_loopback(bool v6, int type) {
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(15053), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(15053), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  int fd = socket(v6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);
  assert_int_equal(bind(fd, v6 ? (struct sockaddr *)&six : (struct sockaddr *)&v4, v6 ? sizeof six : sizeof v4), 0);
  if (type == SOCK_STREAM)
    assert_int_equal(listen(fd, 16), 0);
  return fd;
}

/* A client of the name server; it hears of nobody else. */
static int client(bool v6, int type) {
  static uint16_t next = 41000;
  socklen_t size;
  int fd = bound(v6, type, POD, next++);
  struct sockaddr_storage server = address_of(v6, OTHER, 53, &size);
  assert_int_equal(connect(fd, (struct sockaddr *)&server, size), 0);
  return fd;
}

static int set_up(void **state) {
  if (!capture_possible())
    return 0;
  engine = rig_start(&(na_config){.dns_timeout_ms = TIMEOUT_MS,
                                  .dns_idle_timeout_ms = IDLE_MS,
                                  .dns_max_questions = MAX_QUESTIONS,
                                  .dns_socket_questions = SOCKET_QUESTIONS,
                                  .dns_max_streams = MAX_STREAMS});
  if (!enter_namespace(rules))
    return 0;
  write_file("/proc/sys/net/ipv4/ip_local_port_range", "33000 39999");
  add_pod(&engine, 7, POD, "v");
  assert_int_equal(na_workload_search(engine.engine, 7, "shop.svc.cluster.local svc.cluster.local cluster.local"), 0);
  for (int v6 = 0; v6 < 2; v6++) {
    for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++)
      assert_int_equal(na_workload_listen(engine.engine, 7, NA_LISTENER_DNS, 0, on_loopback(v6, type)), 0);
    datagrams[v6] = bound(v6, SOCK_DGRAM, OTHER, 53);
    connections[v6] = bound(v6, SOCK_STREAM, OTHER, 53);
    assert_int_equal(listen(connections[v6], 16), 0);
  }
  ready = true;
  return 0;
}

static int tear_down(void **state) {
  if (engine.engine)
    rig_stop(&engine);
  return 0;
}

static void know(const char *name, int first, int n) {
  uint8_t addresses[200][16];
  assert_in_range(n, 0, 200);
  for (int i = 0; i < n; i++) {
    v4_mapped(addresses[i], "10.96.0.0");
    addresses[i][15] = (uint8_t)(first + i);
  }
  assert_int_equal(na_builder_dns(rig_change(&engine), name, addresses[0], (size_t)n), 0);
  rig_commit(&engine);
}

/* ---- messages ---- */

static size_t question(uint8_t *out, uint16_t id, const char *name, uint16_t type) {
  uint8_t header[NA_DNS_HEADER] = {(uint8_t)(id >> 8), (uint8_t)id, 1, 0, 0, 1};
  size_t n = sizeof header;
  memcpy(out, header, n);
  for (size_t length; *name; name += length + (name[length] == '.')) {
    length = strcspn(name, ".");
    out[n++] = (uint8_t)length;
    memcpy(out + n, name, length);
    n += length;
  }
  const uint8_t end[] = {0, (uint8_t)(type >> 8), (uint8_t)type, 0, 1};
  memcpy(out + n, end, sizeof end);
  return n + sizeof end;
}

static void ask(int fd, uint16_t id, const char *name, uint16_t type) {
  uint8_t bytes[512];
  size_t n = question(bytes, id, name, type);
  assert_int_equal(send(fd, bytes, n, 0), n);
}

static size_t hear(int fd, uint8_t *out, size_t size) {
  ssize_t n = recv(fd, out, size, 0);
  if (n < NA_DNS_HEADER)
    fail_msg("no answer: %zd, %s", n, strerror(errno));
  return (size_t)n;
}

/* An answer with that id, result and number of records comes; its last byte, which an address ends with. */
static uint8_t expect_answer(int fd, uint16_t id, int rcode, int records) {
  uint8_t bytes[4096];
  size_t n = hear(fd, bytes, sizeof bytes);
  assert_int_equal(na_dns_get16(bytes), id);
  assert_int_equal(bytes[3] & 0xf, rcode);
  assert_int_equal(na_dns_get16(bytes + 6), records);
  return bytes[n - 1];
}

/* What the name server gets, and from whom. */
typedef struct request {
  uint8_t bytes[512];
  size_t n;
  struct sockaddr_storage from;
  socklen_t size;
} request;

static request serve(int fd) {
  request r = {.size = sizeof r.from};
  ssize_t n = recvfrom(fd, r.bytes, sizeof r.bytes, 0, (struct sockaddr *)&r.from, &r.size);
  assert_true(n >= NA_DNS_HEADER);
  r.n = (size_t)n;
  r.bytes[2] |= 0x80;
  return r;
}

static void reply(int fd, const request *r) {
  assert_int_equal(sendto(fd, r->bytes, r->n, 0, (struct sockaddr *)&r->from, r->size), r->n);
}

/* ---- datagrams ---- */

static void answers_what_it_knows(void **state) {
  need_capture(ready);
  know("web.shop.svc.cluster.local", 7, 1);
  for (int v6 = 0; v6 < 2; v6++) {
    int fd = client(v6, SOCK_DGRAM);
    ask(fd, 1, "web.shop.svc.cluster.local", NA_DNS_A);
    assert_int_equal(expect_answer(fd, 1, NA_DNS_NOERROR, 1), 7);
    ask(fd, 2, "WEB", NA_DNS_A);
    assert_int_equal(expect_answer(fd, 2, NA_DNS_NOERROR, 1), 7);
    ask(fd, 3, "web", NA_DNS_AAAA); /* it exists, but not in IPv6 */
    expect_answer(fd, 3, NA_DNS_NOERROR, 0);
    close(fd);
  }
}

static void forgets_names(void **state) {
  need_capture(ready);
  know("gone.example.com", 7, 1);
  know("gone.example.com", 7, 0);
  int fd = client(false, SOCK_DGRAM);
  ask(fd, 1, "gone.example.com", NA_DNS_A);
  request r = serve(datagrams[0]);
  reply(datagrams[0], &r);
  expect_answer(fd, 1, NA_DNS_NOERROR, 0);
  close(fd);
}

static void turns_answers_round(void **state) {
  need_capture(ready);
  know("many.example.com", 1, 3);
  int fd = client(false, SOCK_DGRAM);
  unsigned seen = 0;
  for (uint16_t i = 0; i < 3; i++) {
    ask(fd, i, "many.example.com", NA_DNS_A);
    ask(fd, i, "many.example.com", NA_DNS_AAAA); /* as resolvers do; it must not take a turn */
    seen |= 1u << expect_answer(fd, i, NA_DNS_NOERROR, 3);
    expect_answer(fd, i, NA_DNS_NOERROR, 0);
  }
  assert_int_equal(seen, 0xe);
  close(fd);
}

static void passes_the_rest_on(void **state) {
  need_capture(ready);
  for (int v6 = 0; v6 < 2; v6++) {
    int fd = client(v6, SOCK_DGRAM);
    ask(fd, 0x1234, "elsewhere.Example.org", NA_DNS_A);
    request r = serve(datagrams[v6]);
    uint8_t asked[512];
    size_t n = question(asked, 0x1234, "elsewhere.Example.org", NA_DNS_A);
    assert_int_equal(r.n, n);
    assert_memory_equal(r.bytes + NA_DNS_HEADER, asked + NA_DNS_HEADER, n - NA_DNS_HEADER);
    reply(datagrams[v6], &r);
    expect_answer(fd, 0x1234, NA_DNS_NOERROR, 0);
    ask(fd, 5, "web.shop.svc.cluster.local", 16); /* TXT of a name that is known */
    r = serve(datagrams[v6]);
    reply(datagrams[v6], &r);
    expect_answer(fd, 5, NA_DNS_NOERROR, 0);
    close(fd);
  }
  await_counter(&engine, "dns_questions_active", 0);
}

static void takes_another_id_and_port(void **state) {
  need_capture(ready);
  uint64_t answers = counter(&engine, "dns_upstream_answers_total");
  int fd = client(false, SOCK_DGRAM);
  uint16_t ids[3], ports[3];
  for (uint16_t i = 0; i < 3; i++) {
    ask(fd, 9, "elsewhere.example.org", NA_DNS_A);
    request r = serve(datagrams[0]);
    ids[i] = na_dns_get16(r.bytes);
    ports[i] = ntohs(((struct sockaddr_in *)&r.from)->sin_port);
    assert_in_range(ports[i], 33000, 39999);
    reply(datagrams[0], &r);
    expect_answer(fd, 9, NA_DNS_NOERROR, 0);
  }
  assert_false(ids[0] == ids[1] && ids[1] == ids[2]);
  assert_false(ports[0] == ports[1] && ports[1] == ports[2]);
  await_counter(&engine, "dns_upstream_answers_total", answers + 3);
  close(fd);
}

static void waits_for_the_response_to_its_question(void **state) {
  need_capture(ready);
  uint64_t strays = counter(&engine, "dns_stray_total");
  int fd = client(false, SOCK_DGRAM);
  ask(fd, 1, "elsewhere.example.org", NA_DNS_A);
  request r = serve(datagrams[0]), wrong = r;
  wrong.bytes[0] ^= 1;
  wrong.bytes[3] |= 3;
  reply(datagrams[0], &wrong);
  wrong = r;
  wrong.bytes[NA_DNS_HEADER + 1] = 'x';
  reply(datagrams[0], &wrong);
  reply(datagrams[0], &r);
  expect_answer(fd, 1, NA_DNS_NOERROR, 0);
  assert_int_equal(counter(&engine, "dns_stray_total") - strays, 2);
  close(fd);
}

static void says_that_a_name_server_is_not_there(void **state) {
  need_capture(ready);
  close(datagrams[0]);
  int fd = client(false, SOCK_DGRAM);
  ask(fd, 1, "elsewhere.example.org", NA_DNS_A);
  expect_answer(fd, 1, NA_DNS_SERVFAIL, 0);
  datagrams[0] = bound(false, SOCK_DGRAM, OTHER, 53);
  close(fd);
}

static void gives_up_in_time(void **state) {
  need_capture(ready);
  uint64_t before = counter(&engine, "dns_upstream_timeouts_total");
  int fd = client(false, SOCK_DGRAM);
  ask(fd, 1, "elsewhere.example.org", NA_DNS_A);
  request r = serve(datagrams[0]);
  await_counter(&engine, "dns_upstream_timeouts_total", before + 1);
  assert_int_equal(counter(&engine, "dns_questions_active"), 0);
  reply(datagrams[0], &r); /* too late */
  assert_false(readable_within(fd, 20));
  close(fd);
}

static void bounds_the_questions_that_wait(void **state) {
  need_capture(ready);
  enum { OTHERS = MAX_QUESTIONS - SOCKET_QUESTIONS };
  int fds[] = {client(false, SOCK_DGRAM), client(true, SOCK_DGRAM)}, most[] = {SOCKET_QUESTIONS, OTHERS};
  request waiting[MAX_QUESTIONS];
  for (int v6 = 0, n = 0; v6 < 2; v6++) { /* one socket's limit first, then that of all */
    for (uint16_t i = 0; i <= most[v6]; i++)
      ask(fds[v6], i, "elsewhere.example.org", NA_DNS_A);
    expect_answer(fds[v6], (uint16_t)most[v6], NA_DNS_SERVFAIL, 0);
    for (int i = 0; i < most[v6]; i++)
      waiting[n++] = serve(datagrams[v6]);
  }
  for (int v6 = 0, n = 0; v6 < 2; v6++) {
    for (int i = 0; i < most[v6]; i++)
      reply(datagrams[v6], &waiting[n++]);
    for (int i = 0; i < most[v6]; i++)
      expect_answer(fds[v6], (uint16_t)i, NA_DNS_NOERROR, 0);
    close(fds[v6]);
  }
}

static void refuses_what_was_meant_for_nobody(void **state) {
  need_capture(ready);
  struct sockaddr_in here = {
      .sin_family = AF_INET, .sin_port = htons(15053), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    uint8_t bytes[512], length[2];
    size_t n = question(bytes, 1, "elsewhere.example.org", NA_DNS_A);
    limit_waits(fd);
    assert_int_equal(connect(fd, (struct sockaddr *)&here, sizeof here), 0);
    na_dns_put16(length, (uint16_t)n);
    if (type == SOCK_STREAM)
      put_n(fd, length, 2);
    assert_int_equal(send(fd, bytes, n, 0), n);
    if (type == SOCK_STREAM)
      get_n(fd, length, 2);
    expect_answer(fd, 1, NA_DNS_REFUSED, 0);
    close(fd);
  }
}

static void refuses_what_is_no_message(void **state) {
  need_capture(ready);
  int fd = client(false, SOCK_DGRAM);
  send(fd, "short", 5, 0);
  send(fd, "\x00\x01\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00", 12, 0); /* a response */
  send(fd, "\x00\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01", 18, 0);
  expect_answer(fd, 2, NA_DNS_FORMERR, 0);
  assert_false(readable_within(fd, 20));
  close(fd);
}

/* ---- connections ---- */

static void put_message(int fd, const uint8_t *bytes, size_t n) {
  uint8_t length[2];
  na_dns_put16(length, (uint16_t)n);
  put_n(fd, length, 2);
  put_n(fd, bytes, n);
}

static size_t get_message(int fd, uint8_t *out) {
  uint8_t length[2];
  get_n(fd, length, 2);
  get_n(fd, out, na_dns_get16(length));
  return na_dns_get16(length);
}

static void answers_connections(void **state) {
  need_capture(ready);
  know("large.example.com", 0, 200);
  for (int v6 = 0; v6 < 2; v6++) {
    int datagram = client(v6, SOCK_DGRAM), fd = client(v6, SOCK_STREAM);
    uint8_t bytes[512], answer[8192];
    ask(datagram, 1, "large.example.com", NA_DNS_A);
    hear(datagram, answer, sizeof answer);
    assert_int_equal(answer[2] & 2, 2); /* truncated */
    size_t n = question(bytes, 1, "large.example.com", NA_DNS_A);
    put_message(fd, bytes, n);
    assert_int_equal(get_message(fd, answer), n + 200 * 16);
    assert_int_equal(answer[2] & 2, 0);
    close(fd);
    close(datagram);
  }
}

static void takes_messages_as_they_come(void **state) {
  need_capture(ready);
  int fd = client(false, SOCK_STREAM);
  uint8_t bytes[1024], answer[512];
  size_t n = 0;
  for (uint16_t i = 0; i < 3; i++) {
    size_t length = question(bytes + n + 2, i, "web.shop.svc.cluster.local", NA_DNS_A);
    na_dns_put16(bytes + n, (uint16_t)length);
    n += 2 + length;
  }
  for (size_t i = 0; i < 40; i++)
    put_n(fd, bytes + i, 1);
  put_n(fd, bytes + 40, n - 40);
  for (uint16_t i = 0; i < 3; i++) {
    get_message(fd, answer);
    assert_int_equal(na_dns_get16(answer), i);
  }
  close(fd);
}

static void asks_the_name_server_by_one_connection(void **state) {
  need_capture(ready);
  for (int v6 = 0; v6 < 2; v6++) {
    int fd = client(v6, SOCK_STREAM), server = -1;
    uint8_t bytes[512], got[512], answer[512];
    for (uint16_t i = 0; i < 3; i++) {
      size_t n = question(bytes, i, "elsewhere.example.org", NA_DNS_A);
      put_message(fd, bytes, n);
      struct sockaddr_storage peer;
      if (server < 0)
        server = answer_from(connections[v6], &peer);
      assert_int_equal(get_message(server, got), n);
      got[2] |= 0x80;
      put_message(server, got, n);
      assert_int_equal(get_message(fd, answer), n);
      assert_int_equal(na_dns_get16(answer), i);
    }
    close(fd);
    expect_end(server);
    close(server);
  }
}

static void says_that_a_connection_broke(void **state) {
  need_capture(ready);
  int fd = client(false, SOCK_STREAM);
  uint8_t bytes[512], answer[512];
  struct sockaddr_storage peer;
  size_t n = question(bytes, 1, "elsewhere.example.org", NA_DNS_A);
  put_message(fd, bytes, n);
  int server = answer_from(connections[0], &peer);
  get_message(server, answer);
  close(server);
  get_message(fd, answer);
  assert_int_equal(answer[3] & 0xf, NA_DNS_SERVFAIL);
  put_message(fd, bytes, n); /* another one is made */
  server = answer_from(connections[0], &peer);
  close(server);
  get_message(fd, answer);
  assert_int_equal(answer[3] & 0xf, NA_DNS_SERVFAIL);
  close(fd);
}

static void hands_transfers_over_in_parts(void **state) {
  need_capture(ready);
  int fd = client(false, SOCK_STREAM);
  uint8_t bytes[512], answer[512];
  struct sockaddr_storage peer;
  size_t n = question(bytes, 1, "example.org", NA_DNS_AXFR);
  put_message(fd, bytes, n);
  int server = answer_from(connections[0], &peer);
  get_message(server, answer);
  answer[2] |= 0x80;
  for (int i = 0; i < 3; i++)
    put_message(server, answer, n);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(get_message(fd, answer), n);
    assert_int_equal(na_dns_get16(answer), 1);
  }
  close(server);
  expect_end(fd);
  close(fd);
}

static void bounds_connections(void **state) {
  need_capture(ready);
  uint64_t before = counter(&engine, "dns_overflow_total");
  int open[MAX_STREAMS];
  await_counter(&engine, "dns_streams_active", 0);
  for (int i = 0; i < MAX_STREAMS; i++)
    open[i] = client(false, SOCK_STREAM);
  await_counter(&engine, "dns_streams_active", MAX_STREAMS);
  int fd = client(false, SOCK_STREAM);
  expect_end(fd);
  close(fd);
  assert_int_equal(counter(&engine, "dns_overflow_total") - before, 1);
  for (int i = 0; i < MAX_STREAMS; i++) { /* idle for too long */
    expect_end(open[i]);
    close(open[i]);
  }
}

/* Last: the workload goes, with what waits for it. */
static void lets_a_workload_go(void **state) {
  need_capture(ready);
  int fd = client(false, SOCK_DGRAM), stream = client(false, SOCK_STREAM);
  ask(fd, 1, "elsewhere.example.org", NA_DNS_A);
  (void)serve(datagrams[0]);
  await_counter(&engine, "dns_streams_active", 1);
  assert_int_equal(na_workload_remove(engine.engine, 7, 0), 0);
  for (int i = 0; i < RIG_WAIT_MS && !na_workload_gone(engine.engine, 7); i++)
    sleep_ms(1);
  assert_true(na_workload_gone(engine.engine, 7));
  assert_int_equal(counter(&engine, "dns_questions_active"), 0);
  assert_int_equal(counter(&engine, "dns_streams_active"), 0);
  close(fd);
  close(stream);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(answers_what_it_knows),
      cmocka_unit_test(forgets_names),
      cmocka_unit_test(turns_answers_round),
      cmocka_unit_test(passes_the_rest_on),
      cmocka_unit_test(takes_another_id_and_port),
      cmocka_unit_test(waits_for_the_response_to_its_question),
      cmocka_unit_test(says_that_a_name_server_is_not_there),
      cmocka_unit_test(gives_up_in_time),
      cmocka_unit_test(bounds_the_questions_that_wait),
      cmocka_unit_test(refuses_what_was_meant_for_nobody),
      cmocka_unit_test(refuses_what_is_no_message),
      cmocka_unit_test(answers_connections),
      cmocka_unit_test(takes_messages_as_they_come),
      cmocka_unit_test(asks_the_name_server_by_one_connection),
      cmocka_unit_test(says_that_a_connection_broke),
      cmocka_unit_test(hands_transfers_over_in_parts),
      cmocka_unit_test(bounds_connections),
      cmocka_unit_test(lets_a_workload_go),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
