/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON from strangers (RFC 8259), by jansson: strict, without duplicate names, NUL or deep nesting.
 */
#ifndef NODEAGENT_JSON_H
#define NODEAGENT_JSON_H

#include <jansson.h>

#include "http1.h"

/* Objects and lists within one another at most: jansson parses by recursion. */
#define NA_JSON_DEPTH 32
/* Room for a number as text. */
#define NA_JSON_NUMBER_BYTES 40

/* The object that the text is; NULL if it is something else, or for want of memory. */
json_t *na_json_object(const char *text, size_t n);
/* A scalar as people write it: strings as they are, numbers and booleans as in JSON. `number` holds numbers. False for
 * null, objects and lists. */
bool na_json_text(const json_t *value, char number[NA_JSON_NUMBER_BYTES], na_str *out);
/* The member at a path of names with dots between them. A name may have dots itself: the longest that fits wins. NULL
 * when there is none. */
const json_t *na_json_dotted(const json_t *object, const char *path);

#endif
