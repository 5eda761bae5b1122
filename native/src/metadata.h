/* SPDX-License-Identifier: Apache-2.0
 *
 * What the stages of a guard found out about a request, for the stages after them: Envoy's dynamic metadata. Values by
 * the name of the filter that Envoy would have, and a path.
 */
#ifndef NODEAGENT_METADATA_H
#define NODEAGENT_METADATA_H

#include <jansson.h>

#include "http1.h"

/* Between the parts of a path (nodeagent.snapshot.policies.SEGMENT). */
#define NA_METADATA_SEGMENT '\x1f'

/* Zeroed: nothing is known. */
typedef struct na_metadata {
  json_t *filters; /* object; NULL: empty */
} na_metadata;

/* Keep a value under a name of a filter, in place of one that is there. Takes the reference, also on error: -ENOMEM. */
int na_metadata_set(na_metadata *metadata, const char *filter, const char *name, json_t *value);
/* The same with text. */
int na_metadata_set_text(na_metadata *metadata, const char *filter, const char *name, na_str text);
/* Which scalars are asked for. */
enum na_metadata_kind { NA_METADATA_TEXT, NA_METADATA_LITERAL /* numbers and booleans */ };
/* Whether `test` says yes to a scalar of the kind at the path (filter and names, with segments between), or to any in
 * the list there. Allocates nothing. */
bool na_metadata_any(const na_metadata *metadata, const char *path, enum na_metadata_kind kind,
                     bool (*test)(const void *context, na_str text), const void *context);
void na_metadata_clear(na_metadata *metadata);

#endif
