/* SPDX-License-Identifier: Apache-2.0
 *
 * Scanning names and values in large steps. Each function skips bytes that surely belong, and may stop before one that
 * does too: the caller goes on byte by byte with na_h1_class. Nothing beyond `end` is read.
 */
#ifndef NODEAGENT_HTTP1_SCAN_H
#define NODEAGENT_HTTP1_SCAN_H

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__

#include <emmintrin.h>

/* A bit per byte of `word` that is at least `low` and less than low + n. */
static inline unsigned na_h1_in_range(__m128i word, char low, int n) {
  /* SSE2 compares signed bytes only: shift the range to begin at the smallest of them. */
  __m128i shifted = _mm_sub_epi8(word, _mm_set1_epi8((char)(low + 128)));
  return (unsigned)_mm_movemask_epi8(_mm_cmplt_epi8(shifted, _mm_set1_epi8((char)(n - 128))));
}

/* Skip letters, digits and `-`. */
static inline const char *na_h1_skip_plain_name(const char *p, const char *end) {
  for (; end - p >= 16; p += 16) {
    __m128i word = _mm_loadu_si128((const __m128i *)p);
    __m128i lower = _mm_or_si128(word, _mm_set1_epi8(0x20));
    unsigned dashes = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(word, _mm_set1_epi8('-')));
    unsigned plain = na_h1_in_range(lower, 'a', 26) | na_h1_in_range(word, '0', 10) | dashes;
    if (plain != 0xffff)
      return p + __builtin_ctz(~plain);
  }
  return p;
}

/* Skip everything but control bytes, of which a tab is none here. */
static inline const char *na_h1_skip_plain_value(const char *p, const char *end) {
  for (; end - p >= 16; p += 16) {
    __m128i word = _mm_loadu_si128((const __m128i *)p);
    __m128i below_space = _mm_cmpeq_epi8(_mm_min_epu8(word, _mm_set1_epi8(0x1f)), word);
    __m128i not_tab = _mm_andnot_si128(_mm_cmpeq_epi8(word, _mm_set1_epi8('\t')), below_space);
    __m128i control = _mm_or_si128(not_tab, _mm_cmpeq_epi8(word, _mm_set1_epi8(0x7f)));
    unsigned stops = (unsigned)_mm_movemask_epi8(control);
    if (stops)
      return p + __builtin_ctz(stops);
  }
  return p;
}

#else

/* Names are short: byte by byte. */
static inline const char *na_h1_skip_plain_name(const char *p, const char *end) {
  return p;
}

/* Eight bytes at a time that are neither below 0x20 nor 0x7f; stops early at a tab, or within its word. */
static inline const char *na_h1_skip_plain_value(const char *p, const char *end) {
  const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
  for (; end - p >= 8; p += 8) {
    uint64_t word;
    memcpy(&word, p, 8);
    uint64_t below_space = (word - ones * 0x20) & ~word & high;
    uint64_t without_del = word ^ (ones * 0x7f);
    uint64_t del = (without_del - ones) & ~without_del & high;
    if (below_space | del)
      break;
  }
  return p;
}

#endif

#endif
