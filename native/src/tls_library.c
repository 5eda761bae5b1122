/* SPDX-License-Identifier: Apache-2.0
 *
 * A provider that passes on a choice of OpenSSL's default one, which is loaded in a context behind it.
 */
#include "tls_library.h"

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "aes_gcm.h"

#define NAME "nodeagent"

static OSSL_LIB_CTX *library;
static OSSL_PROVIDER *openssl; /* its default provider */

/* ---- the choice ---- */

static const char *const digests[] = {"SHA1", "SHA2-224", "SHA2-256", "SHA2-384", "SHA2-512", NULL};
static const char *const ciphers[] = {"AES-128-GCM", "AES-256-GCM", NULL};
static const char *const macs[] = {"HMAC", NULL};
static const char *const derivations[] = {"HKDF", "TLS13-KDF", NULL};
static const char *const generators[] = {"CTR-DRBG", "SEED-SRC", NULL};
/* HMAC is for the binders of resumed sessions. */
static const char *const keys[] = {"EC", "RSA", "RSA-PSS", "ED25519", "X25519", "HMAC", NULL};
static const char *const exchanges[] = {"ECDH", "X25519", NULL};
static const char *const signatures[] = {"ECDSA", "RSA", "ED25519", "HMAC", NULL};
static const char *const decoders[] = {"EC", "RSA", "RSA-PSS", "ED25519", NULL};

/* What there is of a kind of algorithms. */
typedef struct kind {
  int id;
  const char *const *names;
  const OSSL_ALGORITHM *chosen;
} kind;

static kind operations[] = {
    {OSSL_OP_DIGEST, digests, NULL},    {OSSL_OP_CIPHER, ciphers, NULL},       {OSSL_OP_MAC, macs, NULL},
    {OSSL_OP_KDF, derivations, NULL},   {OSSL_OP_RAND, generators, NULL},      {OSSL_OP_KEYMGMT, keys, NULL},
    {OSSL_OP_KEYEXCH, exchanges, NULL}, {OSSL_OP_SIGNATURE, signatures, NULL}, {OSSL_OP_DECODER, decoders, NULL},
};

enum { OPERATIONS = sizeof operations / sizeof *operations };

/* Whether the first of its names (`NAME:NAME:OID`) is one of these. */
static bool is_called(const OSSL_ALGORITHM *algorithm, const char *const *names) {
  size_t n = strcspn(algorithm->algorithm_names, ":");
  for (; *names; names++)
    if (strlen(*names) == n && strncmp(algorithm->algorithm_names, *names, n) == 0)
      return true;
  return false;
}

/* Whether it is the decoder of PEM, or one for a key as a certificate has it, PKCS #8, or its own standard (SEC 1 and
 * PKCS #1). */
static bool is_decoder(const OSSL_ALGORITHM *algorithm) {
  static const char *const forms[] = {"structure=SubjectPublicKeyInfo", "structure=PrivateKeyInfo",
                                      "structure=type-specific"};
  const char *properties = algorithm->property_definition;
  bool is_key = false;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
    is_key = is_key || strstr(properties, forms[i]);
  return strstr(properties, "input=pem") || (is_key && is_called(algorithm, decoders));
}

static bool is_wanted(const OSSL_ALGORITHM *algorithm, const kind *operation) {
  return operation->id == OSSL_OP_DECODER ? is_decoder(algorithm) : is_called(algorithm, operation->names);
}

static bool choose(kind *operation) {
  int no_cache;
  const OSSL_ALGORITHM *all = OSSL_PROVIDER_query_operation(openssl, operation->id, &no_cache);
  size_t n = 0, total = 0;
  while (all && all[n].algorithm_names)
    n++;
  OSSL_ALGORITHM *chosen = calloc(n + 1, sizeof *chosen); /* the end is an empty one */
  for (size_t i = 0; chosen && i < n; i++)
    if (is_wanted(&all[i], operation))
      chosen[total++] = all[i];
  operation->chosen = chosen;
  return chosen;
}

static bool choose_all(void) {
  const OSSL_ALGORITHM *gcm = na_aes_gcm();
  for (int i = 0; i < OPERATIONS; i++)
    if (gcm && operations[i].id == OSSL_OP_CIPHER)
      operations[i].chosen = gcm;
    else if (!choose(&operations[i]))
      return false;
  return true;
}

/* ---- the provider ---- */

static const OSSL_ALGORITHM *query(void *provider, int id, int *no_cache) {
  *no_cache = 0;
  for (int i = 0; i < OPERATIONS; i++)
    if (operations[i].id == id)
      return operations[i].chosen;
  return NULL;
}

/* The groups of key exchange. */
static int get_capabilities(void *provider, const char *capability, OSSL_CALLBACK *callback, void *argument) {
  return OSSL_PROVIDER_get_capabilities(openssl, capability, callback, argument);
}

static int start(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *core, const OSSL_DISPATCH **out,
                 void **provider) {
  typedef void (*function)(void);
  static const OSSL_DISPATCH functions[] = {
      {OSSL_FUNC_PROVIDER_QUERY_OPERATION, (function)query},
      {OSSL_FUNC_PROVIDER_GET_CAPABILITIES, (function)get_capabilities},
      {0, NULL},
  };
  *out = functions;
  *provider = OSSL_PROVIDER_get0_provider_ctx(openssl); /* what its algorithms want to be given */
  return 1;
}

/* ---- the context ---- */

static void make_library(void) {
  if (EVP_default_properties_is_fips_enabled(NULL))
    return;
  OSSL_LIB_CTX *made = OSSL_LIB_CTX_new(), *behind = OSSL_LIB_CTX_new();
  openssl = made && behind ? OSSL_PROVIDER_load(behind, "default") : NULL;
  if (openssl && choose_all() && OSSL_PROVIDER_add_builtin(made, NAME, start) && OSSL_PROVIDER_load(made, NAME)) {
    library = made;
    return;
  }
  OSSL_LIB_CTX_free(made);
  OSSL_LIB_CTX_free(behind);
}

OSSL_LIB_CTX *na_tls_library(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_library);
  return library;
}
