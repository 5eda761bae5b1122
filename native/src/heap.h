/* SPDX-License-Identifier: Apache-2.0
 *
 * Allocations of what is built once and used often.
 */
#ifndef NODEAGENT_HEAP_H
#define NODEAGENT_HEAP_H

#include <stddef.h>
#include <stdint.h>

/* Make room for one more of the n items of *items; -ENOMEM. */
int na_grow(void *items, uint32_t n, size_t item_size);
/* A lower-case copy, or NULL. */
char *na_lower_copy(const char *s);

#endif
