/* SPDX-License-Identifier: Apache-2.0
 *
 * What TLS clients offer. A verdict on a part of the bytes must hold for all of them.
 */
#include <stdint.h>
#include <stdlib.h>

#include "tls_hello.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  const char *bytes = (const char *)data;
  enum na_tls_hello whole = na_tls_hello(bytes, n);
  for (size_t part = 0; part < n; part += 1 + part / 8) {
    enum na_tls_hello verdict = na_tls_hello(bytes, part);
    CHECK(verdict == NA_HELLO_MORE || verdict == whole);
  }
  return 0;
}
