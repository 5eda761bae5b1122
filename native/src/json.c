/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <stdio.h>
#include <string.h>

/* Whether brackets outside of strings nest too deep. Malformed text may pass: the parser finds that out. */
static bool is_too_deep(const char *text, size_t n) {
  uint32_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < n; i++) {
    char c = text[i];
    if (in_string) {
      if (c == '\\')
        i++;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > NA_JSON_DEPTH)
        return true;
    } else if ((c == '}' || c == ']') && depth > 0) {
      depth--;
    }
  }
  return false;
}

json_t *na_json_object(const char *text, size_t n) {
  if (is_too_deep(text, n))
    return NULL;
  json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
  if (json_is_object(value))
    return value;
  json_decref(value);
  return NULL;
}

bool na_json_text(const json_t *value, char number[NA_JSON_NUMBER_BYTES], na_str *out) {
  switch (json_typeof(value)) {
  case JSON_STRING:
    *out = (na_str){json_string_value(value), (uint32_t)json_string_length(value)};
    return true;
  case JSON_INTEGER:
    snprintf(number, NA_JSON_NUMBER_BYTES, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    break;
  case JSON_REAL:
    snprintf(number, NA_JSON_NUMBER_BYTES, "%.17g", json_real_value(value));
    break;
  case JSON_TRUE:
    *out = na_str_of("true");
    return true;
  case JSON_FALSE:
    *out = na_str_of("false");
    return true;
  default:
    return false;
  }
  *out = na_str_of(number);
  return true;
}

const json_t *na_json_dotted(const json_t *object, const char *path) {
  size_t n = strlen(path);
  const json_t *whole = json_object_get(object, path);
  if (whole || !json_is_object(object))
    return whole;
  for (size_t i = n; i-- > 0;) {
    if (path[i] != '.')
      continue;
    const json_t *inner = json_object_getn(object, path, i);
    const json_t *found = json_is_object(inner) ? na_json_dotted(inner, path + i + 1) : NULL;
    if (found)
      return found;
  }
  return NULL;
}
