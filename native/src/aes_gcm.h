/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-GCM by VAES and VPCLMULQDQ, for an OpenSSL provider. OpenSSL has such code from 3.1 on; what 3.0 has needs four
 * times as long for a full record, and more than twice for a small one. The cryptography is Intel's Multi-Buffer
 * library's.
 */
#ifndef NODEAGENT_AES_GCM_H
#define NODEAGENT_AES_GCM_H

#include <openssl/core.h>

/* AES-128-GCM and AES-256-GCM, and the entry that ends the list. NULL where they are not wanted: the build is without
 * the library, the processor without the instructions, or OpenSSL has the code itself. For one thread at a time.
 *
 * They are for TLS 1.3 records (RFC 8446 5.2): nonces are of 96 bits, and additional data comes at once, before text.
 */
const OSSL_ALGORITHM *na_aes_gcm(void);

#endif
