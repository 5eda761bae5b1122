/* SPDX-License-Identifier: Apache-2.0
 *
 * Chunked framing (RFC 9112 7.1), validated byte by byte where it is framing and skipped where it is data. It is
 * stricter than the RFC in one place: no white space before or in chunk extensions, where proxies have read different
 * things.
 */
#include <string.h>

#include "http1_parse.h"

/* A size line with its extensions, and the trailer section. */
#define MAX_SIZE_LINE 512
#define MAX_TRAILERS  8192

enum state {
  SIZE_FIRST,
  SIZE,
  EXT_NAME_FIRST,
  EXT_NAME,
  EXT_VALUE_FIRST,
  EXT_VALUE,
  EXT_QUOTED,
  EXT_ESCAPED,
  EXT_QUOTED_END,
  SIZE_LF,
  DATA,
  DATA_CR,
  DATA_LF,
  TRAILER_FIRST,
  TRAILER_NAME,
  TRAILER_VALUE,
  TRAILER_LF,
  END_LF,
  DONE,
};

/* Fields that decide framing, routing, identity or the meaning of the content: RFC 9110 6.5.1. */
static const char *const forbidden_trailers[] = {
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "range",
    "set-cookie",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
};
#define N_FORBIDDEN (sizeof forbidden_trailers / sizeof *forbidden_trailers)
_Static_assert(N_FORBIDDEN < 32, "candidates is a set of 32 bits");

