/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS 1.3 for the programs of the benchmark, with one cipher suite, so that all proxies have the same: they speak to a
 * proxy with these, as its client or its back end, and a socket's calls become these. Errors are errno values.
 */
#ifndef NODEAGENT_BENCH_TLS_H
#define NODEAGENT_BENCH_TLS_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

struct ssl_st;
struct ssl_ctx_st;
struct ssl_session_st;
struct bio_st;

/* PREFIX.chain.pem, PREFIX.key.pem and PREFIX.roots.pem: who we are, and whom we trust. Both sides have certificates.
 * Ends the program if they cannot be used. */
struct ssl_ctx_st *tls_context(const char *prefix, bool server);
/* Speak TLS over whatever a BIO stands for, which is taken over. */
struct ssl_st *tls_over(struct ssl_ctx_st *context, struct bio_st *bio, bool server);
/* Speak TLS over a socket; `session` to be resumed, or NULL. */
struct ssl_st *tls_new(struct ssl_ctx_st *context, int fd, bool server, struct ssl_session_st *session);
/* 1: done; 0: go on when there is more; -1: failed, with the reason in tls_reason(). */
int tls_handshake(struct ssl_st *ssl);
/* As recv(2) and sendmsg(2); -1 with EAGAIN, or EPROTO and the reason in tls_reason(). */
ssize_t tls_recv(struct ssl_st *ssl, void *buffer, size_t size);
ssize_t tls_send(struct ssl_st *ssl, const struct iovec *parts, int n);
const char *tls_reason(void);
/* Client: the latest session that any connection was offered, or NULL; it stays ours. */
struct ssl_session_st *tls_session(void);

#endif
