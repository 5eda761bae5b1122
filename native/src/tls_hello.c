/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_hello.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define RECORD_HEAD        5
#define MAX_RECORD         16384 /* RFC 8446 5.1 */
#define CONTENT_HANDSHAKE  22
#define CLIENT_HELLO       1
#define VERSION_AND_RANDOM 34
#define EXTENSION_ALPN     16 /* RFC 7301 */

/* What is left to read. */
typedef struct span {
  const uint8_t *p;
  size_t n;
} span;

/* Take a number of `size` bytes; false when there are not so many. */
static bool take_number(span *in, size_t size, size_t *out) {
  if (in->n < size)
    return false;
  *out = 0;
  for (size_t i = 0; i < size; i++)
    *out = *out << 8 | in->p[i];
  in->p += size;
  in->n -= size;
  return true;
}

static bool take_bytes(span *in, size_t n, span *out) {
  if (in->n < n)
    return false;
  *out = (span){in->p, n};
  in->p += n;
  in->n -= n;
  return true;
}

/* Take a vector behind its length, which has `size` bytes. */
static bool take_vector(span *in, size_t size, span *out) {
  size_t n;
  return take_number(in, size, &n) && take_bytes(in, n, out);
}

/* The extensions of a ClientHello; false when it is malformed. None is an empty span. */
static bool find_extensions(span hello, span *out) {
  span skipped;
  if (!take_bytes(&hello, VERSION_AND_RANDOM, &skipped) || !take_vector(&hello, 1, &skipped) || /* session id */
      !take_vector(&hello, 2, &skipped) || !take_vector(&hello, 1, &skipped)) /* cipher suites, compression */
    return false;
  *out = (span){hello.p, 0};
  return hello.n == 0 || take_vector(&hello, 2, out);
}

static bool names_mesh(span alpn) {
  span list, name;
  if (!take_vector(&alpn, 2, &list))
    return false;
  while (take_vector(&list, 1, &name))
    if (name.n >= 5 && memcmp(name.p, "istio", 5) == 0)
      return true;
  return false;
}

static enum na_tls_hello judge(span hello) {
  span extensions, extension;
  size_t type;
  if (!find_extensions(hello, &extensions))
    return NA_HELLO_NONE;
  while (take_number(&extensions, 2, &type) && take_vector(&extensions, 2, &extension))
    if (type == EXTENSION_ALPN)
      return names_mesh(extension) ? NA_HELLO_MESH : NA_HELLO_OTHER;
  return NA_HELLO_OTHER;
}

enum na_tls_hello na_tls_hello(const char *bytes, size_t n) {
  const uint8_t *p = (const uint8_t *)bytes;
  if (n && (p[0] != CONTENT_HANDSHAKE || (n > 1 && p[1] != 3)))
    return NA_HELLO_NONE;
  if (n < RECORD_HEAD)
    return NA_HELLO_MORE;
  span record, rest = {p + 3, n - 3};
  size_t length = (size_t)p[3] << 8 | p[4], type;
  if (length == 0 || length > MAX_RECORD || (n > RECORD_HEAD && p[5] != CLIENT_HELLO))
    return NA_HELLO_NONE;
  if (!take_vector(&rest, 2, &record))
    return NA_HELLO_MORE;
  span hello;
  if (!take_number(&record, 1, &type))
    return NA_HELLO_NONE;
  return take_vector(&record, 3, &hello) ? judge(hello) : NA_HELLO_OTHER;
}
