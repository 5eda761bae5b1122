/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the HTTP/1 codec share: character classes, the header block, and framing rules.
 */
#ifndef NODEAGENT_HTTP1_PARSE_H
#define NODEAGENT_HTTP1_PARSE_H

#include "http1.h"

/* Classes of bytes, bits of na_h1_class[]. */
enum na_h1_class_bit {
  NA_C_TOKEN = 1,  /* tchar, RFC 9110 5.6.2 */
  NA_C_TARGET = 2, /* request target: visible ASCII but '#' */
  NA_C_HOST = 4,   /* reg-name of an authority, RFC 3986 3.2.2, without the comma */
  NA_C_DIGIT = 8,
  NA_C_VALUE = 16, /* field value: visible, space, tab and obs-text, RFC 9110 5.5 */
  NA_C_PLAIN =
      32, /* request target: bytes that a path can have in one spelling only, wherever they are (http_path.h) */
};

extern const uint8_t na_h1_class[256];

static inline bool na_h1_is(char c, uint8_t classes) {
  return na_h1_class[(uint8_t)c] & classes;
}

/* Lower case over ASCII letters; other bytes as they are. */
static inline char na_lower(char c) {
  return (uint8_t)(c - 'A') < 26 ? (char)(c | 0x20) : c;
}

/* Record a refusal; always false, so that parsers can return it. */
static inline bool na_h1_refuse(na_h1_error *error, uint16_t status, const char *reason) {
  error->status = status;
  error->reason = reason;
  return false;
}

/* The length of the leading run of bytes that have one of the classes. */
static inline size_t na_h1_span(const char *p, size_t n, uint8_t classes) {
  size_t i = 0;
  while (i < n && na_h1_is(p[i], classes))
    i++;
  return i;
}

/* Parse the header lines in [p, end), the last one ended by CRLF as all, into head->headers. */
bool na_h1_parse_headers(const char *p, const char *end, uint32_t max_headers, na_h1_head *head, na_h1_error *error);
/* Take all headers of one id out of the head, as if they had not been sent. */
void na_h1_leave_out(na_h1_head *head, uint8_t id);
/* Which of the known headers a name is. */
uint8_t na_h1_header_id(const char *name, size_t n);

/* Read Connection: keep_alive, upgrade and hop marks. RFC 9110 7.6.1. */
bool na_h1_read_connection(na_h1_head *head, na_h1_error *error);
/* Read Content-Length and Transfer-Encoding of a message into body and content_length, as far as they are the same for
 * requests and responses. RFC 9112 6. *framed tells that either was there. */
bool na_h1_read_framing(na_h1_head *head, bool *framed, na_h1_error *error);
/* Check an authority: host [ ":" port ], no user information. */
bool na_h1_valid_authority(na_str authority, bool need_port);

#endif
