/* SPDX-License-Identifier: Apache-2.0 */
#include "tls.h"

#include <assert.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "principals.h"
#include "syscalls.h"

/* What a handshake may bring in: two chains of the largest size would do. */
#define MAX_HANDSHAKE_BYTES (64 * 1024)
/* Records that wait for a peer that does not read; above, it is given up. The owner sends nothing while records wait,
 * so this is about what OpenSSL answers by itself (key updates). */
#define MAX_OUT_BYTES (256 * 1024)

typedef struct na_tls {
  SSL *ssl;
  na_stream *stream;
  na_tls_flow flow;
  na_identity *identity;
  na_buffer kept; /* ciphertext that the last call left: flow.in of the next one */
  char *expected; /* NULL: server */
  char *peer;
  int64_t peer_not_after;
  SSL_SESSION *session; /* the latest offered */
  na_tls_memo *memo;
  na_principals *principals;
  uint32_t principal;
  uint32_t *budget;
  uint32_t handshake_bytes;
  enum na_tls_use use;
  bool more_on_socket;
  bool ended; /* the socket's end of data */
  bool established;
  char failure[160];
} na_tls;

/* ---- from and to the socket ---- */

/* Get ciphertext when none is left; false when there is none to be had now. */
static bool fill(na_tls *tls) {
  na_stream *stream = tls->stream;
  if (!tls->more_on_socket)
    return false;
  ssize_t n = na_sys_recv(stream->watch.fd, tls->flow.memory->in, tls->flow.memory->in_size);
  /* As for TCP: a short read drained the socket, unless the end is known to follow. */
  tls->more_on_socket = (size_t)n == tls->flow.memory->in_size || (n > 0 && stream->peer_closing);
  if (n > 0) {
    tls->flow.in = tls->flow.memory->in;
    tls->flow.in_n = (size_t)n;
    return true;
  }
  tls->ended = tls->ended || n == 0;
  if (n < 0 && errno != EAGAIN && errno != EINTR) {
    stream->broken = true;
    tls->ended = true;
    if (!tls->failure[0])
      snprintf(tls->failure, sizeof tls->failure, "%s", strerrordesc_np(errno));
  }
  return false;
}

/* SSL_get_error() wants an empty queue of errors. It mostly is, and to see that costs less than to clear it. */
static void forget_errors(void) {
  if (ERR_peek_error())
    ERR_clear_error();
}

/* Begin a call: the ciphertext that the last one left is taken up. */
static void enter(na_tls *tls) {
  tls->flow.in = na_buffer_bytes(&tls->kept);
  tls->flow.in_n = na_buffer_length(&tls->kept);
  assert(tls->flow.memory->out_n == 0);
  forget_errors();
}

/* End a call: keep the ciphertext that is left, send the records that were made. */
static int leave(na_tls *tls) {
  na_tls_memory *memory = tls->flow.memory;
  na_buffer left = {0};
  int error = tls->flow.in_n ? na_buffer_append(&left, tls->flow.in, tls->flow.in_n) : 0;
  na_buffer_free(&tls->kept);
  tls->kept = left;
  tls->flow.in_n = 0;
  if (memory->out_n && !error)
    error = na_stream_send_raw(tls->stream, memory->out, memory->out_n, MAX_OUT_BYTES);
  memory->out_n = 0;
  na_tls_flow_warm(&tls->flow);
  tls->stream->readable = tls->more_on_socket || na_buffer_length(&tls->kept) > 0 || SSL_pending(tls->ssl) > 0 ||
                          SSL_get_shutdown(tls->ssl) & SSL_RECEIVED_SHUTDOWN;
  return error;
}

/* ---- failures ---- */

