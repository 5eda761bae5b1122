/* SPDX-License-Identifier: Apache-2.0 */
#include "counters.h"

#include <nodeagent/engine.h>

static const struct {
  const char *name;
  const char *help;
  int gauge;
} descriptions[] = {
#define X(constant, name, gauge, help) {name, help, gauge},
    NA_COUNTER_LIST(X)
#undef X
};

size_t na_engine_counters(void) {
  return NA_COUNTER_COUNT;
}

const char *na_engine_counter_name(size_t index) {
  return index < NA_COUNTER_COUNT ? descriptions[index].name : NULL;
}

const char *na_engine_counter_help(size_t index) {
  return index < NA_COUNTER_COUNT ? descriptions[index].help : NULL;
}

int na_engine_counter_is_gauge(size_t index) {
  return index < NA_COUNTER_COUNT && descriptions[index].gauge;
}
