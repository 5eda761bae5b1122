/* SPDX-License-Identifier: Apache-2.0
 *
 * A pod whose inbound traffic is captured, with guards at its port 8080. Needs root and nft; `ready` tells.
 */
#ifndef NODEAGENT_GUARDED_POD_RIG_H
#define NODEAGENT_GUARDED_POD_RIG_H

#include "capture_rig.h"
#include "guard_rig.h"

static rig engine;
static bool ready;

UNUSED static int set_up(void **state) {
  if (!capture_possible())
    return 0;
  engine = rig_start(&(na_config){.access_log = 1});
  if (!enter_namespace(CAPTURE_SERVICE))
    return 0;
  write_file("/proc/sys/net/ipv4/ip_local_port_range", "33000 39999");
  add_pod(&engine, 7, POD, "v");
  assert_int_equal(na_workload_listen(engine.engine, 7, NA_LISTENER_INBOUND, 0, listen_all(15006)), 0);
  ready = true;
  return 0;
}

UNUSED static int tear_down(void **state) {
  if (engine.engine)
    rig_stop(&engine);
  return 0;
}

/* Reports of earlier tests. */
UNUSED static void forget_reports(void) {
  na_access_record rest[64];
  while (na_engine_drain_access(engine.engine, rest, COUNT(rest)) > 0)
    ;
}

/* Port 8080 of the workload under these guards, which are given away; NULL: none. */
UNUSED static void put_in_force(enum na_protocol protocol, na_guards *port_guards, na_guards *every) {
  guard_workload(&engine, 7, 8080, protocol, port_guards, every);
  forget_reports();
}

UNUSED static na_guards *deny_path(uint32_t kind, const char *path) {
  na_guards *guards = new_guards(NA_GUARDED_REQUEST, NA_RULE_DENY, "no");
  guard_text(guards, NA_ATTRIBUTE_PATH, kind, NULL, path, 0);
  return guards;
}

/* Deny a client by its address. */
UNUSED static na_guards *deny_host(enum na_guarded guarded, int host) {
  uint8_t ip[16];
  sixteen_bytes(false, host, ip);
  na_guards *guards = new_guards(guarded, NA_RULE_DENY, "no-host");
  assert_int_equal(na_check_address(guards, NA_PLACE_PEER, ip, 128), 0);
  return guards;
}

UNUSED static na_guards *deny_plaintext(void) {
  na_guards *guards = new_guards(NA_GUARDED_CONNECTION, NA_RULE_DENY, "strict");
  assert_int_equal(na_check_not(guards), 0);
  guard_text(guards, NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_PRESENT, NULL, "", 0);
  return guards;
}

#define DENIED_BODY "RBAC: access denied"

UNUSED static void expect_403(int client) {
  const char *head = expect_head(client, "HTTP/1.1 403 Forbidden");
  assert_has(head, "content-type: text/plain\r\n");
  assert_has(head, "content-length: 19\r\n");
  expect(client, DENIED_BODY);
}

#endif
