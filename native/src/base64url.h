/* SPDX-License-Identifier: Apache-2.0
 *
 * Base64 with the URL alphabet and without padding (RFC 4648 5), as tokens have it.
 */
#ifndef NODEAGENT_BASE64URL_H
#define NODEAGENT_BASE64URL_H

#include "http1.h"

/* Room that n characters may take when decoded. */
#define NA_BASE64URL_DECODED(n) ((size_t)(n) / 4 * 3 + 2)

/* Decode into `out`, which has room. The count of bytes, or -1: a character of another alphabet, padding, a length that
 * cannot be, or bits left over (one value would have several spellings). */
long na_base64url_decode(na_str text, unsigned char *out);

#endif
