/* SPDX-License-Identifier: Apache-2.0
 *
 * What TLS streams of a worker share, with OpenSSL's allocations counted.
 */
#include "tls_memory.h"

#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"

#define BUFFER_BYTES (16 * 1024) /* at least, of each of the two of a stream */

static long big; /* allocations of at least that size */
static SSL_CTX *context;

static void *counted_malloc(size_t n, const char *file, int line) {
  size_t *p = malloc(n + 2 * sizeof *p);
  if (!p)
    return NULL;
  *p = n;
  big += n >= BUFFER_BYTES;
  return p + 2;
}

static void counted_free(void *block, const char *file, int line) {
  if (!block)
    return;
  size_t *p = (size_t *)block - 2;
  big -= *p >= BUFFER_BYTES;
  free(p);
}

static void *counted_realloc(void *block, size_t n, const char *file, int line) {
  void *copy = counted_malloc(n, file, line);
  if (copy && block) {
    size_t before = *((size_t *)block - 2);
    memcpy(copy, block, before < n ? before : n);
    counted_free(block, file, line);
  }
  return copy;
}

static void open_flow(na_tls_flow *flow, na_tls_memory *memory) {
  na_tls_flow_init(flow, memory);
  flow->ssl = SSL_new(context);
  assert_non_null(flow->ssl);
}

/* A call that needs buffers. */
static void use(na_tls_flow *flow) {
  assert_int_equal(SSL_alloc_buffers(flow->ssl), 1);
  na_tls_flow_warm(flow);
}

static void close_flow(na_tls_flow *flow) {
  na_tls_flow_end(flow);
  SSL_free(flow->ssl);
}

static void test_latest_used_streams_keep_buffers(void **state) {
  enum { N = NA_TLS_MAX_WARM + 10 };
  static na_tls_flow flows[N];
  na_tls_memory memory;
  assert_int_equal(na_tls_memory_init(&memory), 0);
  for (int i = 0; i < N; i++) {
    open_flow(&flows[i], &memory);
    use(&flows[i]);
    use(&flows[0]); /* is never the longest unused one */
  }
  assert_int_equal(memory.warm_n, NA_TLS_MAX_WARM);
  assert_int_equal(big, 2 * NA_TLS_MAX_WARM);
  assert_true(na_link_in_list(&flows[0].warm));
  assert_false(na_link_in_list(&flows[1].warm));
  use(&flows[1]); /* and has them again */
  assert_true(na_link_in_list(&flows[1].warm));
  assert_int_equal(big, 2 * NA_TLS_MAX_WARM);
  for (int i = 0; i < N; i++)
    close_flow(&flows[i]);
  assert_int_equal(memory.warm_n, 0);
  assert_int_equal(big, 0);
  na_tls_memory_free(&memory);
}

static void test_ciphertext_passes_through(void **state) {
  na_tls_flow flow;
  na_tls_memory memory;
  char out[8], *record = malloc(100 * 1024);
  assert_int_equal(na_tls_memory_init(&memory), 0);
  na_tls_flow_init(&flow, &memory);
  BIO *bio = na_tls_flow_bio(&flow);
  assert_int_equal(BIO_read(bio, out, sizeof out), -1);
  assert_true(BIO_should_retry(bio));
  flow.in = "abcdefghij";
  flow.in_n = 10;
  assert_int_equal(BIO_read(bio, out, sizeof out), 8);
  assert_memory_equal(out, "abcdefgh", 8);
  assert_int_equal(BIO_read(bio, out, sizeof out), 2);
  assert_int_equal(flow.in_n, 0);
  memset(record, 'x', 100 * 1024); /* more than there is room for at first */
  assert_int_equal(BIO_write(bio, "a", 1), 1);
  assert_int_equal(BIO_write(bio, record, 100 * 1024), 100 * 1024);
  assert_int_equal(memory.out_n, 100 * 1024 + 1);
  assert_memory_equal(memory.out + 1, record, 100 * 1024);
  BIO_free(bio);
  free(record);
  na_tls_memory_free(&memory);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_latest_used_streams_keep_buffers),
      cmocka_unit_test(test_ciphertext_passes_through),
  };
  if (!CRYPTO_set_mem_functions(counted_malloc, counted_realloc, counted_free))
    return 1;
  context = SSL_CTX_new(TLS_method());
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  SSL_CTX_free(context);
  return failed;
}
