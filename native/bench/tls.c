/* SPDX-License-Identifier: Apache-2.0 */
#include "tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>

#include "net.h"

#define PATH_BYTES 4096

/* As Istio's proxies do with HTTP. */
static const unsigned char protocols[] = "\x0eistio-http/1.1\x05istio\x08http/1.1";

static SSL_SESSION *latest;

const char *tls_reason(void) {
  const char *reason = ERR_reason_error_string(ERR_peek_last_error());
  return reason ? reason : "the other side ended the connection";
}

/* Keeps a copy: OpenSSL takes a session for spent when it was used once, or its connection ended without close_notify.
 */
static int keep_session(SSL *ssl, SSL_SESSION *session) {
  (void)ssl;
  SSL_SESSION_free(latest);
  latest = SSL_SESSION_dup(session);
  return 0;
}

SSL_SESSION *tls_session(void) {
  return latest;
}

/* Server: the last of what proxies offer, which they all know. */
static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *in,
                           unsigned int n, void *argument) {
  static const unsigned char own[] = "\x08http/1.1\x05istio";
  (void)ssl;
  (void)argument;
  unsigned char *chosen;
  int found = SSL_select_next_proto(&chosen, out_n, own, sizeof own - 1, in, n);
  *out = chosen;
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

static void load_files(SSL_CTX *context, const char *prefix) {
  char chain[PATH_BYTES], key[PATH_BYTES], roots[PATH_BYTES];
  snprintf(chain, sizeof chain, "%s.chain.pem", prefix);
  snprintf(key, sizeof key, "%s.key.pem", prefix);
  snprintf(roots, sizeof roots, "%s.roots.pem", prefix);
  if (!SSL_CTX_use_certificate_chain_file(context, chain) ||
      !SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) ||
      !SSL_CTX_load_verify_locations(context, roots, NULL))
    die("--tls %s: %s", prefix, tls_reason());
}

SSL_CTX *tls_context(const char *prefix, bool server) {
  static const unsigned char id[] = "nodeagent-bench";
  SSL_CTX *context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
      !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") ||
      !SSL_CTX_set_session_id_context(context, id, sizeof id - 1))
    die("--tls: OpenSSL cannot do TLS 1.3 with AES-128-GCM");
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  load_files(context, prefix);
  if (server) {
    SSL_CTX_set_alpn_select_cb(context, select_protocol, NULL);
    SSL_CTX_set_num_tickets(context, 1);
  } else {
    (void)SSL_CTX_set_alpn_protos(context, protocols, sizeof protocols - 1);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_session);
  }
  return context;
}

SSL *tls_over(SSL_CTX *context, BIO *bio, bool server) {
  SSL *ssl = SSL_new(context);
  if (!ssl || !bio)
    die("out of memory");
  SSL_set_bio(ssl, bio, bio);
  if (server)
    SSL_set_accept_state(ssl);
  else
    SSL_set_connect_state(ssl);
  return ssl;
}

SSL *tls_new(SSL_CTX *context, int fd, bool server, SSL_SESSION *session) {
  SSL *ssl = tls_over(context, BIO_new_socket(fd, BIO_NOCLOSE), server);
  SSL_SESSION *copy = session ? SSL_SESSION_dup(session) : NULL;
  if (copy)
    (void)SSL_set_session(ssl, copy);
  SSL_SESSION_free(copy);
  return ssl;
}

/* errno of a call that gave `result`: EAGAIN, 0 at the orderly end, or EPROTO. */
static int error_of(SSL *ssl, int result) {
  switch (SSL_get_error(ssl, result)) {
  case SSL_ERROR_WANT_READ:
  case SSL_ERROR_WANT_WRITE:
    return EAGAIN;
  case SSL_ERROR_ZERO_RETURN:
    return 0;
  default:
    return EPROTO;
  }
}

int tls_handshake(SSL *ssl) {
  ERR_clear_error();
  int result = SSL_do_handshake(ssl);
  if (result == 1)
    return 1;
  return error_of(ssl, result) == EAGAIN ? 0 : -1;
}

ssize_t tls_recv(SSL *ssl, void *buffer, size_t size) {
  ERR_clear_error();
  int n = SSL_read(ssl, buffer, size < INT32_MAX ? (int)size : INT32_MAX);
  if (n > 0)
    return n;
  errno = error_of(ssl, n);
  return errno ? -1 : 0;
}

/* As much of the parts behind `skip` as goes into a record. */
static size_t gather(char *record, size_t room, const struct iovec *parts, int n, size_t skip) {
  size_t total = 0;
  for (int i = 0; i < n && total < room; i++) {
    size_t past = skip < parts[i].iov_len ? skip : parts[i].iov_len, more = parts[i].iov_len - past;
    skip -= past;
    if (more > room - total)
      more = room - total;
    memcpy(record + total, (const char *)parts[i].iov_base + past, more);
    total += more;
  }
  return total;
}

/* Head and body leave together, as without TLS: two segments would have the kernel acknowledge each answer at once. */
ssize_t tls_send(SSL *ssl, const struct iovec *parts, int n) {
  static char record[SSL3_RT_MAX_PLAIN_LENGTH];
  size_t total = 0, more;
  ERR_clear_error();
  while ((more = gather(record, sizeof record, parts, n, total))) {
    int sent = SSL_write(ssl, record, (int)more);
    if (sent <= 0) {
      errno = error_of(ssl, sent);
      return total ? (ssize_t)total : -1;
    }
    total += (size_t)sent;
  }
  return (ssize_t)total;
}
