/* SPDX-License-Identifier: Apache-2.0 */
#include "metadata.h"

#include <errno.h>
#include <string.h>

#include "json.h"

/* The object of a filter, made if it is not there; NULL for want of memory. */
static json_t *filter_object(na_metadata *metadata, const char *filter) {
  if (!metadata->filters && !(metadata->filters = json_object()))
    return NULL;
  json_t *object = json_object_get(metadata->filters, filter);
  if (object)
    return object;
  object = json_object();
  return object && json_object_set_new(metadata->filters, filter, object) == 0 ? object : NULL;
}

int na_metadata_set(na_metadata *metadata, const char *filter, const char *name, json_t *value) {
  json_t *object = filter_object(metadata, filter);
  if (!object) {
    json_decref(value);
    return -ENOMEM;
  }
  return json_object_set_new(object, name, value) == 0 ? 0 : -ENOMEM;
}

int na_metadata_set_text(na_metadata *metadata, const char *filter, const char *name, na_str text) {
  return na_metadata_set(metadata, filter, name, json_stringn(text.p, text.n));
}

static const json_t *at_path(const json_t *value, const char *path) {
  while (value) {
    const char *end = strchr(path, NA_METADATA_SEGMENT);
    size_t n = end ? (size_t)(end - path) : strlen(path);
    value = json_object_getn(value, path, n);
    if (!end)
      break;
    path = end + 1;
  }
  return value;
}

static bool is_one(const json_t *value, enum na_metadata_kind kind, bool (*test)(const void *context, na_str text),
                   const void *context) {
  char number[NA_JSON_NUMBER_BYTES];
  na_str text;
  return json_is_string(value) == (kind == NA_METADATA_TEXT) && na_json_text(value, number, &text) &&
         test(context, text);
}

bool na_metadata_any(const na_metadata *metadata, const char *path, enum na_metadata_kind kind,
                     bool (*test)(const void *context, na_str text), const void *context) {
  const json_t *value = at_path(metadata->filters, path);
  if (!value)
    return false;
  if (!json_is_array(value))
    return is_one(value, kind, test, context);
  for (size_t i = 0; i < json_array_size(value); i++)
    if (is_one(json_array_get(value, i), kind, test, context))
      return true;
  return false;
}

void na_metadata_clear(na_metadata *metadata) {
  json_decref(metadata->filters);
  metadata->filters = NULL;
}
