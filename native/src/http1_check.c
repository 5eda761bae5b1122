/* SPDX-License-Identifier: Apache-2.0
 *
 * The parser as a pure evaluator, for tests and for explaining refusals.
 */
#include <nodeagent/engine.h>

#include "http1.h"

/* The engine's defaults: see na_config. */
static const na_h1_limits default_limits = {.max_head_bytes = 61440, .max_headers = 100, .max_request_line = 8192};

static const char *const body_names[] = {[NA_BODY_NONE] = "none",
                                         [NA_BODY_LENGTH] = "length",
                                         [NA_BODY_CHUNKED] = "chunked",
                                         [NA_BODY_UNTIL_CLOSE] = "close"};

/* Write words with spaces between and a line end after. */
static void write_words(const na_str *words, size_t n, na_out *out) {
  for (size_t i = 0; i < n; i++) {
    na_out_str(out, words[i].n ? words[i] : (na_str){"-", 1});
    na_out_bytes(out, i + 1 < n ? " " : "\n", 1);
  }
}

static void write_head(const na_h1_head *head, na_out *out) {
  char digits[24];
  na_out length = {.p = digits, .size = sizeof digits};
  na_out_u64(&length, head->content_length);
  const na_str words[] = {
      head->request.method,
      head->request.path_query,
      head->request.authority,
      na_str_of(head->minor ? "1" : "0"),
      na_str_of(body_names[head->body]),
      {digits, (uint32_t)length.n},
      na_str_of(head->keep_alive ? "1" : "0"),
  };
  write_words(words, sizeof words / sizeof *words, out);
  for (uint32_t i = 0; i < head->nheaders; i++) {
    na_out_str(out, head->headers[i].name);
    na_out_cstr(out, ": ");
    na_out_str(out, head->headers[i].value);
    na_out_bytes(out, "\n", 1);
  }
}

int na_http1_check_request(const char *bytes, size_t n, char *why, size_t why_size) {
  na_h1_head head;
  na_h1_error error = {0, ""};
  uint32_t scanned = 0;
  int used = na_h1_parse_request(bytes, n, &scanned, &default_limits, &head, &error);
  if (why_size) {
    na_out out = {.p = why, .size = why_size - 1};
    if (used > 0)
      write_head(&head, &out);
    else if (used < 0)
      na_out_cstr(&out, error.reason);
    why[out.n] = 0;
  }
  return used < 0 ? -(int)error.status : used;
}
