/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards for tests of the engine.
 */
#ifndef NODEAGENT_GUARD_RIG_H
#define NODEAGENT_GUARD_RIG_H

#include "engine_rig.h"

/* Guards with one stage of rules and one policy, whose check is to follow. */
UNUSED static na_guards *new_guards(enum na_guarded guarded, enum na_rule_action action, const char *policy) {
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_rules(guards, guarded, action, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, policy), 0);
  return guards;
}

UNUSED static void guard_text(na_guards *guards, enum na_attribute attribute, uint32_t kind, const char *name,
                              const char *value, uint32_t flags) {
  if (na_check_text(guards, attribute, kind, name, value, flags))
    fail_msg("%s", na_guards_error(guards));
}

/* Put guards in force at a port with tag 77, and at every port of a workload; they are given away, and may be NULL.
 * Other ports speak TCP. */
UNUSED static void guard_workload(rig *r, uint32_t workload, uint16_t number, enum na_protocol protocol,
                                  na_guards *port_guards, na_guards *every) {
  na_guards *guards[2];
  uint32_t n = 0;
  na_inbound_port port = {.port = number, .protocol = (uint16_t)protocol, .tag = 77};
  na_inbound_config config = {.fallback = NA_PROTOCOL_TCP};
  if (port_guards) {
    guards[n++] = port_guards;
    port.guards = n;
  }
  if (every) {
    guards[n++] = every;
    config.every = n;
  }
  na_builder *b = rig_change(r);
  if (na_builder_guarded_inbound(b, workload, &port, 1, &config, guards, n))
    fail_msg("%s", na_builder_error(b));
  for (uint32_t i = 0; i < n; i++)
    na_guards_free(guards[i]);
  rig_commit(r);
}

#endif
