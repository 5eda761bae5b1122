/* SPDX-License-Identifier: Apache-2.0
 *
 * One spelling of a path: what is checked is what is forwarded. As Envoy's normalize_path (Istio's BASE): RFC 3986
 * 6.2.2, `\\` is `/`, and bytes that are to be encoded are. Slashes are merged and decoded only where that is wanted.
 */
#ifndef NODEAGENT_HTTP_PATH_H
#define NODEAGENT_HTTP_PATH_H

#include "http1.h"

/* How much longer than a path its normal form can be. */
#define NA_PATH_GROWTH 3

/* Whether a path is in its normal form for sure: nothing is in it that might have another spelling. */
bool na_path_is_plain(na_str path);
/* Whether there are slashes in a row, which NA_SLASHES_MERGE would make one. */
bool na_path_repeats_slashes(na_str path);
/* Write the normal form to `out`, which has NA_PATH_GROWTH times the bytes of the path. Dot segments are taken out,
 * unreserved bytes decoded; slashes are read as the flags say (NA_SLASHES_*). Returns the length, or -1 for a path that
 * is refused: with an encoded NUL, or with encoded slashes when these are to be. */
long na_path_normalise(na_str path, uint32_t slashes, char *out);

#endif
