/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes that the back end sends and the load generator expects: what is at an offset of a body depends on the
 * offset alone, so that either side needs one table and no copy of the body.
 */
#ifndef NODEAGENT_BENCH_PATTERN_H
#define NODEAGENT_BENCH_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Most that can be had at once, whatever the offset. */
#define PATTERN_RUN ((size_t)1 << 20)

/* Bytes of a body from `offset` on; PATTERN_RUN of them may be read. */
const char *pattern_at(uint64_t offset);
/* Whether the n bytes are those of a body from `offset` on. */
bool pattern_matches(const char *bytes, size_t n, uint64_t offset);

#endif
