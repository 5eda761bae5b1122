/* SPDX-License-Identifier: Apache-2.0
 *
 * Parsing and writing of HTTP/1 heads, chunked framing.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "http1.h"
#include "router.h"

static const na_h1_limits limits = {.max_head_bytes = 61440, .max_headers = 100, .max_request_line = 8192};

/* What a browser behind one proxy sends: 12 headers. */
static const char typical[] = "GET /productpage?u=normal HTTP/1.1\r\n"
                              "Host: productpage.default.svc.cluster.local:9080\r\n"
                              "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0\r\n"
                              "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n"
                              "Accept-Language: en-US,en;q=0.5\r\n"
                              "Accept-Encoding: gzip, deflate\r\n"
                              "Connection: keep-alive\r\n"
                              "Cookie: session=eyJ1c2VyIjoiamFzb24ifQ\r\n"
                              "X-Request-Id: 8f9a5f0c-93f5-4e5c-a8f4-6b6a5d9f2f10\r\n"
                              "X-Forwarded-Proto: http\r\n\r\n";
static const char small[] = "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";
static const char response[] =
    "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Tue, 24 Nov 2026 07:00:00 GMT\r\n"
    "Connection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 375\r\n\r\n";

static na_h1_head head;
static char chunks[1 << 16];
static size_t chunks_n;

static void parse(const char *bytes, size_t n) {
  uint32_t scanned = 0;
  na_h1_error error;
  if (na_h1_parse_request(bytes, n, &scanned, &limits, &head, &error) <= 0)
    abort();
  bench_keep(&head);
}

static void parse_typical(uint32_t i) {
  (void)i;
  parse(typical, sizeof typical - 1);
}

static void parse_small(uint32_t i) {
  (void)i;
  parse(small, sizeof small - 1);
}

static void parse_response(uint32_t i) {
  uint32_t scanned = 0;
  na_h1_error error;
  (void)i;
  if (na_h1_parse_response(response, sizeof response - 1, &scanned, &limits, false, false, &head, &error) <= 0)
    abort();
  bench_keep(&head);
}

static void write_typical(uint32_t i) {
  char buf[2048];
  na_out out = {.p = buf, .size = sizeof buf};
  (void)i;
  na_write_headers(head.headers, head.nheaders, NULL, NULL, head.request.authority, &out);
  bench_keep(buf);
}

static void feed_chunks(uint32_t i) {
  na_h1_chunked c;
  na_h1_error error;
  bool done;
  (void)i;
  na_h1_chunked_init(&c);
  if (na_h1_chunked_feed(&c, chunks, chunks_n, &done, &error) < 0)
    abort();
  bench_keep(&c);
}

int main(void) {
  while (chunks_n + 600 < sizeof chunks) {
    chunks_n += (size_t)sprintf(chunks + chunks_n, "200\r\n");
    memset(chunks + chunks_n, 'x', 512);
    memcpy(chunks + chunks_n + 512, "\r\n", 2);
    chunks_n += 514;
  }
  bench("parse request, 66 bytes, 3 headers", 200000, parse_small);
  bench("parse request, 465 bytes, 9 headers", 200000, parse_typical);
  bench("write its headers", 200000, write_typical);
  bench("parse response, 149 bytes, 5 headers", 200000, parse_response);
  bench("chunked framing, 64 KiB in chunks of 512", 2000, feed_chunks);
  printf("typical %zu, small %zu, response %zu bytes\n", sizeof typical - 1, sizeof small - 1, sizeof response - 1);
  return 0;
}
