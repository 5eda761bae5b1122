/* SPDX-License-Identifier: Apache-2.0
 *
 * Making identities: certificates and keys from PEM into a TLS context.
 */
#include "identity.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tls.h"
#include "tls_library.h"

/* Of a peer's whole chain; ours are below 4 KiB. */
#define MAX_CHAIN_BYTES (32 * 1024)
#define MAX_CHAIN_DEPTH 8
/* How long a session may be resumed at most; less when the certificate ends before. */
#define SESSION_SECONDS 3600

typedef struct making {
  na_identity *identity;
  X509 *leaf;
  char *error;
  size_t error_size;
} making;

static int fail(making *m, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(making *m, int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(m->error, m->error_size, format, args);
  va_end(args);
  ERR_clear_error();
  return code;
}

/* ---- the parts ---- */

/* The next certificate of a text, in the library context that verifies with it; NULL at the end. */
static X509 *read_certificate(BIO *bio) {
  X509 *certificate = X509_new_ex(na_tls_library(), NULL);
  if (certificate && !PEM_read_bio_X509(bio, &certificate, NULL, NULL)) {
    X509_free(certificate);
    certificate = NULL;
  }
  return certificate;
}

static bool is_self_signed(X509 *certificate) {
  return X509_NAME_cmp(X509_get_subject_name(certificate), X509_get_issuer_name(certificate)) == 0;
}

/* The certificates behind the leaf. A root is left out: who does not have it would not trust it. */
static int take_intermediates(making *m, BIO *bio) {
  X509 *certificate;
  while ((certificate = read_certificate(bio))) {
    bool wanted = !is_self_signed(certificate);
    bool added = !wanted || SSL_CTX_add1_chain_cert(m->identity->context, certificate);
    X509_free(certificate);
    if (!added)
      return fail(m, -EINVAL, "a certificate of the chain cannot be used");
  }
  ERR_clear_error(); /* the end of the text is an error to OpenSSL */
  return 0;
}

static int take_chain(making *m, const char *pem) {
  BIO *bio = BIO_new_mem_buf(pem, -1);
  if (!bio)
    return fail(m, -ENOMEM, "out of memory");
  int rc = 0;
  m->leaf = read_certificate(bio);
  if (!m->leaf)
    rc = fail(m, -EINVAL, "the chain holds no certificate in PEM");
  else if (!SSL_CTX_use_certificate(m->identity->context, m->leaf))
    rc = fail(m, -EINVAL, "the certificate cannot be used: %s", ERR_reason_error_string(ERR_peek_last_error()));
  else
    rc = take_intermediates(m, bio);
  BIO_free(bio);
  return rc;
}

static int take_key(making *m, const char *pem) {
  BIO *bio = BIO_new_mem_buf(pem, -1);
  EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey_ex(bio, NULL, NULL, (void *)"", na_tls_library(), NULL) : NULL;
  BIO_free(bio);
  if (!key)
    return fail(m, -EINVAL, "the key is not a private key in PEM");
  int rc = 0;
  if (!X509_check_private_key(m->leaf, key) || !SSL_CTX_use_PrivateKey(m->identity->context, key))
    rc = fail(m, -EINVAL, "the key is not the certificate's");
  EVP_PKEY_free(key);
  return rc;
}

static int take_bundle(making *m, const char *pem) {
  X509_STORE *store = SSL_CTX_get_cert_store(m->identity->context);
  BIO *bio = BIO_new_mem_buf(pem, -1);
  if (!bio)
    return fail(m, -ENOMEM, "out of memory");
  X509 *certificate;
  int n = 0, rc = 0;
  while (!rc && (certificate = read_certificate(bio))) {
    if (!X509_STORE_add_cert(store, certificate))
      rc = fail(m, -EINVAL, "certificate %d of the trust bundle cannot be used", n + 1);
    X509_free(certificate);
    n++;
  }
  BIO_free(bio);
  ERR_clear_error();
  if (!rc && n == 0)
    rc = fail(m, -EINVAL, "the trust bundle holds no certificate in PEM");
  /* An anchor may be an intermediate, as with Envoy and rustls. */
  X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
  return rc;
}

static int take_names(making *m, const na_identity_args *args) {
  na_identity *identity = m->identity;
  char why[128];
  identity->not_after = na_tls_not_after(m->leaf);
  if (na_identity_expired(identity, time(NULL)))
    return fail(m, -EKEYEXPIRED, "the certificate has expired");
  identity->uri = na_tls_certificate_id(m->leaf, why, sizeof why);
  if (!identity->uri)
    return fail(m, -EINVAL, "%s", why);
  const char *authority = identity->uri + strlen("spiffe://");
  identity->trusted = calloc(args->n ? args->n : 1, sizeof *identity->trusted);
  if (!identity->trusted)
    return fail(m, -ENOMEM, "out of memory");
  identity->ntrusted = (uint32_t)(args->n ? args->n : 1);
  for (uint32_t i = 0; i < identity->ntrusted; i++) {
    identity->trusted[i] = args->n ? strdup(args->trust_domains[i]) : strndup(authority, strcspn(authority, "/"));
    if (!identity->trusted[i])
      return fail(m, -ENOMEM, "out of memory");
  }
  return 0;
}

/* ---- the context ---- */

static void limit_context(SSL_CTX *context) {
  SSL_CTX_set_mode(context,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_max_cert_list(context, MAX_CHAIN_BYTES);
  SSL_CTX_set_verify_depth(context, MAX_CHAIN_DEPTH);
  SSL_CTX_set_num_tickets(context, 1);
}

static int make_context(making *m) {
  static const unsigned char h2[] = {2, 'h', '2'}, id[] = "nodeagent";
  SSL_CTX *context = SSL_CTX_new_ex(na_tls_library(), NULL, TLS_method());
  if (!context)
    return fail(m, -ENOMEM, "out of memory");
  m->identity->context = context;
  if (!SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
      !SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) ||
      !SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256") ||
      !SSL_CTX_set1_groups_list(context, "X25519:P-256:P-384") || SSL_CTX_set_alpn_protos(context, h2, sizeof h2) ||
      !SSL_CTX_set_session_id_context(context, id, sizeof id - 1))
    return fail(m, -EINVAL, "OpenSSL lacks TLS 1.3 with AES-GCM");
  limit_context(context);
  na_tls_prepare(context);
  return 0;
}

/* Sessions end with the certificate that they stand for; and with this context, since another one has other ticket
 * keys, so that a changed trust bundle is asked again. */
static void limit_sessions(const na_identity *identity) {
  int64_t left = identity->not_after - time(NULL);
  SSL_CTX_set_timeout(identity->context, (long)(left < SESSION_SECONDS ? left : SESSION_SECONDS));
}

/* ---- whole ---- */

static void identity_free(na_identity *identity) {
  SSL_CTX_free(identity->context);
  for (uint32_t i = 0; i < identity->ntrusted; i++)
    free(identity->trusted[i]);
  free(identity->trusted);
  free(identity->uri);
  free(identity);
}

int na_identity_create(const na_identity_args *args, char *error, size_t error_size, na_identity **out) {
  size_t size = strlen(args->name) + 1;
  making m = {.error = error, .error_size = error_size};
  m.identity = calloc(1, sizeof *m.identity + size);
  if (!m.identity)
    return fail(&m, -ENOMEM, "out of memory");
  atomic_init(&m.identity->refs, 1);
  memcpy(m.identity->name, args->name, size);
  int rc = make_context(&m);
  if (!rc)
    rc = take_chain(&m, args->chain_pem);
  if (!rc)
    rc = take_key(&m, args->key_pem);
  if (!rc)
    rc = take_bundle(&m, args->bundle_pem);
  if (!rc)
    rc = take_names(&m, args);
  X509_free(m.leaf);
  if (rc) {
    identity_free(m.identity);
    return rc;
  }
  limit_sessions(m.identity);
  *out = m.identity;
  return 0;
}

na_identity *na_identity_ref(na_identity *identity) {
  atomic_fetch_add_explicit(&identity->refs, 1, memory_order_relaxed);
  return identity;
}

void na_identity_unref(na_identity *identity) {
  if (identity && atomic_fetch_sub_explicit(&identity->refs, 1, memory_order_acq_rel) == 1)
    identity_free(identity);
}

bool na_identity_trusts(const na_identity *identity, na_str trust_domain) {
  for (uint32_t i = 0; i < identity->ntrusted; i++)
    if (na_str_eq(trust_domain, identity->trusted[i]))
      return true;
  return false;
}
