/* SPDX-License-Identifier: Apache-2.0
 *
 * Interned names: a name has one small number, its slot, for as long as somebody holds it. See snapshot.h for why.
 * The control thread interns, finds and walks; any thread may give a slot back.
 */
#ifndef NODEAGENT_SLOTS_H
#define NODEAGENT_SLOTS_H

#include <stdint.h>

#define NA_NO_SLOT   UINT32_MAX
#define NA_MAX_SLOTS (1u << 20)

typedef struct na_slots na_slots;

int na_slots_new(na_slots **out);
/* Free; all slots have been given back. */
void na_slots_free(na_slots *slots);
/* The slot of a name, with a reference. -ENOMEM; -ENOSPC with NA_MAX_SLOTS names in use. */
int na_slots_intern(na_slots *slots, const char *name, uint32_t *slot);
/* The slot of a name that is in use, or NA_NO_SLOT; no reference is taken. */
uint32_t na_slots_find(const na_slots *slots, const char *name);
/* The name of a slot that is held. */
const char *na_slots_name(const na_slots *slots, uint32_t slot);
/* One more than the highest slot ever used: the length of an array over slots. */
uint32_t na_slots_size(const na_slots *slots);
/* Give a reference back. Any thread. */
void na_slots_unref(na_slots *slots, uint32_t slot);

#endif
