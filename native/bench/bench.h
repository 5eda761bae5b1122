/* SPDX-License-Identifier: Apache-2.0
 *
 * Timing of small operations: the best of several rounds, since noise only ever adds.
 */
#ifndef NODEAGENT_BENCH_H
#define NODEAGENT_BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define BENCH_ROUNDS 9

static inline uint64_t bench_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Keep the compiler from dropping a result. */
static inline void bench_keep(const void *p) {
  __asm__ volatile("" : : "r"(p) : "memory");
}

/* Run `operation` n times per round and print the best round's nanoseconds per operation. */
static inline void bench(const char *name, uint32_t n, void (*operation)(uint32_t i)) {
  uint64_t best = UINT64_MAX;
  for (int round = 0; round < BENCH_ROUNDS; round++) {
    uint64_t start = bench_now();
    for (uint32_t i = 0; i < n; i++)
      operation(i);
    uint64_t took = bench_now() - start;
    best = took < best ? took : best;
  }
  printf("%-48s %8.1f ns\n", name, (double)best / n);
}

#endif
