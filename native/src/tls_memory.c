/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_memory.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Ciphertext read at once: four full records. */
#define READ_BYTES (4 * (SSL3_RT_MAX_PLAIN_LENGTH + SSL3_RT_MAX_TLS13_ENCRYPTED_OVERHEAD + SSL3_RT_HEADER_LENGTH))

int na_tls_memory_init(na_tls_memory *memory) {
  *memory = (na_tls_memory){.in_size = READ_BYTES, .out_size = READ_BYTES};
  na_link_init(&memory->warm);
  memory->in = malloc(memory->in_size); /* pages come with use */
  memory->out = malloc(memory->out_size);
  return memory->in && memory->out ? 0 : -ENOMEM;
}

void na_tls_memory_free(na_tls_memory *memory) {
  free(memory->in);
  free(memory->out);
  *memory = (na_tls_memory){0};
}

/* ---- between OpenSSL and the batches ---- */

static int bio_read(BIO *bio, char *out, int size) {
  na_tls_flow *flow = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  if (flow->in_n == 0) {
    BIO_set_retry_read(bio);
    return -1;
  }
  size_t n = flow->in_n < (size_t)size ? flow->in_n : (size_t)size;
  memcpy(out, flow->in, n);
  flow->in += n;
  flow->in_n -= n;
  return (int)n;
}

static int bio_write(BIO *bio, const char *bytes, int n) {
  na_tls_memory *memory = ((na_tls_flow *)BIO_get_data(bio))->memory;
  if (memory->out_size - memory->out_n < (size_t)n) {
    size_t size = memory->out_size * 2 + (size_t)n;
    char *out = realloc(memory->out, size);
    if (!out)
      return -1;
    memory->out = out;
    memory->out_size = size;
  }
  memcpy(memory->out + memory->out_n, bytes, (size_t)n);
  memory->out_n += (size_t)n;
  return n;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
  return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;

static void make_bio_method(void) {
  bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "nodeagent");
  if (bio_method) {
    BIO_meth_set_read(bio_method, bio_read);
    BIO_meth_set_write(bio_method, bio_write);
    BIO_meth_set_ctrl(bio_method, bio_ctrl);
  }
}

BIO *na_tls_flow_bio(na_tls_flow *flow) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_bio_method);
  BIO *bio = bio_method ? BIO_new(bio_method) : NULL;
  if (bio) {
    BIO_set_data(bio, flow);
    BIO_set_init(bio, 1);
  }
  return bio;
}

/* ---- OpenSSL's buffers ---- */

void na_tls_flow_init(na_tls_flow *flow, na_tls_memory *memory) {
  *flow = (na_tls_flow){.memory = memory};
  na_link_init(&flow->warm);
}

static void forget(na_tls_flow *flow) {
  na_link_remove(&flow->warm);
  flow->memory->warm_n--;
}

void na_tls_flow_end(na_tls_flow *flow) {
  if (na_link_in_list(&flow->warm))
    forget(flow);
}

void na_tls_flow_warm(na_tls_flow *flow) {
  na_tls_memory *memory = flow->memory;
  if (memory->warm.next == &flow->warm)
    return;
  na_tls_flow_end(flow);
  na_list_push_front(&memory->warm, &flow->warm);
  if (++memory->warm_n <= NA_TLS_MAX_WARM)
    return;
  na_tls_flow *oldest = na_container_of(memory->warm.prev, na_tls_flow, warm);
  forget(oldest);
  (void)SSL_free_buffers(oldest->ssl); /* not those with half a record, whose other half is on its way */
}
