/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear-time regular expressions: RE2 behind a C seam (regex.cc), the only C++ of the engine.
 */
#ifndef NODEAGENT_REGEX_H
#define NODEAGENT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct na_regex na_regex;

/* Compile; -EINVAL with a message. Program size is bounded (1 MiB of memory). */
int na_regex_new(const char *pattern, bool ignore_case, na_regex **out, char *error, size_t error_size);
void na_regex_free(na_regex *regex);
/* Does the whole text match? */
bool na_regex_full(const na_regex *regex, const char *text, size_t n);
/* Replace every match (\1 groups in the substitution); writes at most size bytes. Returns the length, or -ENOSPC. */
long na_regex_replace(const na_regex *regex, const char *text, size_t n, const char *substitution, char *out,
                      size_t size);
/* Whether a substitution's groups exist in the pattern. */
bool na_regex_check_substitution(const na_regex *regex, const char *substitution, char *error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
