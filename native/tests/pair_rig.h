/* SPDX-License-Identifier: Apache-2.0
 *
 * Two workloads of one engine, in a network namespace of the test's own: "a" (10.1.0.1) is a proxy, whose only endpoint
 * is at "b" (10.1.0.2), which is captured. Needs root and nft.
 */
#ifndef NODEAGENT_PAIR_RIG_H
#define NODEAGENT_PAIR_RIG_H

#include "capture_rig.h"
#include "hbone_rig.h"

enum { A = POD, B = CLIENT, STRANGER = OTHER };
enum { WORKLOAD_A = 5, WORKLOAD_B = 7, SERVICE = 8080 };

typedef struct pair_rig {
  rig r;
  credential ca, a, b;
  uint16_t proxy; /* a's */
  bool ready;     /* false: it cannot be had here */
} pair_rig;

/* `accepting`: the worker that takes b's connections; a's are the first one's. `ready` tells whether it succeeded. */
UNUSED static pair_rig pair_start(const na_config *config, uint32_t accepting) {
  pair_rig p = {0};
  if (!capture_possible())
    return p;
  p.r = rig_start(config);
  if (!enter_namespace(CAPTURE_SERVICE))
    return p;
  write_file("/proc/sys/net/ipv4/ip_local_port_range", "40000 60999");
  add_pod(&p.r, WORKLOAD_A, A, "v");
  add_pod(&p.r, WORKLOAD_B, B, "w");
  assert_int_equal(na_workload_identity(p.r.engine, WORKLOAD_A, ID_A), 0);
  assert_int_equal(na_workload_identity(p.r.engine, WORKLOAD_B, ID_B), 0);
  assert_int_equal(na_workload_listen(p.r.engine, WORKLOAD_A, NA_LISTENER_PLAIN, 0, listen_any(&p.proxy)), 0);
  assert_int_equal(na_workload_listen(p.r.engine, WORKLOAD_B, NA_LISTENER_INBOUND, accepting, listen_all(15006)), 0);
  p.ca = new_ca("root");
  p.a = new_leaf(&p.ca, &(leaf_spec){.uris = {ID_A}});
  p.b = new_leaf(&p.ca, &(leaf_spec){.uris = {ID_B}});
  p.ready = true;
  return p;
}

UNUSED static void pair_stop(pair_rig *p) {
  if (p->r.engine)
    rig_stop(&p->r);
  if (p->ready) {
    free_credential(&p->ca);
    free_credential(&p->a);
    free_credential(&p->b);
  }
}

/* Both have the certificates that they should. */
UNUSED static void pair_identify(pair_rig *p) {
  set_identity(&p->r, ID_A, &p->a, &p->ca);
  set_identity(&p->r, ID_B, &p->b, &p->ca);
}

/* The next record of a side; those of the other are dropped. */
UNUSED static na_access_record record_of(rig *r, int inbound) {
  for (;;) {
    na_access_record record = get_record(r);
    if (record.inbound == inbound)
      return record;
  }
}

/* Drop the records of connections that have ended by now. */
UNUSED static void forget_records(rig *r) {
  na_access_record rest[16];
  sleep_ms(20);
  na_engine_drain_access(r->engine, rest, COUNT(rest));
}

#endif
