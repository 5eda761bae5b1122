/* SPDX-License-Identifier: Apache-2.0
 *
 * The hash map against a plain array as its model, and interned names.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "slots.h"
#include "table.h"

/* ---- maps --------------------------------------------------------------------------------------------------- */

#define KEYS 200

typedef struct item {
  int refs;
  char key[8];
} item;

static void ref_item(void *value) {
  ((item *)value)->refs++;
}

static void unref_item(void *value) {
  item *it = value;
  assert_true(it->refs > 0);
  if (--it->refs == 0)
    free(it);
}

static const na_map_ops ops = {ref_item, unref_item};

static item *new_item(int number) {
  item *it = calloc(1, sizeof *it);
  it->refs = 1;
  snprintf(it->key, sizeof it->key, "k%d", number);
  return it;
}

static void assert_same(const na_map *map, item *const *model) {
  uint32_t count = 0, at = 0;
  for (int i = 0; i < KEYS; i++) {
    char key[8];
    snprintf(key, sizeof key, "k%d", i);
    assert_ptr_equal(na_map_find(map, key, (uint32_t)strlen(key)), model[i]);
    count += model[i] != NULL;
  }
  assert_int_equal(map->count, count);
  while (na_map_next(map, &at))
    count--;
  assert_int_equal(count, 0);
}

static void maps_follow_their_model(void **state) {
  na_map map;
  item *model[KEYS] = {NULL};
  unsigned seed = 5;
  na_map_init(&map, &ops);
  assert_null(na_map_find(&map, "x", 1));
  assert_int_equal(na_map_remove(&map, "x", 1), 0);
  for (int step = 0; step < 5000; step++) {
    int i = rand_r(&seed) % KEYS;
    char key[8];
    snprintf(key, sizeof key, "k%d", i);
    if (rand_r(&seed) % 2) {
      item *it = new_item(i);
      assert_int_equal(na_map_put(&map, it->key, (uint32_t)strlen(it->key), it), 0);
      model[i] = it;
    } else {
      assert_int_equal(na_map_remove(&map, key, (uint32_t)strlen(key)), model[i] != NULL);
      model[i] = NULL;
    }
    if (step % 100 == 0)
      assert_same(&map, model);
  }
  na_map copy;
  assert_int_equal(na_map_copy(&copy, &map), 0);
  assert_same(&copy, model);
  na_map_clear(&map);
  assert_same(&copy, model);
  na_map_clear(&copy);
}

static void hashes_depend_on_every_byte(void **state) {
  uint8_t bytes[40] = {0};
  for (size_t n = 0; n <= sizeof bytes; n++) {
    uint64_t hash = na_hash(bytes, n);
    assert_true(na_hash(bytes, n) == hash);
    for (size_t i = 0; i < n; i++) {
      bytes[i] = 1;
      assert_true(na_hash(bytes, n) != hash);
      bytes[i] = 0;
    }
    if (n)
      assert_true(na_hash(bytes, n - 1) != hash);
  }
}

/* ---- slots -------------------------------------------------------------------------------------------------- */

static void slots_are_stable_while_held(void **state) {
  na_slots *slots;
  uint32_t a, b, again, c;
  assert_int_equal(na_slots_new(&slots), 0);
  assert_int_equal(na_slots_find(slots, "a"), NA_NO_SLOT);
  assert_int_equal(na_slots_intern(slots, "a", &a), 0);
  assert_int_equal(na_slots_intern(slots, "b", &b), 0);
  assert_int_equal(na_slots_intern(slots, "a", &again), 0);
  assert_int_equal(a, again);
  assert_int_not_equal(a, b);
  assert_string_equal(na_slots_name(slots, b), "b");
  na_slots_unref(slots, a);
  assert_int_equal(na_slots_intern(slots, "c", &c), 0);
  assert_int_not_equal(c, a); /* still held once */
  na_slots_unref(slots, a);
  assert_int_equal(na_slots_find(slots, "a"), NA_NO_SLOT);
  /* Not given away yet: it comes back as itself. */
  assert_int_equal(na_slots_intern(slots, "a", &again), 0);
  assert_int_equal(a, again);
  na_slots_unref(slots, a);
  uint32_t d;
  assert_int_equal(na_slots_intern(slots, "d", &d), 0);
  assert_int_equal(d, a); /* and now it is */
  assert_string_equal(na_slots_name(slots, d), "d");
  na_slots_unref(slots, b);
  na_slots_unref(slots, c);
  na_slots_unref(slots, d);
  na_slots_free(slots);
}

/* Names that come and go take no more slots than were ever in use at once. */
static void slots_are_reused(void **state) {
  na_slots *slots;
  assert_int_equal(na_slots_new(&slots), 0);
  for (int round = 0; round < 50; round++) {
    uint32_t held[300];
    for (int i = 0; i < 300; i++) {
      char name[32];
      snprintf(name, sizeof name, "name %d of round %d", i, round);
      assert_int_equal(na_slots_intern(slots, name, &held[i]), 0);
    }
    for (int i = 0; i < 300; i++)
      na_slots_unref(slots, held[i]);
  }
  assert_int_equal(na_slots_size(slots), 300);
  na_slots_free(slots);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(maps_follow_their_model),
      cmocka_unit_test(hashes_depend_on_every_byte),
      cmocka_unit_test(slots_are_stable_while_held),
      cmocka_unit_test(slots_are_reused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
