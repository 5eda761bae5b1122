/* SPDX-License-Identifier: Apache-2.0
 *
 * ClientHellos as OpenSSL makes them, and broken ones.
 */
#include "tls_hello.h"

#include <openssl/ssl.h>
#include <string.h>

#include "cmocka_common.h"

typedef struct hello {
  char bytes[4096];
  size_t n;
} hello;

/* The first flight of a client that offers these protocols (wire format of ALPN); none: no such extension. */
static hello make(const char *alpn, size_t alpn_n) {
  hello out = {.n = 0};
  SSL_CTX *context = SSL_CTX_new(TLS_client_method());
  SSL *ssl = SSL_new(context);
  SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  assert_int_equal(SSL_set_tlsext_host_name(ssl, "outbound_.80_._.web.shop.svc.cluster.local"), 1);
  if (alpn_n)
    assert_int_equal(SSL_set_alpn_protos(ssl, (const unsigned char *)alpn, (unsigned)alpn_n), 0);
  assert_int_equal(SSL_connect(ssl), -1);
  out.n = (size_t)BIO_read(SSL_get_wbio(ssl), out.bytes, sizeof out.bytes);
  SSL_free(ssl);
  SSL_CTX_free(context);
  return out;
}

#define MAKE(alpn) make(alpn, sizeof(alpn) - 1)

static void tells_proxies_by_what_they_offer(void **state) {
  hello http = MAKE("\x0eistio-http/1.1\x05istio\x08http/1.1"), tcp = MAKE("\x05istio");
  hello late = MAKE("\x02h2\x08http/1.1\x13istio-peer-exchange");
  hello web = MAKE("\x02h2\x08http/1.1"), near = MAKE("\x04isti\x06xistio"), none = MAKE("");
  assert_int_equal(na_tls_hello(http.bytes, http.n), NA_HELLO_MESH);
  assert_int_equal(na_tls_hello(tcp.bytes, tcp.n), NA_HELLO_MESH);
  assert_int_equal(na_tls_hello(late.bytes, late.n), NA_HELLO_MESH);
  assert_int_equal(na_tls_hello(web.bytes, web.n), NA_HELLO_OTHER);
  assert_int_equal(na_tls_hello(near.bytes, near.n), NA_HELLO_OTHER);
  assert_int_equal(na_tls_hello(none.bytes, none.n), NA_HELLO_OTHER);
}

static void waits_for_all_of_it(void **state) {
  hello h = MAKE("\x05istio");
  for (size_t n = 0; n < h.n; n++)
    assert_int_equal(na_tls_hello(h.bytes, n), NA_HELLO_MORE);
  memcpy(h.bytes + h.n, "behind", 6);
  assert_int_equal(na_tls_hello(h.bytes, h.n + 6), NA_HELLO_MESH);
}

static void leaves_alone_what_is_no_hello(void **state) {
  assert_int_equal(na_tls_hello("GET / HTTP/1.1\r\n", 16), NA_HELLO_NONE);
  assert_int_equal(na_tls_hello("\x16\x02", 2), NA_HELLO_NONE);
  assert_int_equal(na_tls_hello("\x15\x03\x03\x00\x02", 5), NA_HELLO_NONE);      /* an alert */
  assert_int_equal(na_tls_hello("\x16\x03\x01\x00\x00", 5), NA_HELLO_NONE);      /* empty */
  assert_int_equal(na_tls_hello("\x16\x03\x01\x40\x01", 5), NA_HELLO_NONE);      /* beyond a record */
  assert_int_equal(na_tls_hello("\x16\x03\x01\x00\x05\x02", 6), NA_HELLO_NONE);  /* a ServerHello */
  assert_int_equal(na_tls_hello("\x16\x03\x01\x00\x01\x01", 6), NA_HELLO_OTHER); /* goes on in another record */
  assert_int_equal(na_tls_hello("\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9), NA_HELLO_NONE);
}

/* Whatever byte is broken, nothing is read beyond the end (ASan), and what is cut off inside never counts. */
static void survives_broken_lengths(void **state) {
  hello good = MAKE("\x05istio");
  for (size_t i = 0; i < good.n; i++)
    for (int bit = 0; bit < 8; bit++) {
      char *copy = test_malloc(good.n);
      memcpy(copy, good.bytes, good.n);
      copy[i] ^= (char)(1 << bit);
      (void)na_tls_hello(copy, good.n);
      test_free(copy);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tells_proxies_by_what_they_offer),
      cmocka_unit_test(waits_for_all_of_it),
      cmocka_unit_test(leaves_alone_what_is_no_hello),
      cmocka_unit_test(survives_broken_lengths),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
