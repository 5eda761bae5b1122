/* SPDX-License-Identifier: Apache-2.0 */
#include "authz.h"

#include <assert.h>
#include <stdlib.h>

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

void na_authz_clear(na_authz *authz) {
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
