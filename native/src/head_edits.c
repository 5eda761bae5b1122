/* SPDX-License-Identifier: Apache-2.0 */
#include "head_edits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "http1_parse.h"
#include "query.h"

struct na_edit {
  na_edit *next;
  uint8_t op; /* enum na_edit_op */
  na_str name;
  na_str value; /* of APPEND: all of it, once it is known */
  char text[];
};

static bool is_host(na_str name) {
  return na_str_ieq(name, "host") || na_str_eq(name, ":authority");
}

static bool is_path(na_str name) {
  return na_str_eq(name, ":path");
}

bool na_header_is_protected(na_str name) {
  static const char *const names[] = {"connection", "content-length",   "expect",  "keep-alive",       "te",
                                      "trailer",    "proxy-connection", "upgrade", "transfer-encoding"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (na_str_ieq(name, names[i]))
      return true;
  return false;
}

bool na_header_may_be_answered(na_str name, na_str value) {
  return name.n && na_h1_span(name.p, name.n, NA_C_TOKEN) == name.n && !na_header_is_protected(name) &&
         na_h1_span(value.p, value.n, NA_C_VALUE) == value.n;
}

static bool is_allowed(enum na_edit_op op, na_str name, na_str value) {
  if (is_host(name))
    return op == NA_EDIT_SET && na_h1_valid_authority(value, false);
  if (is_path(name))
    return op == NA_EDIT_SET && value.n && value.p[0] == '/' && na_h1_span(value.p, value.n, NA_C_TARGET) == value.n;
  return na_header_may_be_answered(name, value);
}

/* ---- making an edit ---- */

static void reindex(na_h1_head *head) {
  memset(head->index, 0xff, sizeof head->index);
  for (uint32_t i = head->nheaders; i-- > 0;)
    head->index[head->headers[i].id] = (int16_t)i;
  head->request.nheaders = head->nheaders;
}

static void remove_headers(na_h1_head *head, na_str name) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < head->nheaders; i++)
    if (!na_str_ieq2(head->headers[i].name, name))
      head->headers[n++] = head->headers[i];
  head->nheaders = n;
}

static void set_path(na_h1_head *head, na_str target) {
  na_request *request = &head->request;
  const char *mark = memchr(target.p, '?', target.n);
  uint32_t n = mark ? (uint32_t)(mark - target.p) : target.n;
  request->path_query = target;
  request->path = (na_str){target.p, n};
  request->query = mark ? (na_str){mark + 1, target.n - n - 1} : (na_str){target.p + n, 0};
}

static void set_host(na_h1_head *head, na_str host) {
  head->request.authority = host;
  if (head->index[NA_HDR_HOST] >= 0)
    head->headers[head->index[NA_HDR_HOST]].value = host;
}

/* There is room: na_head_edit() made sure, and the head is always the same. */
static void add_header(na_h1_head *head, const na_edit *edit) {
  head->headers[head->nheaders++] = (na_header){
      .name = edit->name, .value = edit->value, .id = na_h1_header_id(edit->name.p, edit->name.n), .hop = false};
}

static na_header *find(na_h1_head *head, na_str name) {
  for (uint32_t i = 0; i < head->nheaders; i++)
    if (na_str_ieq2(head->headers[i].name, name))
      return &head->headers[i];
  return NULL;
}

static void apply(const na_edit *edit, na_h1_head *head) {
  if (is_host(edit->name)) {
    set_host(head, edit->value);
    return;
  }
  if (is_path(edit->name)) {
    set_path(head, edit->value);
    return;
  }
  na_header *present = edit->op == NA_EDIT_APPEND ? find(head, edit->name) : NULL;
  if (edit->op == NA_EDIT_SET || edit->op == NA_EDIT_REMOVE)
    remove_headers(head, edit->name);
  if (present)
    present->value = edit->value;
  else if (edit->op != NA_EDIT_REMOVE)
    add_header(head, edit);
  reindex(head);
}

/* ---- from outside ---- */

/* A copy; of APPEND with what is there already in front. */
static na_edit *edit_new(enum na_edit_op op, na_str name, na_str value, na_str before) {
  size_t glue = before.n ? 1 : 0;
  na_edit *edit = malloc(sizeof *edit + name.n + before.n + glue + value.n);
  if (!edit)
    return NULL;
  char *p = edit->text;
  edit->next = NULL;
  edit->op = (uint8_t)op;
  edit->name = (na_str){p, name.n};
  memcpy(p, name.p, name.n);
  edit->value = (na_str){p + name.n, before.n + (uint32_t)glue + value.n};
  p += name.n;
  if (before.n) {
    memcpy(p, before.p, before.n);
    p[before.n] = ',';
  }
  if (value.n)
    memcpy(p + before.n + glue, value.p, value.n);
  return edit;
}

int na_head_edit(na_head_edits *edits, na_h1_head *head, enum na_edit_op op, na_str name, na_str value) {
  if (!is_allowed(op, name, value))
    return -EINVAL;
  const na_header *present = op == NA_EDIT_APPEND ? find(head, name) : NULL;
  na_str before = present ? present->value : (na_str){0};
  size_t bytes = (size_t)name.n + before.n + value.n + sizeof(na_edit);
  if (head->nheaders == NA_H1_MAX_HEADERS || edits->bytes + bytes > NA_MAX_EDIT_BYTES)
    return -E2BIG;
  na_edit *edit = edit_new(op, name, value, before);
  if (!edit)
    return -ENOMEM;
  edits->bytes += (uint32_t)bytes;
  if (edits->last)
    edits->last->next = edit;
  else
    edits->first = edit;
  edits->last = edit;
  apply(edit, head);
  return 0;
}

int na_head_remove_parameter(na_head_edits *edits, na_h1_head *head, na_str name) {
  na_str rest = head->request.query, item, key, value;
  bool found = false;
  while (!found && na_pair_next(&rest, '&', &item, &key, &value))
    found = na_parameter_is(key, name);
  if (!found)
    return 0;
  uint32_t n;
  char *target = na_target_without(&head->request, name, &n);
  if (!target)
    return -ENOMEM;
  int rc = na_head_edit(edits, head, NA_EDIT_SET, na_str_of(":path"), (na_str){target, n});
  free(target);
  return rc;
}

void na_head_edits_apply(const na_head_edits *edits, na_h1_head *head) {
  for (const na_edit *edit = edits->first; edit; edit = edit->next)
    apply(edit, head);
}

void na_head_edits_clear(na_head_edits *edits) {
  while (edits->first) {
    na_edit *edit = edits->first;
    edits->first = edit->next;
    free(edit);
  }
  *edits = (na_head_edits){0};
}