void na_h1_chunked_init(na_h1_chunked *c) {
  memset(c, 0, sizeof *c);
  c->state = SIZE_FIRST;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  char lower = na_lower(c);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

static bool feed_size(na_h1_chunked *c, char byte, na_h1_error *error) {
  int digit = hex_digit(byte);
  if (digit >= 0) {
    if (c->left > (uint64_t)INT64_MAX >> 4)
      return na_h1_refuse(error, 400, "chunk size too large");
    c->left = c->left << 4 | (unsigned)digit;
    c->state = SIZE;
    return true;
  }
  if (c->state == SIZE_FIRST)
    return na_h1_refuse(error, 400, "invalid chunk size");
  if (byte == ';')
    c->state = EXT_NAME_FIRST;
  else if (byte == '\r')
    c->state = SIZE_LF;
  else
    return na_h1_refuse(error, 400, "invalid byte after a chunk size");
  return true;
}

/* What may follow a whole extension or an extension's name. */
static bool end_extension(na_h1_chunked *c, char byte, na_h1_error *error) {
  if (byte == ';')
    c->state = EXT_NAME_FIRST;
  else if (byte == '\r')
    c->state = SIZE_LF;
  else
    return na_h1_refuse(error, 400, "invalid chunk extension");
  return true;
}

static bool feed_extension(na_h1_chunked *c, char byte, na_h1_error *error) {
  switch ((enum state)c->state) {
  case EXT_NAME_FIRST:
  case EXT_VALUE_FIRST:
    if (byte == '"' && c->state == EXT_VALUE_FIRST)
      c->state = EXT_QUOTED;
    else if (na_h1_is(byte, NA_C_TOKEN))
      c->state = c->state == EXT_NAME_FIRST ? EXT_NAME : EXT_VALUE;
    else
      return na_h1_refuse(error, 400, "invalid chunk extension");
    return true;
  case EXT_NAME:
  case EXT_VALUE:
    if (na_h1_is(byte, NA_C_TOKEN))
      return true;
    if (byte == '=' && c->state == EXT_NAME) {
      c->state = EXT_VALUE_FIRST;
      return true;
    }
    return end_extension(c, byte, error);
  case EXT_QUOTED:
    if (!na_h1_is(byte, NA_C_VALUE))
      return na_h1_refuse(error, 400, "control character in a chunk extension");
    c->state = byte == '"' ? EXT_QUOTED_END : byte == '\\' ? EXT_ESCAPED : EXT_QUOTED;
    return true;
  case EXT_ESCAPED:
    c->state = EXT_QUOTED;
    return na_h1_is(byte, NA_C_VALUE) || na_h1_refuse(error, 400, "control character in a chunk extension");
  default:
    return end_extension(c, byte, error);
  }
}

static bool feed_size_line(na_h1_chunked *c, char byte, na_h1_error *error) {
  if (++c->line_bytes > MAX_SIZE_LINE)
    return na_h1_refuse(error, 400, "chunk size line too long");
  if (c->state <= SIZE)
    return feed_size(c, byte, error);
  if (c->state != SIZE_LF)
    return feed_extension(c, byte, error);
  if (byte != '\n')
    return na_h1_refuse(error, 400, "bare CR in a chunk size line");
  c->line_bytes = 0;
  c->state = c->left ? DATA : TRAILER_FIRST;
  return true;
}

static bool feed_data_end(na_h1_chunked *c, char byte, na_h1_error *error) {
  if (byte != (c->state == DATA_CR ? '\r' : '\n'))
    return na_h1_refuse(error, 400, "chunk data not ended by CRLF");
  c->state = c->state == DATA_CR ? DATA_LF : SIZE_FIRST;
  return true;
}

/* Keep the forbidden names whose byte at `at` is this one. */
static uint32_t still_candidates(uint32_t candidates, uint32_t at, char byte) {
  uint32_t kept = 0;
  for (uint32_t left = candidates; left; left &= left - 1) {
    int i = __builtin_ctz(left);
    if (forbidden_trailers[i][at] && forbidden_trailers[i][at] == na_lower(byte))
      kept |= 1u << i;
  }
  return kept;
}

static bool is_forbidden(uint32_t candidates, uint32_t length) {
  for (uint32_t left = candidates; left; left &= left - 1)
    if (!forbidden_trailers[__builtin_ctz(left)][length])
      return true;
  return false;
}

static bool feed_trailer_name(na_h1_chunked *c, char byte, na_h1_error *error) {
  if (na_h1_is(byte, NA_C_TOKEN)) {
    if (c->state == TRAILER_FIRST) {
      c->line_bytes = 0;
      c->candidates = (1u << N_FORBIDDEN) - 1;
    }
    c->candidates = still_candidates(c->candidates, c->line_bytes++, byte);
    c->state = TRAILER_NAME;
    return true;
  }
  if (c->state == TRAILER_FIRST && byte == '\r') {
    c->state = END_LF;
    return true;
  }
  if (c->state == TRAILER_FIRST || byte != ':')
    return na_h1_refuse(error, 400, "invalid trailer name");
  if (is_forbidden(c->candidates, c->line_bytes))
    return na_h1_refuse(error, 400, "trailer that must not be one");
  c->state = TRAILER_VALUE;
  return true;
}

static bool feed_trailer(na_h1_chunked *c, char byte, na_h1_error *error) {
  if (++c->trailer_bytes > MAX_TRAILERS)
    return na_h1_refuse(error, 431, "trailers too long");
  switch ((enum state)c->state) {
  case TRAILER_FIRST:
  case TRAILER_NAME:
    return feed_trailer_name(c, byte, error);
  case TRAILER_VALUE:
    if (byte == '\r')
      c->state = TRAILER_LF;
    else if (!na_h1_is(byte, NA_C_VALUE))
      return na_h1_refuse(error, 400, "control character in a trailer");
    return true;
  default:
    if (byte != '\n')
      return na_h1_refuse(error, 400, "bare CR in the trailers");
    c->state = c->state == END_LF ? DONE : TRAILER_FIRST;
    return true;
  }
}

/* Skip chunk data; returns how many bytes of the n. */
static size_t skip_data(na_h1_chunked *c, size_t n) {
  size_t take = c->left < n ? (size_t)c->left : n;
  c->left -= take;
  c->data_bytes += take;
  if (!c->left)
    c->state = DATA_CR;
  return take;
}

long na_h1_chunked_feed(na_h1_chunked *c, const char *buf, size_t n, bool *done, na_h1_error *error) {
  size_t i = 0;
  while (i < n && c->state != DONE) {
    if (c->state == DATA) {
      i += skip_data(c, n - i);
      continue;
    }
    char byte = buf[i++];
    bool valid = c->state < DATA            ? feed_size_line(c, byte, error)
                 : c->state < TRAILER_FIRST ? feed_data_end(c, byte, error)
                                            : feed_trailer(c, byte, error);
    if (!valid)
      return -1;
  }
  *done = c->state == DONE;
  return (long)i;
}
