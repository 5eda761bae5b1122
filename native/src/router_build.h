/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files that build virtual hosts share.
 */
#ifndef NODEAGENT_ROUTER_BUILD_H
#define NODEAGENT_ROUTER_BUILD_H

#include "router.h"

/* Bounds of one virtual host; above them -E2BIG. */
#define NA_MAX_DOMAIN    320 /* bytes of a domain with its port */
#define NA_MAX_MUTATIONS 64  /* header operations of one level and side */
#define NA_MAX_MATCHERS  64  /* header or query matchers of a route */
#define NA_MAX_SPLIT     128 /* destinations of a route */
#define NA_MAX_ROUTES    16384
#define NA_MAX_BODY      (1u << 20) /* a direct response's */

/* Set the virtual host's error text; returns rc. */
int na_vhost_fail(na_vhost *vhost, int rc, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Append a header operation to a level. */
int na_mutations_add(na_vhost *vhost, na_mutations *mutations, enum na_header_side side, enum na_header_op op,
                     const char *name, const char *value);
void na_mutations_clear(na_mutations *mutations);

#endif
