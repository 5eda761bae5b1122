/* SPDX-License-Identifier: Apache-2.0
 *
 * A snapshot under construction. The builder owns `next`, which shares its parts with the snapshot that was current;
 * each call makes what it changes its own first (snapshot_parts.h).
 */
#ifndef NODEAGENT_BUILDER_H
#define NODEAGENT_BUILDER_H

#include "snapshot_parts.h"

struct na_builder {
  na_snapshots *registry;
  na_snapshot *next;
  uint64_t base; /* the generation that it began from */
  char error[NA_ERROR_SIZE];
};

/* Set the builder's error text; returns rc. */
int na_builder_fail(na_builder *b, int rc, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for what needs no more than its errno. */
int na_builder_out(na_builder *b, int rc);

/* Check that all references of the new snapshot lead somewhere, as far as they can have changed since `base`. */
int na_builder_validate(na_builder *b, const na_snapshot *base);

#endif
