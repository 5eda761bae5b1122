/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS of the floor, the least that it can cost with OpenSSL: one recv for all records that are there, one send for all
 * that are made, through memory that the connections share.
 */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "floor.h"
#include "net.h"
#include "tls.h"

/* Records for a whole queue, which waits for a handshake. */
#define SEALED_BYTES (2 * (FLOOR_QUEUE_BYTES + FLOOR_IO_BYTES))

/* Ciphertext of the call in progress: what came and was not taken yet, and what is to be sent. */
static char arrived[FLOOR_IO_BYTES];
static const char *rest;
static size_t nrest;
static char sealed[SEALED_BYTES];
static size_t nsealed;

static int bio_read(BIO *bio, char *out, int size) {
  BIO_clear_retry_flags(bio);
  if (!nrest) {
    BIO_set_retry_read(bio);
    return -1;
  }
  size_t n = nrest < (size_t)size ? nrest : (size_t)size;
  memcpy(out, rest, n);
  rest += n;
  nrest -= n;
  return (int)n;
}

static int bio_write(BIO *bio, const char *bytes, int n) {
  (void)bio;
  if ((size_t)n > sizeof sealed - nsealed)
    return -1;
  memcpy(sealed + nsealed, bytes, (size_t)n);
  nsealed += (size_t)n;
  return n;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
  (void)bio;
  (void)number;
  (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

static BIO *new_bio(void) {
  static BIO_METHOD *method;
  if (!method) {
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "floor");
    if (!method || !BIO_meth_set_read(method, bio_read) || !BIO_meth_set_write(method, bio_write) ||
        !BIO_meth_set_ctrl(method, bio_ctrl))
      die("out of memory");
  }
  BIO *bio = BIO_new(method);
  if (!bio)
    die("out of memory");
  BIO_set_init(bio, 1);
  return bio;
}

void floor_tls_open(floor_side *side, struct ssl_ctx_st *context) {
  BIO *bio = new_bio();
  side->ssl = tls_over(context, bio, side->client);
  side->shaking = true;
}

/* Send what was made; -1: broken. */
static int send_sealed(floor_side *side) {
  size_t n = nsealed;
  nsealed = 0;
  return n ? floor_send_raw(side, sealed, n) : 0;
}

/* What waited for the end of the handshake. */
static int send_waiting(floor_side *side) {
  char *queue = side->queue;
  size_t n = side->queued;
  side->queue = NULL;
  side->queued = 0;
  int result = n ? floor_send(side, queue, n) : 0;
  free(queue);
  return result;
}

int floor_tls_shake(floor_side *side) {
  int done = tls_handshake(side->ssl);
  if (done < 0 || send_sealed(side) < 0)
    return -1;
  side->shaking = done != 1;
  return done == 1 ? send_waiting(side) : 0;
}

ssize_t floor_tls_receive(floor_side *side) {
  ssize_t n = recv(side->fd, arrived, sizeof arrived, 0);
  if (n <= 0)
    return n;
  rest = arrived;
  nrest = (size_t)n;
  if (side->shaking && floor_tls_shake(side) < 0)
    return 0;
  size_t total = 0;
  if (!side->shaking) {
    while ((n = tls_recv(side->ssl, floor_io + total, sizeof floor_io - total)) > 0)
      total += (size_t)n;
    if (send_sealed(side) < 0 || (n < 0 && errno != EAGAIN))
      return 0;
  }
  errno = EAGAIN;
  return total ? (ssize_t)total : -1;
}

int floor_tls_send(floor_side *side, const char *bytes, size_t n) {
  for (size_t done = 0, more; done < n; done += more)
    if (!SSL_write_ex(side->ssl, bytes + done, n - done, &more)) {
      ERR_clear_error();
      return -1;
    }
  return send_sealed(side);
}

void floor_tls_close(floor_side *side) {
  if (!side->shaking && !side->queued && SSL_shutdown(side->ssl) >= 0)
    (void)send_sealed(side);
  nsealed = 0;
  SSL_free(side->ssl);
  side->ssl = NULL;
}
