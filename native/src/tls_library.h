/* SPDX-License-Identifier: Apache-2.0
 *
 * The library context of OpenSSL in which all TLS of the engine lives.
 */
#ifndef NODEAGENT_TLS_LIBRARY_H
#define NODEAGENT_TLS_LIBRARY_H

struct ossl_lib_ctx_st;

/* The context; NULL, which OpenSSL takes for its default one, unless there is something to add. It is one of its own
 * since the default one is Python's, too. Made with the first call, for good; any thread may call. */
struct ossl_lib_ctx_st *na_tls_library(void);

#endif
