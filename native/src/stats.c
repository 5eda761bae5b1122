/* SPDX-License-Identifier: Apache-2.0 */
#include "stats.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(na_stat_key) == 48, "a key has no padding: it is hashed and compared as bytes");
_Static_assert(offsetof(na_stat_row, count) == sizeof(na_stat_key), "a row begins with its key");
_Static_assert(offsetof(na_stat_row, peer) == offsetof(na_stat_key, peer), "key and row have one layout");

static int table_init(na_stat_table *table, uint32_t rows) {
  uint32_t slots = 2;
  while (slots < rows * 2)
    slots *= 2;
  table->rows = malloc(rows * sizeof *table->rows); /* not touched before use: costs no memory when idle */
  table->index = calloc(slots, sizeof *table->index);
  table->mask = slots - 1;
  table->size = rows;
  table->n = 0;
  return table->rows && table->index ? 0 : -ENOMEM;
}

int na_stats_init(na_stats *stats, uint32_t rows, na_counters *counters) {
  *stats = (na_stats){.counters = counters};
  int error = table_init(&stats->tables[0], rows);
  return error ? error : table_init(&stats->tables[1], rows);
}

void na_stats_free(na_stats *stats) {
  for (int i = 0; i < 2; i++) {
    free(stats->tables[i].rows);
    free(stats->tables[i].index);
  }
}

/* A multiplicative mix of the key's words; keys come from configuration and addresses, and the table is bounded. */
static uint32_t hash_key(const na_stat_key *key) {
  uint64_t words[6], h = 0x9e3779b97f4a7c15;
  memcpy(words, key, sizeof words);
  for (int i = 0; i < 6; i++) {
    h = (h ^ words[i]) * 0xd6e8feb86659fd93;
    h ^= h >> 32;
  }
  return (uint32_t)h;
}

na_stat_row *na_stats_row(na_stats *stats, const na_stat_key *key) {
  na_stat_table *table = &stats->tables[stats->filling];
  uint32_t at = hash_key(key) & table->mask;
  for (; table->index[at]; at = (at + 1) & table->mask) {
    na_stat_row *row = &table->rows[table->index[at] - 1];
    if (memcmp(row, key, sizeof *key) == 0)
      return row;
  }
  if (table->n == table->size) {
    na_count(stats->counters, NA_COUNTER_STATS_DROPPED);
    return NULL;
  }
  na_stat_row *row = &table->rows[table->n++];
  table->index[at] = table->n;
  memset(row, 0, sizeof *row);
  memcpy(row, key, sizeof *key);
  return row;
}

static unsigned duration_bucket(uint64_t us) {
  static const uint64_t bounds[NA_DURATION_BUCKETS - 1] = {
      500,     1000,    5000,     10000,    25000,    50000,     100000,    250000,     500000,    1000000,
      2500000, 5000000, 10000000, 30000000, 60000000, 300000000, 600000000, 1800000000, 3600000000};
  unsigned i = 0;
  while (i < NA_DURATION_BUCKETS - 1 && us > bounds[i])
    i++;
  return i;
}

/* 0, then up to 4^1, 4^2 ... 4^14, then above. */
static unsigned size_bucket(uint64_t bytes) {
  if (bytes == 0)
    return 0;
  if (bytes <= 4)
    return 1;
  unsigned bucket = (unsigned)(63 - __builtin_clzll(bytes - 1)) / 2 + 1;
  return bucket < NA_SIZE_BUCKETS - 1 ? bucket : NA_SIZE_BUCKETS - 1;
}

void na_stats_request(na_stat_row *row, uint64_t duration_us, uint64_t request_bytes, uint64_t response_bytes) {
  row->count++;
  row->bytes_in += request_bytes;
  row->bytes_out += response_bytes;
  row->duration_us += duration_us;
  row->duration[duration_bucket(duration_us)]++;
  row->request_size[size_bucket(request_bytes)]++;
  row->response_size[size_bucket(response_bytes)]++;
}

void na_stats_swap(na_stats *stats) {
  uint32_t other = !stats->filling;
  assert(stats->tables[other].n == 0);
  stats->filling = other;
}

bool na_stats_left(const na_stats *stats) {
  return stats->tables[!stats->filling].n > 0;
}

size_t na_stats_take(na_stats *stats, na_stat_row *out, size_t max) {
  na_stat_table *table = &stats->tables[!stats->filling];
  size_t n = table->n - stats->drained;
  if (n > max)
    n = max;
  memcpy(out, table->rows + stats->drained, n * sizeof *out);
  stats->drained += (uint32_t)n;
  if (stats->drained == table->n) {
    memset(table->index, 0, ((size_t)table->mask + 1) * sizeof *table->index);
    table->n = stats->drained = 0;
  }
  return n;
}
