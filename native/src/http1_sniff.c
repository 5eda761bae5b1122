/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling HTTP/1 from other protocols by a connection's first bytes.
 */
#include <string.h>

#include "http1_parse.h"

/* A request line that has not ended after so many bytes is decided on by its beginning. */
#define MAX_UNDECIDED 1024

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* Methods that, with a target's first byte, leave little doubt; others must show their version. */
static const char *const usual_methods[] = {"GET",     "HEAD",  "POST",  "PUT",    "DELETE",
                                            "OPTIONS", "PATCH", "TRACE", "CONNECT"};

static bool is_usual(na_str method) {
  for (size_t i = 0; i < sizeof usual_methods / sizeof *usual_methods; i++)
    if (na_str_eq(method, usual_methods[i]))
      return true;
  return false;
}

/* The line without its line end, complete: does it end in " HTTP/1.x"? */
static bool has_version(na_str line) {
  if (line.n && line.p[line.n - 1] == '\r')
    line.n--;
  return line.n > 9 && memcmp(line.p + line.n - 9, " HTTP/", 6) == 0 && line.p[line.n - 2] == '.';
}

static int sniff_line(const char *p, size_t n) {
  size_t method = na_h1_span(p, n, NA_C_TOKEN);
  if (method == n)
    return n > 32 ? -1 : 0;
  if (!method || p[method] != ' ')
    return -1;
  const char *lf = memchr(p, '\n', n);
  if (lf)
    return has_version((na_str){p, (uint32_t)(lf - p)}) ? 1 : -1;
  if (method + 1 == n)
    return 0;
  char target = p[method + 1];
  if (!na_h1_is(target, NA_C_TARGET))
    return -1;
  bool usual = is_usual((na_str){p, (uint32_t)method});
  if (usual && (target == '/' || n > MAX_UNDECIDED))
    return 1;
  return n > MAX_UNDECIDED ? -1 : 0;
}

int na_h1_sniff(const char *buf, size_t n) {
  if (!n)
    return 0;
  if (buf[0] == 0x16) { /* RFC 8446 5.1: handshake, then a version of 3.x */
    if (n > 1 && buf[1] != 3)
      return -1;
    return n > 2 ? ((uint8_t)buf[2] <= 4 ? -2 : -1) : 0;
  }
  size_t known = n < sizeof preface - 1 ? n : sizeof preface - 1;
  if (memcmp(buf, preface, known < 16 ? known : 16) == 0)
    return known < 16 ? 0 : 2;
  size_t start = 0;
  while (start < 4 && start < n && buf[start] == (start % 2 ? '\n' : '\r'))
    start++;
  return start == n ? 0 : start % 2 ? -1 : sniff_line(buf + start, n - start);
}
