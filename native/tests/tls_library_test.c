/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS in the engine's library context with peers of OpenSSL's own: the choice of algorithms in it suffices for all
 * kinds of keys, of their files, of key exchange and of ciphers, as client and as server.
 */
#include "tls_library.h"

#include <openssl/ec.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <string.h>

#include "cmocka_common.h"
#include "pki.h"

/* A certificate that signs itself, and its key, in PEM. */
typedef struct self_signed {
  char certificate[4096], key[4096];
} self_signed;

static EVP_PKEY *make_key(const char *kind) {
  if (strcmp(kind, "RSA") == 0)
    return EVP_RSA_gen(2048);
  if (strncmp(kind, "P-", 2) == 0)
    return EVP_EC_gen(kind);
  EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, kind, NULL);
  EVP_PKEY *key = NULL;
  assert_int_equal(EVP_PKEY_keygen_init(context), 1);
  assert_int_equal(EVP_PKEY_generate(context, &key), 1);
  EVP_PKEY_CTX_free(context);
  return key;
}

static self_signed sign(EVP_PKEY *key, bool traditional) {
  self_signed out;
  X509 *certificate = blank(key, "self", -60, 3600);
  X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
  const EVP_MD *digest = EVP_PKEY_is_a(key, "ED25519") ? NULL : EVP_sha256();
  assert_true(X509_sign(certificate, key, digest) > 0);
  BIO *bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, certificate);
  to_pem(bio, out.certificate, sizeof out.certificate);
  bio = BIO_new(BIO_s_mem());
  if (traditional)
    PEM_write_bio_PrivateKey_traditional(bio, key, NULL, NULL, 0, NULL, NULL);
  else
    PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
  to_pem(bio, out.key, sizeof out.key);
  X509_free(certificate);
  return out;
}

static X509 *read_certificate(OSSL_LIB_CTX *library, const char *pem) {
  BIO *bio = BIO_new_mem_buf(pem, -1);
  X509 *certificate = X509_new_ex(library, NULL);
  assert_non_null(PEM_read_bio_X509(bio, &certificate, NULL, NULL));
  BIO_free(bio);
  return certificate;
}

/* A context that has a certificate, and trusts only itself. */
static SSL_CTX *make_context(OSSL_LIB_CTX *library, const self_signed *own, const char *cipher, const char *group) {
  SSL_CTX *context = SSL_CTX_new_ex(library, NULL, TLS_method());
  X509 *certificate = read_certificate(library, own->certificate);
  BIO *bio = BIO_new_mem_buf(own->key, -1);
  EVP_PKEY *key = PEM_read_bio_PrivateKey_ex(bio, NULL, NULL, NULL, library, NULL);
  assert_non_null(key);
  assert_int_equal(SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION), 1);
  assert_int_equal(SSL_CTX_use_certificate(context, certificate), 1);
  assert_int_equal(SSL_CTX_use_PrivateKey(context, key), 1);
  assert_int_equal(X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate), 1);
  assert_int_equal(SSL_CTX_set_ciphersuites(context, cipher), 1);
  assert_int_equal(SSL_CTX_set1_groups_list(context, group), 1);
  assert_int_equal(SSL_CTX_set_session_id_context(context, (const uint8_t *)"test", 4), 1);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET); /* as the engine does */
  BIO_free(bio);
  EVP_PKEY_free(key);
  X509_free(certificate);
  return context;
}

static void exchange(SSL *from, SSL *to) {
  static char sent[3000], got[3000];
  size_t n;
  memset(sent, 's', sizeof sent);
  assert_int_equal(SSL_write_ex(from, sent, sizeof sent, &n), 1);
  assert_int_equal(SSL_read_ex(to, got, sizeof got, &n), 1);
  assert_int_equal(n, sizeof sent);
  assert_memory_equal(sent, got, sizeof sent);
}

/* A connection with bytes in both directions; returns whether it resumed `session`, and the next one. */
static bool meet(SSL_CTX *client_context, SSL_CTX *server_context, SSL_SESSION **session) {
  SSL *client = SSL_new(client_context), *server = SSL_new(server_context);
  BIO *a, *b;
  int done = 0;
  assert_int_equal(BIO_new_bio_pair(&a, 65536, &b, 65536), 1);
  SSL_set_bio(client, a, a);
  SSL_set_bio(server, b, b);
  SSL_set_connect_state(client);
  SSL_set_accept_state(server);
  if (*session)
    assert_int_equal(SSL_set_session(client, *session), 1);
  for (int i = 0; i < 4 && done < 2; i++)
    done = (SSL_do_handshake(client) == 1) + (SSL_do_handshake(server) == 1);
  assert_int_equal(done, 2);
  exchange(client, server);
  exchange(server, client);
  bool resumed = SSL_session_reused(client);
  SSL_SESSION_free(*session);
  *session = SSL_get1_session(client);
  SSL_shutdown(client);
  SSL_shutdown(server);
  SSL_free(client);
  SSL_free(server);
  return resumed;
}

/* Both ways between our library and OpenSSL's default one, the second time resumed. */
static void check_pair(const self_signed *own, const char *cipher, const char *group) {
  SSL_CTX *contexts[] = {make_context(na_tls_library(), own, cipher, group), make_context(NULL, own, cipher, group)};
  for (int i = 0; i < 2; i++) {
    SSL_SESSION *session = NULL;
    assert_false(meet(contexts[i], contexts[!i], &session));
    assert_true(meet(contexts[i], contexts[!i], &session));
    SSL_SESSION_free(session);
  }
  SSL_CTX_free(contexts[0]);
  SSL_CTX_free(contexts[1]);
}

static void test_kinds_of_keys(void **state) {
  static const char *const kinds[] = {"P-256", "P-384", "RSA", "RSA-PSS", "ED25519"};
  for (size_t i = 0; i < COUNT(kinds); i++) {
    EVP_PKEY *key = make_key(kinds[i]);
    self_signed own = sign(key, false);
    check_pair(&own, "TLS_AES_256_GCM_SHA384", "X25519");
    if (i < 3) {
      own = sign(key, true);
      check_pair(&own, "TLS_AES_256_GCM_SHA384", "X25519");
    }
    EVP_PKEY_free(key);
  }
}

static void test_ciphers_and_groups(void **state) {
  static const char *const ciphers[] = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"};
  static const char *const groups[] = {"X25519", "P-256", "P-384"};
  EVP_PKEY *key = make_key("P-256");
  self_signed own = sign(key, false);
  for (size_t i = 0; i < COUNT(ciphers) * COUNT(groups); i++)
    check_pair(&own, ciphers[i % COUNT(ciphers)], groups[i / COUNT(ciphers)]);
  EVP_PKEY_free(key);
}

static void test_nothing_else_is_in_it(void **state) {
  if (!na_tls_library())
    skip();
  EVP_MD *digest = EVP_MD_fetch(na_tls_library(), "MD5", NULL);
  EVP_KEYMGMT *keys = EVP_KEYMGMT_fetch(na_tls_library(), "DH", NULL);
  assert_null(digest);
  assert_null(keys);
  digest = EVP_MD_fetch(NULL, "MD5", NULL); /* but in the default one */
  assert_non_null(digest);
  EVP_MD_free(digest);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_kinds_of_keys),
      cmocka_unit_test(test_ciphers_and_groups),
      cmocka_unit_test(test_nothing_else_is_in_it),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
