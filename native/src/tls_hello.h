/* SPDX-License-Identifier: Apache-2.0
 *
 * What a TLS client offers, before anything is answered.
 */
#ifndef NODEAGENT_TLS_HELLO_H
#define NODEAGENT_TLS_HELLO_H

#include <stddef.h>

enum na_tls_hello {
  NA_HELLO_NONE,  /* not the beginning of a TLS connection, or a malformed one */
  NA_HELLO_MORE,  /* bytes are missing */
  NA_HELLO_OTHER, /* TLS of the application's own */
  NA_HELLO_MESH,  /* Istio's mTLS between proxies: a protocol of ALPN (RFC 7301) begins with `istio` */
};

/* Judge the first bytes of a connection. A ClientHello (RFC 8446 4.1.2) that does not fit into one record is the
 * application's own. */
enum na_tls_hello na_tls_hello(const char *bytes, size_t n);

#endif
