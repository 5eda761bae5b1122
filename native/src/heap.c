/* SPDX-License-Identifier: Apache-2.0 */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http1_parse.h"

int na_grow(void *items, uint32_t n, size_t item_size) {
  /* Sizes double: a reallocation is due when n is 0 or a power of two. */
  if (n & (n - 1))
    return 0;
  void **array = items;
  void *grown = realloc(*array, (n ? (size_t)n * 2 : 1) * item_size);
  if (!grown)
    return -ENOMEM;
  *array = grown;
  return 0;
}

char *na_lower_copy(const char *s) {
  char *copy = strdup(s);
  for (char *p = copy; p && *p; p++)
    *p = na_lower(*p);
  return copy;
}
