/* SPDX-License-Identifier: Apache-2.0 */
#include "query.h"

#include <stdlib.h>
#include <string.h>

#include "http1_parse.h"

static int hex_value(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c = na_lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

uint32_t na_percent_decode(na_str text, char *out) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < text.n; i++) {
    int high = text.p[i] == '%' && i + 2 < text.n ? hex_value(text.p[i + 1]) : -1;
    int low = high >= 0 ? hex_value(text.p[i + 2]) : -1;
    if (low < 0) {
      out[n++] = text.p[i];
      continue;
    }
    out[n++] = (char)(high << 4 | low);
    i += 2;
  }
  return n;
}

bool na_pair_next(na_str *rest, char separator, na_str *item, na_str *name, na_str *value) {
  if (!rest->n)
    return false;
  const char *end = rest->p + rest->n;
  const char *stop = memchr(rest->p, separator, rest->n);
  const char *item_end = stop ? stop : end;
  const char *next = stop ? stop + 1 : end;
  *item = (na_str){rest->p, (uint32_t)(item_end - rest->p)};
  const char *equals = memchr(item->p, '=', item->n);
  const char *name_end = equals ? equals : item_end;
  *name = (na_str){item->p, (uint32_t)(name_end - item->p)};
  *value = equals ? (na_str){equals + 1, (uint32_t)(item_end - equals - 1)} : (na_str){item_end, 0};
  *rest = (na_str){next, (uint32_t)(end - next)};
  return true;
}

static bool is_same(na_str a, na_str b) {
  return a.n == b.n && memcmp(a.p, b.p, a.n) == 0;
}

bool na_parameter_is(na_str name, na_str wanted) {
  char small[256];
  if (!memchr(name.p, '%', name.n))
    return is_same(name, wanted);
  if (name.n > sizeof small)
    return false;
  return is_same((na_str){small, na_percent_decode(name, small)}, wanted);
}

char *na_target_without(const na_request *request, na_str wanted, uint32_t *n) {
  char *target = malloc(request->path.n + 1 + request->query.n);
  if (!target)
    return NULL;
  na_out out = {.p = target, .size = request->path.n + 1 + request->query.n};
  na_out_str(&out, request->path);
  na_str rest = request->query, item, name, value;
  bool first = true;
  while (na_pair_next(&rest, '&', &item, &name, &value)) {
    if (na_parameter_is(name, wanted))
      continue;
    na_out_bytes(&out, first ? "?" : "&", 1);
    na_out_str(&out, item);
    first = false;
  }
  *n = (uint32_t)out.n;
  return target;
}
