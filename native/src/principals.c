/* SPDX-License-Identifier: Apache-2.0 */
#include "principals.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

#define MIN_SIZE 64

void na_principals_init(na_principals *principals) {
  memset(principals, 0, sizeof *principals);
  pthread_mutex_init(&principals->lock, NULL);
}

void na_principals_free(na_principals *principals) {
  for (uint32_t i = 0; i < principals->n; i++)
    free(principals->names[i]);
  free(principals->names);
  free(principals->index);
  pthread_mutex_destroy(&principals->lock);
}

/* The place of a name: where it is, or where it would be. */
static uint32_t *place_of(const na_principals *principals, const char *name) {
  uint32_t mask = principals->size * 2 - 1;
  uint32_t at = (uint32_t)na_hash(name, strlen(name)) & mask;
  while (principals->index[at] && strcmp(principals->names[principals->index[at] - 1], name) != 0)
    at = (at + 1) & mask;
  return &principals->index[at];
}

static bool grow(na_principals *principals) {
  uint32_t size = principals->size ? principals->size * 2 : MIN_SIZE;
  uint32_t *index = size <= NA_MAX_PRINCIPALS ? calloc(size * 2, sizeof *index) : NULL;
  char **names = index ? realloc(principals->names, size * sizeof *names) : NULL;
  if (!names) {
    free(index);
    return false;
  }
  free(principals->index);
  principals->index = index;
  principals->names = names;
  principals->size = size;
  for (uint32_t i = 0; i < principals->n; i++)
    *place_of(principals, names[i]) = i + 1;
  return true;
}

static uint32_t add(na_principals *principals, const char *name) {
  if (principals->n == principals->size && !grow(principals))
    return 0;
  char *copy = strdup(name);
  if (!copy)
    return 0;
  uint32_t *place = place_of(principals, name);
  principals->names[principals->n++] = copy;
  *place = principals->n;
  return principals->n;
}

uint32_t na_principals_intern(na_principals *principals, const char *name) {
  pthread_mutex_lock(&principals->lock);
  uint32_t id = principals->size ? *place_of(principals, name) : 0;
  if (!id)
    id = add(principals, name);
  pthread_mutex_unlock(&principals->lock);
  return id;
}

const char *na_principals_text(na_principals *principals, uint32_t id) {
  pthread_mutex_lock(&principals->lock);
  const char *text = id && id <= principals->n ? principals->names[id - 1] : "";
  pthread_mutex_unlock(&principals->lock);
  return text;
}