/* Put into words what OpenSSL gave up for; returns the errno to go with it. */
static int failed(na_tls *tls) {
  unsigned long error = ERR_peek_last_error();
  const char *reason = error ? ERR_reason_error_string(error) : NULL;
  int number = ERR_GET_REASON(error);
  bool from_peer = ERR_GET_LIB(error) == ERR_LIB_SSL && number > SSL_AD_REASON_OFFSET;
  if (tls->failure[0]) {
    /* the verification said it already */
  } else if (from_peer) {
    snprintf(tls->failure, sizeof tls->failure, "the peer refused: TLS alert %s",
             SSL_alert_desc_string_long(number - SSL_AD_REASON_OFFSET));
  } else {
    snprintf(tls->failure, sizeof tls->failure, "TLS: %s", reason ? reason : "the peer closed the connection");
  }
  tls->stream->broken = true;
  ERR_clear_error();
  return error ? -EPROTO : -ECONNRESET;
}

/* Called for each certificate of the chain, the peer's own last (depth 0). */
static int on_verify(int good, X509_STORE_CTX *context) {
  SSL *ssl = X509_STORE_CTX_get_ex_data(context, SSL_get_ex_data_X509_STORE_CTX_idx());
  na_tls *tls = SSL_get_app_data(ssl);
  X509 *certificate = X509_STORE_CTX_get_current_cert(context);
  if (!good) {
    na_tls_explain(X509_STORE_CTX_get_error(context), certificate, tls->failure, sizeof tls->failure);
  } else if (X509_STORE_CTX_get_error_depth(context) == 0 &&
             !na_tls_acceptable(certificate, tls->identity, tls->expected, tls->failure, sizeof tls->failure)) {
    X509_STORE_CTX_set_error(context, X509_V_ERR_CERT_REJECTED);
    good = 0;
  }
  return good;
}

/* ---- beginning ---- */

void na_tls_memo_ref(void *memo) {
  ((na_tls_memo *)memo)->refs++;
}

static void memo_put(na_tls_memo *memo, SSL_SESSION *session, na_identity *identity) {
  SSL_SESSION_free(memo->session);
  na_identity_unref(memo->identity);
  memo->session = session;
  memo->identity = session ? na_identity_ref(identity) : NULL;
}

void na_tls_memo_unref(void *value) {
  na_tls_memo *memo = value;
  if (!memo || --memo->refs)
    return;
  memo_put(memo, NULL, NULL);
  free(memo);
}

static int on_session(SSL *ssl, SSL_SESSION *session) {
  na_tls *tls = SSL_get_app_data(ssl);
  if (!tls->expected)
    return 0;
  if (tls->memo) {
    memo_put(tls->memo, session, tls->identity);
    return 1;
  }
  SSL_SESSION_free(tls->session);
  tls->session = session;
  return 1; /* the reference is ours */
}

/* Of the protocols that a client offers, ours in order of preference; none agreed on is no failure but in tunnels. */
static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_n, const unsigned char *in,
                           unsigned int n, void *argument) {
  static const unsigned char tunnel[] = "\x02h2", mesh[] = "\x02h2\x08http/1.1\x05istio";
  const na_tls *tls = SSL_get_app_data(ssl);
  bool tunnelled = tls->use == NA_TLS_TUNNEL;
  unsigned char *chosen;
  if (SSL_select_next_proto(&chosen, out_n, tunnelled ? tunnel : mesh, tunnelled ? sizeof tunnel - 1 : sizeof mesh - 1,
                            in, n) == OPENSSL_NPN_NEGOTIATED) {
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
  }
  return tunnelled ? SSL_TLSEXT_ERR_ALERT_FATAL : SSL_TLSEXT_ERR_NOACK;
}

void na_tls_prepare(SSL_CTX *context) {
  SSL_CTX_set_alpn_select_cb(context, select_protocol, NULL);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_BOTH);
  SSL_CTX_sess_set_cache_size(context, NA_TLS_MAX_SESSIONS);
  SSL_CTX_sess_set_new_cb(context, on_session);
}

