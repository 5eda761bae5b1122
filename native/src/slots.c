/* SPDX-License-Identifier: Apache-2.0 */
#include "slots.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

#define PAGE_SLOTS 256

/* A slot whose count is 0 keeps its name until its place is wanted: only the control thread reuses it. */
typedef struct slot {
  atomic_uint refs;
  uint32_t index;
  char *name; /* NULL: free */
  struct slot *next_free;
} slot;

/* Slots live in pages that never move, so that workers can reach a count while the control thread adds slots. */
struct na_slots {
  slot *pages[NA_MAX_SLOTS / PAGE_SLOTS];
  na_map names;
  slot *free;
  uint32_t size;
  atomic_uint idle; /* slots with a name and no reference */
};

/* Slots are owned by their pages. */
static void keep(void *value) {
  (void)value;
}

static const na_map_ops slot_ops = {keep, keep};

static slot *slot_at(const na_slots *slots, uint32_t index) {
  return &slots->pages[index / PAGE_SLOTS][index % PAGE_SLOTS];
}

int na_slots_new(na_slots **out) {
  na_slots *slots = calloc(1, sizeof *slots);
  if (!slots)
    return -ENOMEM;
  na_map_init(&slots->names, &slot_ops);
  *out = slots;
  return 0;
}

void na_slots_free(na_slots *slots) {
  if (!slots)
    return;
  na_map_clear(&slots->names);
  for (uint32_t i = 0; i < slots->size; i++) {
    assert(atomic_load(&slot_at(slots, i)->refs) == 0);
    free(slot_at(slots, i)->name);
  }
  for (uint32_t i = 0; i * PAGE_SLOTS < slots->size; i++)
    free(slots->pages[i]);
  free(slots);
}

/* Make the slots that nobody holds free for other names. */
static void sweep(na_slots *slots) {
  if (!atomic_load_explicit(&slots->idle, memory_order_relaxed))
    return;
  for (uint32_t i = 0; i < slots->size; i++) {
    slot *s = slot_at(slots, i);
    if (!s->name || atomic_load_explicit(&s->refs, memory_order_acquire))
      continue;
    na_map_remove(&slots->names, s->name, (uint32_t)strlen(s->name));
    free(s->name);
    s->name = NULL;
    s->next_free = slots->free;
    slots->free = s;
    atomic_fetch_sub_explicit(&slots->idle, 1, memory_order_relaxed);
  }
}

/* Take a slot without a name. */
static int take_free(na_slots *slots, slot **out) {
  if (!slots->free)
    sweep(slots);
  if (slots->free) {
    *out = slots->free;
    slots->free = slots->free->next_free;
    return 0;
  }
  if (slots->size == NA_MAX_SLOTS)
    return -ENOSPC;
  slot **page = &slots->pages[slots->size / PAGE_SLOTS];
  if (!*page && !(*page = calloc(PAGE_SLOTS, sizeof **page)))
    return -ENOMEM;
  uint32_t index = slots->size++;
  *out = slot_at(slots, index);
  (*out)->index = index;
  return 0;
}

static int add(na_slots *slots, const char *name, slot **out) {
  char *copy = strdup(name);
  if (!copy)
    return -ENOMEM;
  slot *s;
  int rc = take_free(slots, &s);
  if (rc) {
    free(copy);
    return rc;
  }
  rc = na_map_put(&slots->names, copy, (uint32_t)strlen(copy), s);
  if (rc) {
    free(copy);
    s->next_free = slots->free;
    slots->free = s;
    return rc;
  }
  s->name = copy;
  atomic_fetch_add_explicit(&slots->idle, 1, memory_order_relaxed);
  *out = s;
  return 0;
}

int na_slots_intern(na_slots *slots, const char *name, uint32_t *out) {
  slot *s = na_map_find(&slots->names, name, (uint32_t)strlen(name));
  int rc = s ? 0 : add(slots, name, &s);
  if (rc)
    return rc;
  if (atomic_fetch_add_explicit(&s->refs, 1, memory_order_acquire) == 0)
    atomic_fetch_sub_explicit(&slots->idle, 1, memory_order_relaxed);
  *out = s->index;
  return 0;
}

uint32_t na_slots_find(const na_slots *slots, const char *name) {
  const slot *s = na_map_find(&slots->names, name, (uint32_t)strlen(name));
  return s && atomic_load_explicit(&s->refs, memory_order_relaxed) ? s->index : NA_NO_SLOT;
}

const char *na_slots_name(const na_slots *slots, uint32_t index) {
  return slot_at(slots, index)->name;
}

uint32_t na_slots_size(const na_slots *slots) {
  return slots->size;
}

void na_slots_unref(na_slots *slots, uint32_t index) {
  if (atomic_fetch_sub_explicit(&slot_at(slots, index)->refs, 1, memory_order_release) == 1)
    atomic_fetch_add_explicit(&slots->idle, 1, memory_order_relaxed);
}
