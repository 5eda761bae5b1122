/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine under test between clients and one back end, which the test plays.
 */
#ifndef NODEAGENT_SCENE_RIG_H
#define NODEAGENT_SCENE_RIG_H

#include "engine_rig.h"

typedef struct scene {
  rig r;
  int listener;     /* the back end's */
  uint16_t backend; /* its port */
  uint16_t port;    /* the engine's, where clients connect to */
} scene;

/* Nothing is configured yet. */
UNUSED static scene scene_begin(const na_config *config) {
  scene s = {.r = rig_start(config)};
  s.listener = listen_any(&s.backend);
  s.port = rig_listen(&s.r);
  return s;
}

/* The engine leads to the back end, in cluster "c". */
UNUSED static scene scene_of(const na_config *config, enum na_protocol protocol) {
  scene s = scene_begin(config);
  rig_serve(&s.r, s.port, protocol, s.backend);
  return s;
}

UNUSED static void scene_end(scene *s) {
  close(s->listener);
  rig_stop(&s->r);
}

#endif
