/* SPDX-License-Identifier: Apache-2.0
 *
 * One spelling of a path: what is checked is what is forwarded. As Envoy's normalize_path (Istio's BASE): RFC 3986
 * 6.2.2, and `\\` is `/`. Slashes are neither merged nor decoded.
 */
#ifndef NODEAGENT_HTTP_PATH_H
#define NODEAGENT_HTTP_PATH_H

#include "http1.h"

/* Whether a path is sure to be normal: nothing is in it that might have another spelling. */
bool na_path_is_plain(na_str path);
/* Write the normal form, which is never longer; the output may be the input. Dot segments are taken out, unreserved
 * bytes decoded. Returns the length, or -1 for a path with an encoded NUL, which Envoy refuses. */
long na_path_normalise(na_str path, char *out);

#endif
