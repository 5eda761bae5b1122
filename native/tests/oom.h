/* SPDX-License-Identifier: Apache-2.0
 *
 * Allocations that fail when a test wants it. Programs whose name ends in _oom_test are linked with --wrap for the
 * allocating functions (CMakeLists.txt).
 */
#ifndef NODEAGENT_OOM_H
#define NODEAGENT_OOM_H

#include <stdbool.h>
#include <stddef.h>

/* Allocations to let through before one fails; negative: none fails. */
static long until_failure = -1;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *s);

static bool fails(void) {
  return until_failure >= 0 && until_failure-- == 0;
}

void *__wrap_malloc(size_t size) {
  return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size) {
  return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size) {
  return fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
  return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *s) {
  return fails() ? NULL : __real_strdup(s);
}

#endif
