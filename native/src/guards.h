/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards: who may do what at a workload's ports. Built once through na_guards_* and na_check_* calls (guards_build.c),
 * then immutable, shared by snapshots and by whoever waits at one of their stages. How they are asked: authz.h.
 */
#ifndef NODEAGENT_GUARDS_H
#define NODEAGENT_GUARDS_H

#include <stdatomic.h>

#include "check.h"

/* Bounds; above them -E2BIG. */
#define NA_MAX_STAGES      64   /* of one side of guards */
#define NA_MAX_POLICIES    8192 /* of a stage */
#define NA_MAX_POLICY_NAME 256

typedef struct na_principals na_names; /* principals.h */
typedef struct na_slots na_slots;      /* slots.h */
typedef struct na_stage na_stage;
typedef struct na_stage_kind na_stage_kind; /* authz.h */
typedef struct na_tokens na_tokens;         /* tokens.h */
typedef struct na_callout na_callout;       /* callout.h */

/* What every kind of stage begins with. */
struct na_stage {
  const na_stage_kind *kind;
  na_stage *next;
};

/* A named reason to allow or to deny. */
typedef struct na_policy {
  char *name;
  uint32_t id;  /* na_engine_policy() */
  char *detail; /* of what it refuses, as Envoy words it */
  na_expression check;
} na_policy;

/* Policies with one action: Envoy's RBAC. */
typedef struct na_rules {
  na_stage stage;
  uint8_t action; /* enum na_rule_action */
  bool shadow;
  char *effective; /* of a shadow: the metadata of the policy that matched, and of the outcome */
  char *result;
  na_policy *policies;
  uint32_t n;
} na_rules;

struct na_guards {
  atomic_uint refs;
  bool sealed;
  uint8_t slashes;       /* NA_SLASHES_* */
  bool keeps;            /* stages keep something about a request: metadata, changes, or that it waits */
  na_stage *stages[2];   /* by enum na_guarded, in order */
  na_rules *rules;       /* under construction: the stage begun last */
  na_tokens *tokens;     /* likewise */
  na_callout *callout;   /* likewise */
  na_expression *open;   /* the expression to which na_check_* append; NULL: none */
  const char *open_name; /* whose it is, for errors */
  char error[512];
};

na_guards *na_guards_ref(na_guards *guards);

/* For the files that build stages. */

/* Set the error text; returns rc. */
int na_guards_fail(na_guards *guards, int rc, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Whether something may be added, and what was begun before is complete; -errno. Call first. */
int na_guards_begin(na_guards *guards);
/* Append a stage, which is owned from then on, also on error. */
int na_guards_append(na_guards *guards, enum na_guarded guarded, na_stage *stage);
/* Have na_check_* append to this expression, of something by that name. */
void na_guards_open(na_guards *guards, na_expression *expression, const char *name);
/* Give the policies their numbers, unless the guards are complete already. */
void na_guards_enlist(na_guards *guards, na_names *names);
/* Complete them; after that nothing can be added. */
int na_guards_seal(na_guards *guards);
/* Let stages hold the slots of the clusters that they need. Harmless when it was done before. */
int na_guards_bind(na_guards *guards, na_slots *cluster_names);

#endif
