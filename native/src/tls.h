/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS 1.3 as a transport of na_stream: the one place, with identity.c and tls_verify.c, that knows OpenSSL.
 *
 * Records are read and written in batches: one recv(2) into memory that a worker's connections share, from which
 * OpenSSL takes all records; and all records that a call produced go out in one send(2). A connection at rest owns no
 * buffers, but the latest used ones OpenSSL's (tls_memory.h).
 */
#ifndef NODEAGENT_TLS_H
#define NODEAGENT_TLS_H

#include "identity.h"
#include "stream.h"
#include "tls_memory.h"

struct ssl_session_st;
struct x509_st;
struct na_principals;

extern const na_transport na_transport_tls;

/* Sessions that an identity's context remembers, to be resumed by clients; the oldest is forgotten. They are not put
 * into tickets: OpenSSL would take the peer's certificate apart for each ticket that it makes or gets, which costs more
 * than the cryptography that is spared. */
#define NA_TLS_MAX_SESSIONS 1024

/* Prepare an identity's context for these streams. */
void na_tls_prepare(struct ssl_ctx_st *context);

/* What is spoken over it. */
enum na_tls_use {
  NA_TLS_TUNNEL,    /* HTTP/2 and nothing else */
  NA_TLS_MESH_HTTP, /* Istio's mTLS between proxies: HTTP/1 */
  NA_TLS_MESH_TCP,  /* anything else */
};

/* The latest session that one server offered, to be resumed by other connections to it. */
typedef struct na_tls_memo {
  uint32_t refs;
  struct ssl_session_st *session;
  na_identity *identity; /* that it was made with: the server will take us for that */
} na_tls_memo;

void na_tls_memo_ref(void *memo);
void na_tls_memo_unref(void *memo);

/* How to begin. */
typedef struct na_tls_args {
  na_tls_memory *memory;
  na_identity *identity;          /* a reference is taken */
  const char *expected;           /* client: SPIFFE IDs of which the server must have one, separated by spaces; copied.
                                   * NULL: server; the client must be of a trusted domain. */
  struct ssl_session_st *session; /* client: to resume, or NULL */
  enum na_tls_use use;
  const char *early; /* ciphertext that was read already */
  size_t early_n;
  struct na_principals *principals; /* where the peer's ID is put down; NULL: nowhere */
  na_tls_memo *memo;                /* client: resume its session, and keep new ones there; NULL: as `session` says */
  uint32_t *budget; /* steps of handshakes that are left in this turn, for connected(); NULL: the owner sees to it */
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
/* The number of that ID, of na_tls_args.principals. */
uint32_t na_tls_principal(const na_stream *stream);
/* Our own identity in it, and whether we are the server. */
const na_identity *na_tls_identity(const na_stream *stream);
bool na_tls_is_server(const na_stream *stream);
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
