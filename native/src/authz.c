/* SPDX-License-Identifier: Apache-2.0 */
#include "authz.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "router_build.h"

enum na_verdict na_stages_ask(const na_stage *stage, na_subject *subject, na_refusal *refusal,
                              const na_stage **waiting) {
  for (; stage; stage = stage->next) {
    *refusal = (na_refusal){0};
    enum na_verdict verdict = stage->kind->ask(stage, subject, refusal);
    *waiting = stage;
    assert(verdict != NA_VERDICT_WAIT || (subject->asker && subject->asker->abandon));
    if (verdict != NA_VERDICT_ALLOW)
      return verdict;
  }
  *waiting = NULL;
  return NA_VERDICT_ALLOW;
}

int na_authz_answer_header(na_authz *authz, enum na_header_op op, na_str name, na_str value) {
  na_mutations *answer = &authz->answer;
  if (!na_header_may_be_answered(name, value))
    return 0;
  if (answer->n == NA_MAX_MUTATIONS)
    return -E2BIG;
  na_header_mutation added = {.op = (uint8_t)op, .name = strndup(name.p, name.n), .name_n = name.n};
  added.value = strndup(value.p, value.n);
  added.value_n = value.n;
  if (!added.name || !added.value || na_grow(&answer->items, answer->n, sizeof added)) {
    free(added.name);
    free(added.value);
    return -ENOMEM;
  }
  answer->items[answer->n++] = added;
  return 0;
}

void na_authz_clear(na_authz *authz) {
  na_mutations_clear(&authz->answer);
  na_metadata_clear(&authz->metadata);
  na_head_edits_clear(&authz->edits);
  free(authz->challenge);
  authz->challenge = NULL;
}

void na_authz_free(na_authz *authz) {
  if (!authz)
    return;
  if (authz->stage)
    authz->asker.abandon(authz->asker.waiting);
  na_guards_free(authz->guards);
  na_authz_clear(authz);
  free(authz);
}
