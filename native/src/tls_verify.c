/* SPDX-License-Identifier: Apache-2.0
 *
 * Who is the peer? The SPIFFE ID of a certificate (X509-SVID), and whether it is one to talk to.
 */
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "spiffe.h"
#include "tls.h"

int64_t na_tls_not_after(const X509 *certificate) {
  struct tm tm;
  if (!ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &tm))
    return 0;
  return timegm(&tm);
}

/* The URI of a certificate that has just one (X509-SVID 2). */
static const ASN1_IA5STRING *only_uri(const GENERAL_NAMES *names, char *why, size_t why_size) {
  const ASN1_IA5STRING *uri = NULL;
  for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
    const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI)
      continue;
    if (uri) {
      snprintf(why, why_size, "certificate has more than one URI SAN");
      return NULL;
    }
    uri = name->d.uniformResourceIdentifier;
  }
  if (!uri)
    snprintf(why, why_size, "certificate has no URI SAN");
  return uri;
}

static char *checked_id(const ASN1_IA5STRING *uri, char *why, size_t why_size) {
  const char *text = (const char *)ASN1_STRING_get0_data(uri);
  size_t n = (size_t)ASN1_STRING_length(uri);
  na_spiffe id;
  if (n && memchr(text, '\0', n)) {
    snprintf(why, why_size, "certificate's URI SAN has a NUL byte in it");
    return NULL;
  }
  if (!na_spiffe_parse(text, n, &id)) {
    snprintf(why, why_size, "certificate's URI SAN is not a SPIFFE ID");
    return NULL;
  }
  char *copy = strndup(text, n);
  if (!copy)
    snprintf(why, why_size, "out of memory");
  return copy;
}

char *na_tls_certificate_id(X509 *certificate, char *why, size_t why_size) {
  /* X509-SVID 4.1: a leaf is no CA; its key may not sign certificates. */
  uint32_t usage = X509_get_extension_flags(certificate) & EXFLAG_KUSAGE ? X509_get_key_usage(certificate) : 0;
  if (X509_check_ca(certificate) || usage & (KU_KEY_CERT_SIGN | KU_CRL_SIGN)) {
    snprintf(why, why_size, "certificate is a CA's, not a workload's");
    return NULL;
  }
  int critical = 0;
  GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, &critical, NULL);
  if (!names) {
    snprintf(why, why_size, "certificate has no URI SAN");
    return NULL;
  }
  const ASN1_IA5STRING *uri = only_uri(names, why, why_size);
  char *id = uri ? checked_id(uri, why, why_size) : NULL;
  GENERAL_NAMES_free(names);
  return id;
}

/* Is it a workload of the mesh? By its service account, as for ztunnel: to policies on namespaces an ID without one
 * would be nobody's, so that no DENY would match it. */
static bool is_trusted(const na_identity *identity, const char *id, char *why, size_t why_size) {
  na_spiffe parts;
  if (!na_spiffe_parse(id, strlen(id), &parts) || !na_identity_trusts(identity, parts.trust_domain))
    snprintf(why, why_size, "SAN %s is of another trust domain than %s", id, identity->trusted[0]);
  else if (!parts.service_account.n)
    snprintf(why, why_size, "SAN %s is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", id);
  else
    return true;
  return false;
}

bool na_tls_acceptable(X509 *certificate, const na_identity *identity, const char *expected, char *why,
                       size_t why_size) {
  char *id = na_tls_certificate_id(certificate, why, why_size);
  if (!id)
    return false;
  bool good = expected ? na_spiffe_in(id, strlen(id), expected) : is_trusted(identity, id, why, why_size);
  if (!good && expected)
    snprintf(why, why_size, "SAN %s not in {%s}", id, expected);
  if (good && time(NULL) >= na_tls_not_after(certificate)) { /* a resumed session was verified long ago */
    snprintf(why, why_size, "certificate expired");
    good = false;
  }
  free(id);
  return good;
}

static const char *explain_error(long verify_error) {
  switch (verify_error) {
  case X509_V_ERR_CERT_HAS_EXPIRED:
    return "certificate expired";
  case X509_V_ERR_CERT_NOT_YET_VALID:
    return "certificate not valid yet";
  case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
  case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
  case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
  case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
  case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
  case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    return "unknown CA";
  case X509_V_ERR_INVALID_PURPOSE:
    return "certificate is not for this purpose (extended key usage)";
  default:
    return X509_verify_cert_error_string(verify_error);
  }
}

void na_tls_explain(long verify_error, X509 *certificate, char *why, size_t why_size) {
  char unused[96];
  const char *text = explain_error(verify_error);
  char *id = certificate ? na_tls_certificate_id(certificate, unused, sizeof unused) : NULL;
  if (id)
    snprintf(why, why_size, "%s (%s)", text, id);
  else
    snprintf(why, why_size, "%s", text);
  free(id);
}
