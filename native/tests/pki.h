/* SPDX-License-Identifier: Apache-2.0
 *
 * Certificates for tests: CAs, and leaves with whatever may be wrong with one.
 */
#ifndef NODEAGENT_PKI_H
#define NODEAGENT_PKI_H

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "cmocka_common.h"

#define PKI_UNUSED __attribute__((unused))

/* A certificate with its key; also what a CA is. */
typedef struct credential {
  X509 *certificate;
  EVP_PKEY *key;
  char chain[8192]; /* PEM */
  char key_pem[1024];
} credential;

/* What a leaf is to be. */
typedef struct leaf_spec {
  const char *uris[3]; /* SANs */
  size_t uri_bytes;    /* of the first one, when it is not a C string */
  long from;           /* validity in seconds from now; to 0: an hour */
  long to;
  bool is_ca;
} leaf_spec;

PKI_UNUSED static void to_pem(BIO *bio, char *out, size_t size) {
  int n = BIO_read(bio, out, (int)size - 1);
  assert_true(n > 0 && n < (int)size - 1);
  out[n] = '\0';
  BIO_free(bio);
}

PKI_UNUSED static void add_extension(X509 *certificate, int nid, const char *value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, certificate, certificate, NULL, NULL, 0);
  X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
  assert_non_null(extension);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

PKI_UNUSED static X509 *blank(EVP_PKEY *key, const char *name, long from, long to) {
  static long serial = 1;
  X509 *certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), from);
  X509_gmtime_adj(X509_getm_notAfter(certificate), to);
  X509_set_pubkey(certificate, key);
  if (name)
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "O", MBSTRING_ASC, (const uint8_t *)name, -1, -1, 0);
  return certificate;
}

PKI_UNUSED static void finish_credential(credential *c, const X509 *issuer, EVP_PKEY *issuer_key) {
  X509_set_issuer_name(c->certificate, X509_get_subject_name(issuer));
  assert_true(X509_sign(c->certificate, issuer_key, EVP_sha256()) > 0);
  BIO *bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, c->certificate);
  to_pem(bio, c->chain, sizeof c->chain);
  bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(bio, c->key, NULL, NULL, 0, NULL, NULL);
  to_pem(bio, c->key_pem, sizeof c->key_pem);
}

PKI_UNUSED static credential new_ca(const char *name) {
  credential ca = {.key = EVP_EC_gen("P-256")};
  ca.certificate = blank(ca.key, name, -3600, 86400);
  add_extension(ca.certificate, NID_basic_constraints, "critical,CA:TRUE");
  add_extension(ca.certificate, NID_key_usage, "critical,keyCertSign,cRLSign");
  finish_credential(&ca, ca.certificate, ca.key);
  return ca;
}

PKI_UNUSED static void add_sans(X509 *certificate, const leaf_spec *spec) {
  GENERAL_NAMES *names = sk_GENERAL_NAME_new_null();
  for (int i = 0; i < 3 && spec->uris[i]; i++) {
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();
    int n = i == 0 && spec->uri_bytes ? (int)spec->uri_bytes : (int)strlen(spec->uris[i]);
    ASN1_STRING_set(text, spec->uris[i], n);
    GENERAL_NAME_set0_value(name, GEN_URI, text);
    sk_GENERAL_NAME_push(names, name);
  }
  if (spec->uris[0])
    X509_add1_ext_i2d(certificate, NID_subject_alt_name, names, 1, 0);
  GENERAL_NAMES_free(names);
}

PKI_UNUSED static credential new_leaf(const credential *ca, const leaf_spec *spec) {
  credential leaf = {.key = EVP_EC_gen("P-256")};
  leaf.certificate = blank(leaf.key, NULL, spec->from, spec->to ? spec->to : 3600);
  if (spec->is_ca)
    add_extension(leaf.certificate, NID_basic_constraints, "critical,CA:TRUE");
  add_extension(leaf.certificate, NID_ext_key_usage, "serverAuth,clientAuth");
  add_sans(leaf.certificate, spec);
  finish_credential(&leaf, ca->certificate, ca->key);
  return leaf;
}

PKI_UNUSED static void free_credential(credential *c) {
  X509_free(c->certificate);
  EVP_PKEY_free(c->key);
}

#endif
