/* SPDX-License-Identifier: Apache-2.0
 *
 * Latencies with a bounded relative error, as HdrHistogram records them: buckets that double, each in equal parts.
 */
#ifndef NODEAGENT_BENCH_HISTOGRAM_H
#define NODEAGENT_BENCH_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define HISTOGRAM_BITS  7  /* 128 parts a doubling: values are exact to 0.8 % */
#define HISTOGRAM_SPANS 34 /* up to 2^41 ns, 36 minutes; what is above counts as that */
#define HISTOGRAM_SIZE  (HISTOGRAM_SPANS << HISTOGRAM_BITS)

typedef struct histogram {
  uint64_t counts[HISTOGRAM_SIZE];
  uint64_t total;
  uint64_t min, max; /* ns */
  double sum;        /* ns */
} histogram;

void histogram_reset(histogram *h);
void histogram_record(histogram *h, uint64_t ns);
/* The value (ns) that a share of the recorded ones does not exceed; 0 if there are none. */
uint64_t histogram_quantile(const histogram *h, double share);
/* Write a JSON object: count, min, mean, max and quantiles in microseconds, and the occupied buckets. */
void histogram_print(const histogram *h, FILE *out);

#endif
