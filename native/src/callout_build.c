/* SPDX-License-Identifier: Apache-2.0
 *
 * Stages that ask somebody else, under construction.
 */
#include "callout.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "http1_parse.h"

static int no_memory(na_guards *guards) {
  return na_guards_fail(guards, -ENOMEM, "out of memory");
}

static const char *or_empty(const char *text) {
  return text ? text : "";
}

void na_callout_free(na_stage *stage) {
  na_callout *callout = na_container_of(stage, na_callout, stage);
  for (size_t i = 0; i < sizeof callout->names / sizeof *callout->names; i++) {
    for (uint32_t j = 0; j < callout->names[i].n; j++)
      na_matcher_clear(&callout->names[i].items[j]);
    free(callout->names[i].items);
  }
  for (size_t i = 0; i < sizeof callout->pairs / sizeof *callout->pairs; i++) {
    for (uint32_t j = 0; j < callout->pairs[i].n; j++)
      free((char *)callout->pairs[i].items[j].name.p); /* the value is in the same piece */
    free(callout->pairs[i].items);
  }
  if (callout->slots)
    na_slots_unref(callout->slots, callout->slot);
  na_expression_clear(&callout->when);
  free(callout->cluster);
  free(callout->authority);
  free(callout->path_prefix);
  free(callout);
}

static int check_config(na_guards *guards, const na_callout_config *config) {
  na_str prefix = na_str_of(or_empty(config->path_prefix));
  na_str authority = na_str_of(or_empty(config->authority));
  if (!config->cluster || !*config->cluster)
    return na_guards_fail(guards, -EINVAL, "a callout asks no cluster");
  if (config->status_on_error && (config->status_on_error < 200 || config->status_on_error > 599))
    return na_guards_fail(guards, -EINVAL, "callout to '%s': %u is no status", config->cluster,
                          config->status_on_error);
  if (config->body_bytes > NA_MAX_CALLOUT_BODY)
    return na_guards_fail(guards, -E2BIG, "callout to '%s': more than %u bytes of bodies", config->cluster,
                          NA_MAX_CALLOUT_BODY);
  if (prefix.n && (prefix.p[0] != '/' || na_h1_span(prefix.p, prefix.n, NA_C_TARGET) != prefix.n))
    return na_guards_fail(guards, -EINVAL, "callout to '%s': '%s' is no path", config->cluster, prefix.p);
  if (authority.n && !na_h1_valid_authority(authority, false))
    return na_guards_fail(guards, -EINVAL, "callout to '%s': '%s' is no authority", config->cluster, authority.p);
  return 0;
}

static na_callout *callout_new(const na_callout_config *config) {
  na_callout *callout = calloc(1, sizeof *callout);
  if (!callout)
    return NULL;
  callout->stage.kind = &na_stage_callout;
  callout->grpc = config->grpc != 0;
  callout->fail_open = config->fail_open != 0;
  callout->body_partial = config->body_partial != 0;
  callout->body_raw = config->body_raw != 0;
  callout->mark_open = config->mark_open != 0;
  callout->status_on_error = config->status_on_error ? (uint16_t)config->status_on_error : 403;
  callout->timeout_ms = config->timeout_ms ? config->timeout_ms : 200;
  callout->body_bytes = config->body_bytes;
  callout->cluster = strdup(config->cluster);
  callout->authority = strdup(config->authority && *config->authority ? config->authority : config->cluster);
  callout->path_prefix = strdup(or_empty(config->path_prefix));
  if (callout->cluster && callout->authority && callout->path_prefix)
    return callout;
  na_callout_free(&callout->stage);
  return NULL;
}

int na_guards_callout(na_guards *guards, enum na_guarded guarded, const na_callout_config *config) {
  int rc = na_guards_begin(guards);
  if (!rc)
    rc = check_config(guards, config);
  if (!rc && guarded == NA_GUARDED_CONNECTION && !config->grpc)
    rc = na_guards_fail(guards, -EINVAL, "callout to '%s': connections can be asked about by gRPC only",
                        config->cluster);
  if (rc)
    return rc;
  na_callout *callout = callout_new(config);
  if (!callout)
    return no_memory(guards);
  rc = na_guards_append(guards, guarded, &callout->stage);
  if (!rc)
    guards->callout = callout;
  return rc;
}

