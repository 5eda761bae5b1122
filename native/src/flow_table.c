/* SPDX-License-Identifier: Apache-2.0 */
#include "flow_table.h"

#include <assert.h>
#include <stdlib.h>

#define MIN_SIZE 64

void na_flow_table_init(na_flow_table *table, uint32_t max) {
  *table = (na_flow_table){.max = max};
}

static void destroy(na_flow *flow) {
  free(flow->detail);
  free(flow);
}

void na_flow_table_free(na_flow_table *table) {
  for (uint32_t i = 0; i < table->size; i++)
    for (na_flow *flow = table->buckets[i], *next; flow; flow = next) {
      next = flow->next;
      destroy(flow);
    }
  free(table->buckets);
  na_flow_table_init(table, table->max);
}

/* Cookies are counted up by the kernel, with gaps: their low bits spread well enough, mixed with the CPU's part. */
static uint32_t bucket_of(const na_flow_table *table, uint64_t cookie) {
  return (uint32_t)((cookie * 0x9e3779b97f4a7c15) >> 32) & (table->size - 1);
}

na_flow *na_flow_table_find(const na_flow_table *table, uint64_t cookie) {
  na_flow *flow = table->size ? table->buckets[bucket_of(table, cookie)] : NULL;
  while (flow && flow->facts.socket_cookie != cookie)
    flow = flow->next;
  return flow;
}

static void link_flow(na_flow_table *table, na_flow *flow) {
  na_flow **bucket = &table->buckets[bucket_of(table, flow->facts.socket_cookie)];
  flow->next = *bucket;
  *bucket = flow;
}

/* Without memory for more buckets chains get longer. */
static void grow(na_flow_table *table) {
  na_flow_table larger = *table;
  larger.size = table->size ? table->size * 2 : MIN_SIZE;
  larger.buckets = calloc(larger.size, sizeof(na_flow *));
  if (!larger.buckets)
    return;
  for (na_flow *flow = na_flow_table_next(table, NULL), *next; flow; flow = next) {
    next = na_flow_table_next(table, flow);
    link_flow(&larger, flow);
  }
  free(table->buckets);
  *table = larger;
}

na_flow *na_flow_table_add(na_flow_table *table, uint64_t cookie) {
  assert(!na_flow_table_find(table, cookie));
  if (table->n == table->max)
    return NULL;
  if (table->n >= table->size)
    grow(table);
  na_flow *flow = table->size ? calloc(1, sizeof *flow) : NULL;
  if (!flow)
    return NULL;
  flow->facts.socket_cookie = cookie;
  link_flow(table, flow);
  table->n++;
  return flow;
}

void na_flow_table_remove(na_flow_table *table, na_flow *flow) {
  na_flow **at = &table->buckets[bucket_of(table, flow->facts.socket_cookie)];
  while (*at != flow)
    at = &(*at)->next;
  *at = flow->next;
  table->n--;
  destroy(flow);
}

na_flow *na_flow_table_next(const na_flow_table *table, const na_flow *flow) {
  if (flow && flow->next)
    return flow->next;
  uint32_t i = flow ? bucket_of(table, flow->facts.socket_cookie) + 1 : 0;
  while (i < table->size && !table->buckets[i])
    i++;
  return i < table->size ? table->buckets[i] : NULL;
}
