/* SPDX-License-Identifier: Apache-2.0 */
#include "counters.h"

#include <nodeagent/engine.h>

const na_counter_info *na_engine_counter_info(size_t index) {
  static const na_counter_info infos[] = {
#define X(constant, name, gauge, help) {name, help, gauge},
      NA_COUNTER_LIST(X)
#undef X
  };
  return index < NA_COUNTER_COUNT ? &infos[index] : NULL;
}
