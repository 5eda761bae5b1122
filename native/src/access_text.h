/* SPDX-License-Identifier: Apache-2.0
 *
 * What lines of an access log are put together from. No function checks for room: see NA_ACCESS_LINE_MAX. All return
 * the end of what they wrote, which has no NUL.
 */
#ifndef NODEAGENT_ACCESS_TEXT_H
#define NODEAGENT_ACCESS_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Write what others have written, up to `max` bytes of it; at most six bytes for each. */
typedef char *na_access_escape(char *out, const char *text, size_t max);

/* Control and format characters as \xNN and \uNNNN, bytes that are not UTF-8 as \xNN. */
na_access_escape na_access_escape_text;
/* As JSON has it (RFC 8259, section 7); bytes that are not UTF-8 as \\xNN. */
na_access_escape na_access_escape_json;

char *na_access_put(char *out, const char *text);
char *na_access_put_number(char *out, uint64_t number);

#endif
