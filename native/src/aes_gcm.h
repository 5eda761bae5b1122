/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-GCM by VAES and VPCLMULQDQ, as an OpenSSL provider. OpenSSL has such code from 3.1 on; what 3.0 has needs four
 * times as long for a full record and more than twice for a small one. The cryptography is Intel's Multi-Buffer
 * library's.
 */
#ifndef NODEAGENT_AES_GCM_H
#define NODEAGENT_AES_GCM_H

#include <openssl/provider.h>

/* The provider's start, for OSSL_PROVIDER_add_builtin(). NULL where it is not wanted: the build is without the library,
 * the processor without the instructions, or OpenSSL has the code itself. Called once.
 *
 * It is for TLS 1.3 records (RFC 8446 5.2): nonces are of 96 bits, and additional data is given at once, before text.
 */
OSSL_provider_init_fn *na_aes_gcm_provider(void);

#endif
