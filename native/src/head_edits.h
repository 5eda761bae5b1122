/* SPDX-License-Identifier: Apache-2.0
 *
 * What the stages of a guard changed in a request's head. Whenever the head is parsed anew its edits are made again, so
 * that later stages, routing and the upstream see one and the same request.
 */
#ifndef NODEAGENT_HEAD_EDITS_H
#define NODEAGENT_HEAD_EDITS_H

#include "http1.h"

/* Bytes of names and values that a request's edits may have; beyond it the request is refused. */
#define NA_MAX_EDIT_BYTES 65536

enum na_edit_op {
  NA_EDIT_SET,    /* in place of all headers of the name; `host` and `:path` too */
  NA_EDIT_ADD,    /* another one */
  NA_EDIT_APPEND, /* behind the value that is there, with a comma; else as ADD */
  NA_EDIT_REMOVE, /* all of the name */
};

typedef struct na_edit na_edit;

/* Zeroed: none. */
typedef struct na_head_edits {
  na_edit *first;
  na_edit *last;
  uint32_t bytes;
} na_head_edits;

/* Note an edit and make it in `head`, whose views then lead into the edits' memory, too. -EINVAL: the name or value is
 * none, or belongs to the connection or the framing; -E2BIG: too many; -ENOMEM. On error nothing has changed. */
int na_head_edit(na_head_edits *edits, na_h1_head *head, enum na_edit_op op, na_str name, na_str value);
/* Take the parameters of a name out of the query, if there are any. */
int na_head_remove_parameter(na_head_edits *edits, na_h1_head *head, na_str name);
/* Make all edits in a head that was parsed anew. */
void na_head_edits_apply(const na_head_edits *edits, na_h1_head *head);
void na_head_edits_clear(na_head_edits *edits);

/* Whether a header makes up the connection or the framing, so that nobody may change it. */
bool na_header_is_protected(na_str name);
/* Whether a header can be in an answer that is made here. */
bool na_header_may_be_answered(na_str name, na_str value);

#endif