static void tls_free(na_tls *tls) {
  if (tls->established) /* however the connection ended, its session may be resumed */
    SSL_set_shutdown(tls->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
  na_tls_flow_end(&tls->flow);
  SSL_free(tls->ssl);
  SSL_SESSION_free(tls->session);
  na_tls_memo_unref(tls->memo);
  na_identity_unref(tls->identity);
  na_buffer_free(&tls->kept);
  free(tls->expected);
  free(tls->peer);
  free(tls);
}

/* Client: offer what is spoken. As Istio's proxies do, of which one tells by it that its peer is another one. */
static int offer_protocols(na_tls *tls) {
  static const unsigned char http[] = "\x0eistio-http/1.1\x05istio\x08http/1.1", tcp[] = "\x05istio";
  switch (tls->use) {
  case NA_TLS_MESH_HTTP:
    return SSL_set_alpn_protos(tls->ssl, http, sizeof http - 1);
  case NA_TLS_MESH_TCP:
    return SSL_set_alpn_protos(tls->ssl, tcp, sizeof tcp - 1);
  default:
    return 0; /* the context's */
  }
}

static SSL_SESSION *session_for(const na_tls *tls, const na_tls_args *args) {
  if (!args->memo)
    return args->session;
  return args->memo->identity == tls->identity ? args->memo->session : NULL;
}

static int set_up(na_tls *tls, const na_tls_args *args) {
  BIO *bio = na_tls_flow_bio(&tls->flow);
  tls->ssl = bio ? SSL_new(tls->identity->context) : NULL;
  if (!tls->ssl) {
    BIO_free(bio);
    return -ENOMEM;
  }
  tls->flow.ssl = tls->ssl;
  SSL_set_bio(tls->ssl, bio, bio);
  SSL_set_app_data(tls->ssl, tls);
  SSL_set_verify(tls->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
  if (!args->expected) {
    SSL_set_accept_state(tls->ssl);
    SSL_set_options(tls->ssl, SSL_OP_NO_TICKET); /* tickets name what the context remembers */
    return 0;
  }
  SSL_set_connect_state(tls->ssl);
  SSL_SESSION *session = session_for(tls, args);
  if (session)
    (void)SSL_set_session(tls->ssl, session); /* not to be resumed: a full handshake then */
  if (offer_protocols(tls))
    return -ENOMEM;
  tls->expected = strdup(args->expected);
  return tls->expected ? 0 : -ENOMEM;
}

int na_tls_begin(na_stream *stream, const na_tls_args *args) {
  assert(stream->transport == &na_transport_tcp);
  na_tls *tls = calloc(1, sizeof *tls);
  if (!tls)
    return -ENOMEM;
  tls->stream = stream;
  na_tls_flow_init(&tls->flow, args->memory);
  tls->identity = na_identity_ref(args->identity);
  tls->use = args->use;
  tls->principals = args->principals;
  tls->budget = args->budget;
  tls->memo = args->memo;
  if (tls->memo)
    na_tls_memo_ref(tls->memo);
  int error = set_up(tls, args);
  if (!error)
    error = na_buffer_append(&tls->kept, args->early, args->early_n);
  if (error) {
    tls_free(tls);
    return error;
  }
  stream->state = tls;
  stream->transport = &na_transport_tls;
  return 0;
}

/* ---- the handshake ---- */

/* The peer's certificate, also of a resumed session, which no verification has seen. */
static int check_peer(na_tls *tls) {
  char why[sizeof tls->failure];
  X509 *certificate = SSL_get0_peer_certificate(tls->ssl);
  const unsigned char *protocol;
  unsigned int protocol_n;
  SSL_get0_alpn_selected(tls->ssl, &protocol, &protocol_n);
  if (tls->use == NA_TLS_TUNNEL && (protocol_n != 2 || memcmp(protocol, "h2", 2) != 0))
    snprintf(tls->failure, sizeof tls->failure, "TLS: the peer does not speak HTTP/2 (ALPN)");
  else if (!certificate)
    snprintf(tls->failure, sizeof tls->failure, "TLS: the peer has no certificate");
  else if (!na_tls_acceptable(certificate, tls->identity, tls->expected, why, sizeof why))
    snprintf(tls->failure, sizeof tls->failure, "%s", why);
  else if (!(tls->peer = na_tls_certificate_id(certificate, why, sizeof why)))
    snprintf(tls->failure, sizeof tls->failure, "%s", why);
  if (tls->failure[0])
    return -EPROTO;
  tls->peer_not_after = na_tls_not_after(certificate);
  if (tls->principals)
    tls->principal = na_principals_intern(tls->principals, tls->peer);
  tls->established = true;
  return 0;
}

static int step(na_tls *tls) {
  for (;;) {
    int done = SSL_do_handshake(tls->ssl);
    if (done == 1)
      return check_peer(tls);
    if (SSL_get_error(tls->ssl, done) != SSL_ERROR_WANT_READ)
      return failed(tls);
    if (!fill(tls))
      return tls->ended ? failed(tls) : -EINPROGRESS;
    tls->handshake_bytes += (uint32_t)tls->flow.in_n;
    if (tls->handshake_bytes > MAX_HANDSHAKE_BYTES + tls->flow.memory->in_size) {
      snprintf(tls->failure, sizeof tls->failure, "TLS: handshake too large");
      return -EPROTO;
    }
  }
}

int na_tls_handshake(na_stream *stream) {
  na_tls *tls = stream->state;
  tls->more_on_socket = stream->readable;
  enter(tls);
  int result = step(tls);
  int error = leave(tls); /* an alert on failure, too */
  return result == 0 && error ? error : result;
}

/* ---- the transport ---- */

/* The asymmetric cryptography takes most of a millisecond: a crowd of handshakes waits in turns. */
static bool may_go_on(na_stream *stream, uint32_t *budget) {
  if (!budget)
    return true;
  if (*budget == 0) {
    na_loop_tell(stream->loop, &stream->watch, EPOLLOUT);
    return false;
  }
  --*budget;
  return true;
}

static int tls_connected(na_stream *stream) {
  na_tls *tls = stream->state;
  if (tls->established)
    return 0;
  int error = stream->connecting && !tls->handshake_bytes ? na_transport_tcp.connected(stream) : 0;
  if (error)
    return error;
  return may_go_on(stream, tls->budget) ? na_tls_handshake(stream) : -EINPROGRESS;
}

/* Whether OpenSSL can tell more without more from the socket; else asking it would be for nothing. */
static bool is_at_hand(const na_tls *tls) {
  return tls->flow.in_n || SSL_has_pending(tls->ssl) || SSL_get_shutdown(tls->ssl) & SSL_RECEIVED_SHUTDOWN;
}

/* Read records into the buffer: what is at hand, then one batch from the socket. */
static ssize_t read_records(na_tls *tls, char *buffer, size_t size) {
  size_t total = 0;
  bool filled = false;
  while (total < size) {
    if (is_at_hand(tls)) {
      int room = size - total < INT32_MAX ? (int)(size - total) : INT32_MAX;
      int n = SSL_read(tls->ssl, buffer + total, room);
      if (n > 0) {
        total += (size_t)n;
        continue;
      }
      int why = SSL_get_error(tls->ssl, n);
      if (why == SSL_ERROR_ZERO_RETURN)
        return (ssize_t)total; /* close_notify: 0 is the end of data */
      if (why != SSL_ERROR_WANT_READ)
        return total ? (ssize_t)total : failed(tls);
    }
    if (filled)
      break;
    filled = fill(tls);
    if (!filled)
      break;
  }
  if (total == 0 && tls->ended)
    return failed(tls); /* cut off without close_notify */
  return total ? (ssize_t)total : -EAGAIN;
}

static ssize_t tls_recv(na_stream *stream, void *buffer, size_t size) {
  na_tls *tls = stream->state;
  tls->more_on_socket = tls->more_on_socket || stream->readable;
  enter(tls);
  ssize_t n = read_records(tls, buffer, size);
  int error = leave(tls);
  if ((n > 0 || n == -EAGAIN) && error)
    return error;
  if ((size_t)n == size) /* there may be more in OpenSSL, which SSL_pending() does not always know */
    stream->readable = true;
  return n;
}

static ssize_t tls_send(na_stream *stream, const struct iovec *iov, int n) {
  na_tls *tls = stream->state;
  size_t total = 0;
  int error = 0;
  bool readable = stream->readable;
  enter(tls);
  for (int i = 0; i < n && !error; i++) {
    const char *p = iov[i].iov_base;
    for (size_t left = iov[i].iov_len; left && !error;) {
      int written = SSL_write(tls->ssl, p, left < INT32_MAX ? (int)left : INT32_MAX);
      if (written <= 0) {
        error = failed(tls);
        break;
      }
      p += written;
      left -= (size_t)written;
      total += (size_t)written;
    }
  }
  int sent = leave(tls);
  stream->readable = stream->readable || readable;
  if (error || sent)
    return error ? error : sent;
  return (ssize_t)total;
}

/* close_notify, then the end of the TCP connection's data. */
static int tls_shutdown(na_stream *stream) {
  na_tls *tls = stream->state;
  bool readable = stream->readable;
  if (!(SSL_get_shutdown(tls->ssl) & SSL_SENT_SHUTDOWN)) {
    enter(tls);
    (void)SSL_shutdown(tls->ssl);
    int error = leave(tls);
    stream->readable = stream->readable || readable;
    if (error)
      return error;
  }
  if (na_stream_blocked(stream)) {
    stream->shut = false; /* called again when it was sent */
    return 0;
  }
  return shutdown(stream->watch.fd, SHUT_WR) < 0 ? -errno : 0;
}

static void tls_close(na_stream *stream, bool reset) {
  na_tls *tls = stream->state;
  bool orderly = !reset && tls->established && !stream->broken && !na_stream_blocked(stream);
  if (orderly && !(SSL_get_shutdown(tls->ssl) & SSL_SENT_SHUTDOWN)) {
    enter(tls);
    (void)SSL_shutdown(tls->ssl);
    (void)leave(tls); /* as far as the socket takes it */
  }
  tls_free(tls);
  stream->state = NULL;
}

static const char *tls_failure(const na_stream *stream) {
  const na_tls *tls = stream->state;
  return tls->failure[0] ? tls->failure : NULL;
}

const na_transport na_transport_tls = {
    .name = "tls",
    .connected = tls_connected,
    .recv = tls_recv,
    .send = tls_send,
    .shutdown = tls_shutdown,
    .close = tls_close,
    .failure = tls_failure,
};

const char *na_tls_peer(const na_stream *stream) {
  return ((const na_tls *)stream->state)->peer;
}

int64_t na_tls_peer_not_after(const na_stream *stream) {
  return ((const na_tls *)stream->state)->peer_not_after;
}

uint32_t na_tls_principal(const na_stream *stream) {
  return ((const na_tls *)stream->state)->principal;
}

const na_identity *na_tls_identity(const na_stream *stream) {
  return ((const na_tls *)stream->state)->identity;
}

bool na_tls_is_server(const na_stream *stream) {
  return !((const na_tls *)stream->state)->expected;
}

bool na_tls_resumed(const na_stream *stream) {
  return SSL_session_reused(((const na_tls *)stream->state)->ssl);
}

SSL_SESSION *na_tls_take_session(na_stream *stream) {
  na_tls *tls = stream->state;
  SSL_SESSION *session = tls->session;
  tls->session = NULL;
  return session;
}

void na_tls_session_free(SSL_SESSION *session) {
  SSL_SESSION_free(session);
}
