/* SPDX-License-Identifier: Apache-2.0
 *
 * SPIFFE IDs (SPIFFE-ID 2): spiffe://<trust domain>/<path>, and the path that Istio gives a workload:
 * /ns/<namespace>/sa/<service account>.
 */
#ifndef NODEAGENT_SPIFFE_H
#define NODEAGENT_SPIFFE_H

#include <stdbool.h>
#include <stddef.h>

#include "http1.h"

/* SPIFFE-ID 2.3 */
#define NA_SPIFFE_MAX 2048

/* The parts of an ID; views into the text that was parsed. */
typedef struct na_spiffe {
  na_str trust_domain;
  na_str path;            /* with its first slash; empty for the ID of a trust domain */
  na_str namespace;       /* empty unless the path is Istio's */
  na_str service_account; /* likewise */
} na_spiffe;

/* Take an ID apart; false if it is none: bytes outside the grammar (NUL and percent signs among them), an empty or
 * dotted segment, a port, a query, a fragment, longer than NA_SPIFFE_MAX. */
bool na_spiffe_parse(const char *text, size_t n, na_spiffe *out);
/* Whether `text` is one of the IDs in `set`, which is separated by single spaces. */
bool na_spiffe_in(const char *text, size_t n, const char *set);

#endif
