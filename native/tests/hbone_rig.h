/* SPDX-License-Identifier: Apache-2.0
 *
 * Two workloads of one engine with a tunnel between them: workload 1 ("a", an explicit proxy) sends what it gets to the
 * tests' back end, which workload 2 ("b") has for its application.
 */
#ifndef NODEAGENT_HBONE_RIG_H
#define NODEAGENT_HBONE_RIG_H

#include "engine_rig.h"
#include "pki.h"

#define ID_A  "spiffe://cluster.local/ns/x/sa/a"
#define ID_B  "spiffe://cluster.local/ns/x/sa/b"
#define BAG_A "k8s.namespace.name=x,k8s.deployment.name=a"

typedef struct hbone_scene {
  rig r;
  credential ca, a, b;
  int listener; /* the back end's */
  uint16_t backend;
  uint16_t tunnel; /* workload 2's HBONE port */
  uint16_t port;   /* workload 1's proxy */
} hbone_scene;

UNUSED static void set_identity(rig *r, const char *name, const credential *c, const credential *ca) {
  int error = na_identity_set(r->engine, name, c->chain, c->key_pem, ca->chain, NULL, 0);
  if (error)
    fail_msg("%s", na_engine_error(r->engine));
}

/* The engine with both workloads, and no configuration or identity yet. */
UNUSED static hbone_scene hbone_begin(const na_config *config) {
  hbone_scene s = {.r = rig_start(config)};
  uint8_t own[16];
  v4_mapped(own, "10.9.9.8");
  s.ca = new_ca("root");
  s.a = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_A}});
  s.b = new_leaf(&s.ca, &(leaf_spec){.uris = {ID_B}});
  assert_int_equal(na_workload_add(s.r.engine, 2, -1, "w", own, 1), 0);
  assert_int_equal(na_workload_identity(s.r.engine, 1, ID_A), 0);
  assert_int_equal(na_workload_identity(s.r.engine, 2, ID_B), 0);
  assert_int_equal(na_workload_baggage(s.r.engine, 1, BAG_A), 0);
  s.listener = listen_any(&s.backend);
  s.port = rig_listen(&s.r);
  int fd = listen_any(&s.tunnel);
  assert_int_equal(na_workload_listen(s.r.engine, 2, NA_LISTENER_HBONE, 0, fd), 0);
  return s;
}

UNUSED static void hbone_endpoint(na_builder *b, const hbone_scene *s, const char *identities) {
  na_endpoint endpoint = endpoint_at(s->backend);
  na_tunnel_config tunnel = {.port = s->tunnel, .identities = identities};
  uint32_t via = 1;
  assert_int_equal(na_builder_tunnelled_endpoints(b, "c", &endpoint, 1, &via, &tunnel, 1), 0);
}

/* Both identities; a's view leads through the tunnel; b's inbound takes everything as `inbound`. */
UNUSED static void hbone_configure(hbone_scene *s, enum na_protocol outbound, enum na_protocol inbound) {
  set_identity(&s->r, ID_A, &s->a, &s->ca);
  set_identity(&s->r, ID_B, &s->b, &s->ca);
  rig_serve(&s->r, s->port, outbound, s->backend);
  na_builder *b = rig_change(&s->r);
  hbone_endpoint(b, s, ID_B);
  assert_int_equal(na_builder_inbound(b, 2, NULL, 0, inbound), 0);
  rig_commit(&s->r);
}

UNUSED static hbone_scene hbone_scene_of(const na_config *config, enum na_protocol outbound, enum na_protocol inbound) {
  hbone_scene s = hbone_begin(config);
  hbone_configure(&s, outbound, inbound);
  return s;
}

UNUSED static void hbone_end(hbone_scene *s) {
  close(s->listener);
  rig_stop(&s->r);
  free_credential(&s->ca);
  free_credential(&s->a);
  free_credential(&s->b);
}

#endif
