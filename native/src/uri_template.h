/* SPDX-License-Identifier: Apache-2.0
 *
 * Envoy's URI templates (envoy.extensions.path.match.uri_template.v3): literals, `*` (one segment or a part of it),
 * `**` (any number of segments), `{name}` as `*`, and `{name=pattern}`; besides Istio's spelling `{*}` and `{**}`.
 */
#ifndef NODEAGENT_URI_TEMPLATE_H
#define NODEAGENT_URI_TEMPLATE_H

#include <stddef.h>

#include "regex.h"

/* Bytes of a template; above -E2BIG. */
#define NA_MAX_TEMPLATE 1024

/* The regular expression of a template, for na_regex_full() on a path. -EINVAL or -E2BIG with the reason in `error` for
 * what Envoy would not take either: an operator after `**`, doubled slashes, bytes outside of paths, bad or repeated
 * names, more than five of them. */
int na_uri_template_compile(const char *text, na_regex **out, char *error, size_t error_size);

#endif
