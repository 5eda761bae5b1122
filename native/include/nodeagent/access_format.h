/* SPDX-License-Identifier: Apache-2.0
 *
 * Access records as lines, in the formats that Istio has by default. Formats of the user's own are Python's
 * (nodeagent/telemetry/log_format.py), which for these gives the same bytes.
 */
#ifndef NODEAGENT_ACCESS_FORMAT_H
#define NODEAGENT_ACCESS_FORMAT_H

#include <nodeagent/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

enum na_access_format {
  NA_ACCESS_TEXT = 1, /* meshConfig.accessLogFormat's default */
  NA_ACCESS_JSON = 2, /* accessLogEncoding JSON; also, where there is one, the policy in audited_by; connections past
                        the engine have tcp_rtt_us and tcp_retransmits, too */
  /* The same, with the proved identities of peers (%DOWNSTREAM_PEER_URI_SAN%, %UPSTREAM_PEER_URI_SAN%). */
  NA_ACCESS_IDENTITY_TEXT = 3,
  NA_ACCESS_IDENTITY_JSON = 4,
};

/* No line is longer. */
#define NA_ACCESS_LINE_MAX 40960
/* Bytes of a cluster's or a peer's name that are written; the rest is cut off. */
#define NA_ACCESS_NAME_MAX 2048

/* What %UPSTREAM_CLUSTER% is for a cluster_tag; "" for none. Where a record's tag has no entry, it is that of the
 * catch-all which the traffic took. */
typedef struct na_access_name {
  const char *text; /* UTF-8 */
  uint32_t tag;
} na_access_name;

/* The cluster tags of n records, each once; returns how many. `tags` has room for n. */
NA_API size_t na_access_tags(const na_access_record *records, size_t n, uint32_t *tags);

/* Write up to n records of the engine as lines while NA_ACCESS_LINE_MAX bytes are left; returns how many, and in *used
 * the bytes written. -EINVAL for a format that is none. Control characters are escaped: nobody writes lines of their
 * own. Without an engine (NULL) peers have no names. */
NA_API int na_access_format(na_engine *engine, const na_access_record *records, size_t n, uint32_t format,
                            const na_access_name *names, size_t names_n, char *out, size_t size, size_t *used);

#ifdef __cplusplus
}
#endif

#endif
