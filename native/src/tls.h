/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS 1.3 as a transport of na_stream: the one place, with identity.c and tls_verify.c, that knows OpenSSL.
 *
 * Records are read and written in batches: one recv(2) into memory that a worker's connections share, from which
 * OpenSSL takes all records; and all records that a call produced go out in one send(2). A connection at rest owns no
 * buffers but OpenSSL's, which are released between records (SSL_MODE_RELEASE_BUFFERS).
 */
#ifndef NODEAGENT_TLS_H
#define NODEAGENT_TLS_H

#include "identity.h"
#include "stream.h"

struct ssl_session_st;
struct x509_st;

extern const na_transport na_transport_tls;

/* Ciphertext that passes through during one call; one per worker. */
typedef struct na_tls_memory {
  char *in;
  size_t in_size;
  char *out; /* grows to what one call produces, and stays */
  size_t out_n;
  size_t out_size;
} na_tls_memory;

/* Prepare an identity's context for these streams. */
void na_tls_prepare(struct ssl_ctx_st *context);

int na_tls_memory_init(na_tls_memory *memory);
void na_tls_memory_free(na_tls_memory *memory);

/* How to begin. */
typedef struct na_tls_args {
  na_tls_memory *memory;
  na_identity *identity;          /* a reference is taken */
  const char *expected;           /* client: SPIFFE IDs of which the server must have one, separated by spaces; copied.
                                   * NULL: server; the client must be of a trusted domain. */
  struct ssl_session_st *session; /* client: to resume, or NULL */
} na_tls_args;

/* Make an open (or connecting) TCP stream a TLS stream. The handshake is the caller's: na_tls_handshake(). -errno: the
 * stream is TCP still. */
int na_tls_begin(na_stream *stream, const na_tls_args *args);
/* Go on with the handshake, on any event after na_stream_events(). 0 when it is done and the peer is who it must be,
 * -EINPROGRESS, or -errno with the reason in na_stream_failure(). */
int na_tls_handshake(na_stream *stream);

/* After the handshake: the peer's SPIFFE ID, and when its certificate runs out (seconds since the epoch). */
const char *na_tls_peer(const na_stream *stream);
int64_t na_tls_peer_not_after(const na_stream *stream);
bool na_tls_resumed(const na_stream *stream);
/* Client: the latest session that the server offered for resumption; the caller's reference, or NULL. */
struct ssl_session_st *na_tls_take_session(na_stream *stream);
void na_tls_session_free(struct ssl_session_st *session);

/* tls_verify.c: the one SPIFFE ID of a certificate, as a new string; NULL with the reason in `why`. */
char *na_tls_certificate_id(struct x509_st *certificate, char *why, size_t why_size);
/* Whether a certificate (of a chain that was verified) is of a peer that may be talked to; as na_tls_args.expected. */
bool na_tls_acceptable(struct x509_st *certificate, const na_identity *identity, const char *expected, char *why,
                       size_t why_size);
/* What a failed verification means, for people. */
void na_tls_explain(long verify_error, struct x509_st *certificate, char *why, size_t why_size);
/* notAfter, seconds since the epoch. */
int64_t na_tls_not_after(const struct x509_st *certificate);

#endif
