/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_library.h"

#include <openssl/evp.h>
#include <openssl/provider.h>
#include <pthread.h>

#include "aes_gcm.h"

static OSSL_LIB_CTX *library;

/* Where OpenSSL is told to keep to FIPS, nothing is added. */
static void make_library(void) {
  OSSL_provider_init_fn *aes_gcm = EVP_default_properties_is_fips_enabled(NULL) ? NULL : na_aes_gcm_provider();
  OSSL_LIB_CTX *made = aes_gcm ? OSSL_LIB_CTX_new() : NULL;
  if (!made)
    return;
  if (OSSL_PROVIDER_add_builtin(made, "nodeagent", aes_gcm) && OSSL_PROVIDER_load(made, "nodeagent") &&
      OSSL_PROVIDER_load(made, "default") && EVP_set_default_properties(made, "?provider=nodeagent"))
    library = made;
  else
    OSSL_LIB_CTX_free(made);
}

OSSL_LIB_CTX *na_tls_library(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_library);
  return library;
}