/* The stage that is being built; NULL with the error set. */
static na_callout *building(na_guards *guards, const char *what, int *rc) {
  *rc = na_guards_begin(guards);
  if (!*rc && !guards->callout)
    *rc = na_guards_fail(guards, -EINVAL, "%s belongs to no callout", what);
  return *rc ? NULL : guards->callout;
}

int na_callout_when(na_guards *guards) {
  int rc;
  na_callout *callout = building(guards, "a condition", &rc);
  if (!callout)
    return rc;
  if (callout->conditional)
    return na_guards_fail(guards, -EINVAL, "callout to '%s': two conditions", callout->cluster);
  callout->conditional = true;
  na_guards_open(guards, &callout->when, callout->cluster);
  return 0;
}

int na_callout_name(na_guards *guards, enum na_callout_names which, uint32_t kind, const char *value) {
  int rc;
  na_callout *callout = building(guards, "a header's name", &rc);
  if (!callout)
    return rc;
  if ((unsigned)which > NA_CALLOUT_TO_METADATA)
    return na_guards_fail(guards, -EINVAL, "names of %u are unknown", (unsigned)which);
  na_header_names *names = &callout->names[which];
  if (names->n == NA_MAX_CALLOUT_ITEMS)
    return na_guards_fail(guards, -E2BIG, "more than %d names of headers", NA_MAX_CALLOUT_ITEMS);
  if (na_grow(&names->items, names->n, sizeof *names->items))
    return no_memory(guards);
  rc = na_matcher_init(&names->items[names->n], (enum na_match_kind)kind, NULL, value, NA_MATCH_IGNORE_CASE,
                       guards->error, sizeof guards->error);
  names->n += !rc;
  return rc;
}

static int check_pair(na_guards *guards, enum na_callout_headers which, na_str name, na_str value) {
  if ((unsigned)which > NA_CALLOUT_METADATA)
    return na_guards_fail(guards, -EINVAL, "headers of %u are unknown", (unsigned)which);
  if (!name.n || na_h1_span(name.p, name.n, NA_C_TOKEN) != name.n || na_header_is_protected(name) ||
      na_str_ieq(name, "host") || na_h1_span(value.p, value.n, NA_C_VALUE) != value.n)
    return na_guards_fail(guards, -EINVAL, "header '%.64s' cannot be sent", name.p);
  return 0;
}

int na_callout_header(na_guards *guards, enum na_callout_headers which, const char *name, const char *value) {
  int rc;
  na_callout *callout = building(guards, "a header", &rc);
  na_str name_view = na_str_of(name), value_view = na_str_of(value);
  if (callout)
    rc = check_pair(guards, which, name_view, value_view);
  if (rc)
    return rc;
  na_own_pairs *pairs = &callout->pairs[which];
  if (pairs->n == NA_MAX_CALLOUT_ITEMS)
    return na_guards_fail(guards, -E2BIG, "more than %d headers", NA_MAX_CALLOUT_ITEMS);
  char *text = malloc(name_view.n + value_view.n + 1);
  if (!text || na_grow(&pairs->items, pairs->n, sizeof *pairs->items)) {
    free(text);
    return no_memory(guards);
  }
  for (uint32_t i = 0; i < name_view.n; i++)
    text[i] = na_lower(name[i]);
  memcpy(text + name_view.n, value, value_view.n);
  pairs->items[pairs->n++] = (na_header){.name = {text, name_view.n}, .value = {text + name_view.n, value_view.n}};
  return 0;
}

int na_callout_bind(na_guards *guards, na_stage *stage, na_slots *cluster_names) {
  na_callout *callout = na_container_of(stage, na_callout, stage);
  if (callout->slots) /* several workloads share the guards */
    return 0;
  int rc = na_slots_intern(cluster_names, callout->cluster, &callout->slot);
  if (rc)
    return na_guards_fail(guards, rc, "too many clusters");
  callout->slots = cluster_names;
  return 0;
}
