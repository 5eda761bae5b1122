/* SPDX-License-Identifier: Apache-2.0
 *
 * The library context of OpenSSL in which all TLS of the engine lives, with what TLS 1.3 and X.509 need and no more:
 * with each key of a peer's certificate OpenSSL goes through all kinds of keys and all decoders that there are, which
 * took it longer than the cryptography of a handshake. AES-GCM is aes_gcm.h's, where that is there.
 */
#ifndef NODEAGENT_TLS_LIBRARY_H
#define NODEAGENT_TLS_LIBRARY_H

struct ossl_lib_ctx_st;

/* The context, made with the first call, for good; any thread may call. It is one of its own since the default one is
 * Python's, too. NULL, which OpenSSL takes for the default one, where it is told to keep to FIPS, or without memory. */
struct ossl_lib_ctx_st *na_tls_library(void);

#endif
