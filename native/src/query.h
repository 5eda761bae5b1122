/* SPDX-License-Identifier: Apache-2.0
 *
 * Lists of name=value: query strings and cookies.
 */
#ifndef NODEAGENT_QUERY_H
#define NODEAGENT_QUERY_H

#include "http1.h"

/* Take the next item of a list apart; false at its end. Without `=` the value is empty. */
bool na_pair_next(na_str *rest, char separator, na_str *item, na_str *name, na_str *value);
/* Decode percent-encoding into `out`, which has room for text.n bytes; what is malformed stays as it is. Returns the
 * length. */
uint32_t na_percent_decode(na_str text, char *out);
/* Whether the name of a parameter, as sent, is the wanted one; it may be spelled with percent-encoding. */
bool na_parameter_is(na_str name, na_str wanted);
/* The path and query without the parameters of a name; to be freed. NULL for want of memory. */
char *na_target_without(const na_request *request, na_str name, uint32_t *n);

#endif
