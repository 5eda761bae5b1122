/* SPDX-License-Identifier: Apache-2.0 */
#include "histogram.h"

#include <string.h>

void histogram_reset(histogram *h) {
  memset(h, 0, sizeof *h);
  h->min = UINT64_MAX;
}

/* Values below 2^BITS have a bucket each; above, the leading bits name the span and the next ones the part. */
static size_t index_of(uint64_t ns) {
  if (ns < (1u << HISTOGRAM_BITS))
    return (size_t)ns;
  unsigned span = 63 - (unsigned)__builtin_clzll(ns) - HISTOGRAM_BITS + 1;
  size_t part = (size_t)(ns >> (span - 1)) & ((1u << HISTOGRAM_BITS) - 1);
  size_t index = ((size_t)span << HISTOGRAM_BITS) + part;
  return index < HISTOGRAM_SIZE ? index : HISTOGRAM_SIZE - 1;
}

/* The middle of a bucket. */
static uint64_t value_of(size_t index) {
  size_t span = index >> HISTOGRAM_BITS, part = index & ((1u << HISTOGRAM_BITS) - 1);
  if (span == 0)
    return part;
  uint64_t low = ((uint64_t)part | (1u << HISTOGRAM_BITS)) << (span - 1);
  return low + ((uint64_t)1 << (span - 1)) / 2;
}

void histogram_record(histogram *h, uint64_t ns) {
  h->counts[index_of(ns)]++;
  h->total++;
  h->sum += (double)ns;
  if (ns < h->min)
    h->min = ns;
  if (ns > h->max)
    h->max = ns;
}

/* A bucket's middle may lie beyond the only value in it. */
static uint64_t within(const histogram *h, uint64_t ns) {
  return ns < h->min ? h->min : ns > h->max ? h->max : ns;
}

uint64_t histogram_quantile(const histogram *h, double share) {
  uint64_t rank = (uint64_t)(share * (double)h->total), seen = 0;
  if (rank >= h->total)
    return h->total ? h->max : 0;
  for (size_t i = 0; i < HISTOGRAM_SIZE; i++) {
    seen += h->counts[i];
    if (seen > rank)
      return within(h, value_of(i));
  }
  return h->max;
}

void histogram_print(const histogram *h, FILE *out) {
  static const struct {
    const char *name;
    double share;
  } marks[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}, {"p9999", .9999}};
  double mean = h->total ? h->sum / (double)h->total : 0;
  fprintf(out, "{\"count\":%llu,\"min\":%.3f,\"mean\":%.3f,\"max\":%.3f", (unsigned long long)h->total,
          h->total ? (double)h->min / 1e3 : 0, mean / 1e3, (double)h->max / 1e3);
  for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
    fprintf(out, ",\"%s\":%.3f", marks[i].name, (double)histogram_quantile(h, marks[i].share) / 1e3);
  fputs(",\"buckets\":[", out);
  const char *comma = "";
  for (size_t i = 0; i < HISTOGRAM_SIZE; i++)
    if (h->counts[i]) {
      fprintf(out, "%s[%.3f,%llu]", comma, (double)value_of(i) / 1e3, (unsigned long long)h->counts[i]);
      comma = ",";
    }
  fputs("]}", out);
}
