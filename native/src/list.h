/* SPDX-License-Identifier: Apache-2.0
 *
 * Intrusive doubly linked lists. A list head is a link that points to itself when empty; a link that is in no list
 * points to itself too, so that removing twice is harmless.
 */
#ifndef NODEAGENT_LIST_H
#define NODEAGENT_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct na_link {
  struct na_link *next;
  struct na_link *prev;
} na_link;

/* The object of which `pointer` is the member. */
#define na_container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

static inline void na_link_init(na_link *link) {
  link->next = link->prev = link;
}

static inline bool na_link_in_list(const na_link *link) {
  return link->next != link;
}

static inline bool na_list_empty(const na_link *head) {
  return head->next == head;
}

static inline void na_link_insert_after(na_link *at, na_link *link) {
  link->next = at->next;
  link->prev = at;
  at->next->prev = link;
  at->next = link;
}

static inline void na_list_push_front(na_link *head, na_link *link) {
  na_link_insert_after(head, link);
}

static inline void na_list_push_back(na_link *head, na_link *link) {
  na_link_insert_after(head->prev, link);
}

static inline void na_link_remove(na_link *link) {
  link->next->prev = link->prev;
  link->prev->next = link->next;
  na_link_init(link);
}

/* Move all of `from` to the empty list `to`. */
static inline void na_list_take(na_link *to, na_link *from) {
  na_link_init(to);
  if (na_list_empty(from))
    return;
  *to = *from;
  to->next->prev = to;
  to->prev->next = to;
  na_link_init(from);
}

#endif
