/* SPDX-License-Identifier: Apache-2.0 */
#include "pattern.h"

#include <string.h>

/* Prime: a body that arrives shifted by a buffer's or a page's size does not match by chance. */
#define PERIOD 251

static char table[PATTERN_RUN + PERIOD];

static void fill(void) {
  for (size_t i = 0; i < sizeof table; i++)
    table[i] = (char)('!' + i % PERIOD % 90);
}

const char *pattern_at(uint64_t offset) {
  if (!table[0])
    fill();
  return table + offset % PERIOD;
}

bool pattern_matches(const char *bytes, size_t n, uint64_t offset) {
  while (n) {
    size_t run = n < PATTERN_RUN ? n : PATTERN_RUN;
    if (memcmp(bytes, pattern_at(offset), run) != 0)
      return false;
    bytes += run;
    offset += run;
    n -= run;
  }
  return true;
}
