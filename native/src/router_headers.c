/* SPDX-License-Identifier: Apache-2.0
 *
 * Header operations of destination, route and virtual host, applied while headers are written: no list is built. An
 * operation is looked at together with those that come after it (is what it adds removed again?) and before it (is the
 * header absent by then?).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "http1_parse.h"
#include "router_build.h"

/* ---- building ----------------------------------------------------------------------------------------------- */

/* Headers that make up the framing and the connection; changing them would desynchronise peers. */
static const char *const protected_headers[] = {"connection", "content-length",    "keep-alive", "proxy-connection",
                                                "te",         "transfer-encoding", "upgrade"};

static bool is_protected(na_str name) {
  for (size_t i = 0; i < sizeof protected_headers / sizeof *protected_headers; i++)
    if (na_str_ieq(name, protected_headers[i]))
      return true;
  return false;
}

static bool is_authority(na_str name) {
  return na_str_ieq(name, "host") || na_str_eq(name, ":authority");
}

static int check_name(na_vhost *vhost, enum na_header_side side, enum na_header_op op, const char *name) {
  na_str view = na_str_of(name);
  if (is_authority(view)) {
    if (side == NA_RESPONSE || op != NA_HEADER_SET)
      return na_vhost_fail(vhost, -EINVAL, "header '%s' can only be set, on requests", name);
    return 0;
  }
  if (!view.n || na_h1_span(view.p, view.n, NA_C_TOKEN) != view.n)
    return na_vhost_fail(vhost, -EINVAL, "'%s' is no header name", name);
  if (is_protected(view))
    return na_vhost_fail(vhost, -EINVAL, "header '%s' belongs to the connection and cannot be changed", name);
  return 0;
}

static int check_value(na_vhost *vhost, const char *name, const char *value) {
  na_str view = na_str_of(value);
  if (is_authority(na_str_of(name)) && strchr(value, '%'))
    return na_vhost_fail(vhost, -EINVAL, "value of header '%s' cannot have command operators", name);
  if (na_h1_span(view.p, view.n, NA_C_VALUE) != view.n)
    return na_vhost_fail(vhost, -EINVAL, "value of header '%s' has a control character", name);
  if (is_authority(na_str_of(name)) && !na_h1_valid_authority(view, false))
    return na_vhost_fail(vhost, -EINVAL, "value of header '%s' is no host", name);
  return 0;
}

/* A value with percent signs is read as one with command operators. */
static int read_format(na_vhost *vhost, na_header_mutation *mutation) {
  char reason[160] = "out of memory";
  if (!strchr(mutation->value, '%'))
    return 0;
  int rc = na_format_new(mutation->value, &mutation->format, reason, sizeof reason);
  return rc ? na_vhost_fail(vhost, rc, "value of header '%s': %s", mutation->name, reason) : 0;
}

static void clear(na_header_mutation *mutation) {
  free(mutation->name);
  free(mutation->value);
  na_format_free(mutation->format);
}

int na_mutations_add(na_vhost *vhost, na_mutations *both, enum na_header_side side, enum na_header_op op,
                     const char *name, const char *value) {
  if ((unsigned)side > NA_RESPONSE || (unsigned)op > NA_HEADER_ADD_IF_ABSENT)
    return na_vhost_fail(vhost, -EINVAL, "unknown header side %u or operation %u", (unsigned)side, (unsigned)op);
  na_mutations *mutations = &both[side];
  int rc = check_name(vhost, side, op, name);
  if (!rc && op != NA_HEADER_REMOVE)
    rc = check_value(vhost, name, value ? value : "");
  if (rc)
    return rc;
  if (mutations->n == NA_MAX_MUTATIONS)
    return na_vhost_fail(vhost, -E2BIG, "more than %d header operations in one place", NA_MAX_MUTATIONS);
  na_header_mutation added = {.op = (uint8_t)op, .name = strdup(name), .value = strdup(value ? value : "")};
  if (!added.name || !added.value || na_grow(&mutations->items, mutations->n, sizeof *mutations->items))
    rc = na_vhost_fail(vhost, -ENOMEM, "out of memory");
  else if (op != NA_HEADER_REMOVE)
    rc = read_format(vhost, &added);
  if (rc) {
    clear(&added);
    return rc;
  }
  added.name_n = (uint32_t)strlen(added.name);
  added.value_n = (uint32_t)strlen(added.value);
  mutations->items[mutations->n++] = added;
  return 0;
}

void na_mutations_clear(na_mutations *mutations) {
  for (uint32_t i = 0; i < mutations->n; i++)
    clear(&mutations->items[i]);
  free(mutations->items);
  *mutations = (na_mutations){0};
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

/* All operations in the order in which they take effect, and the headers that they work on. */
typedef struct mutation_plan {
  const na_header_mutation *ops[4 * NA_MAX_MUTATIONS];
  uint32_t n;
  const na_header *headers;
  uint32_t nheaders;
  const na_own_headers *own;
  const na_format_source *source;
  na_str authority;
} mutation_plan;

static na_str name_of(const na_header_mutation *op) {
  return (na_str){op->name, op->name_n};
}

static na_str value_of(const na_header_mutation *op) {
  return (na_str){op->value, op->value_n};
}

/* Whether an operation changes nothing, since its value comes out empty. */
static bool is_void(const mutation_plan *plan, const na_header_mutation *op) {
  return op->format && na_format_is_empty(op->format, plan->source);
}

/* Append the level's removals (removals true) or the rest. */
static void take_level(mutation_plan *plan, const na_mutations *level, bool removals) {
  for (uint32_t i = 0; i < level->n; i++) {
    const na_header_mutation *op = &level->items[i];
    if ((op->op == NA_HEADER_REMOVE) != removals)
      continue;
    if (is_authority(name_of(op)))
      plan->authority = value_of(op);
    else
      plan->ops[plan->n++] = op;
  }
}

static void make_plan(mutation_plan *plan, const na_header_levels *levels) {
  plan->n = 0;
  plan->source = levels ? levels->source : NULL;
  for (int i = 0; levels && i < 4; i++) {
    if (!levels->levels[i])
      continue;
    take_level(plan, levels->levels[i], true);
    take_level(plan, levels->levels[i], false);
  }
}

/* Whether an operation from `from` on takes away what has this name by then. */
static bool is_replaced(const mutation_plan *plan, uint32_t from, na_str name) {
  for (uint32_t i = from; i < plan->n; i++)
    if ((plan->ops[i]->op == NA_HEADER_SET || plan->ops[i]->op == NA_HEADER_REMOVE) &&
        na_str_ieq2(name_of(plan->ops[i]), name) && !is_void(plan, plan->ops[i]))
      return true;
  return false;
}

static bool is_own(const mutation_plan *plan, na_str name) {
  for (uint32_t i = 0; plan->own && i < plan->own->n; i++)
    if (na_str_ieq2(plan->own->items[i].name, name))
      return true;
  return false;
}

/* Whether a header of this name is there before operation `at`. */
static bool is_present(const mutation_plan *plan, uint32_t at, na_str name) {
  while (at-- > 0)
    if (na_str_ieq2(name_of(plan->ops[at]), name) && !is_void(plan, plan->ops[at]))
      return plan->ops[at]->op != NA_HEADER_REMOVE;
  if (is_own(plan, name))
    return true;
  for (uint32_t i = 0; i < plan->nheaders; i++)
    if (!plan->headers[i].hop && na_str_ieq2(plan->headers[i].name, name))
      return true;
  return false;
}

static void write_received(const mutation_plan *plan, na_out *out) {
  for (uint32_t i = 0; i < plan->nheaders; i++) {
    const na_header *header = &plan->headers[i];
    if (header->hop || (header->id == NA_HDR_HOST && plan->authority.n) || is_own(plan, header->name))
      continue;
    if (!plan->n || !is_replaced(plan, 0, header->name))
      na_out_header(out, header->name, header->value);
  }
}

static void write_own(const mutation_plan *plan, na_out *out) {
  for (uint32_t i = 0; plan->own && i < plan->own->n; i++) {
    const na_header *header = &plan->own->items[i];
    if (!is_replaced(plan, 0, header->name))
      na_out_header(out, header->name, header->value);
  }
}

static void write_operation(const mutation_plan *plan, const na_header_mutation *op, na_out *out) {
  if (!op->format) {
    na_out_header(out, name_of(op), value_of(op));
    return;
  }
  size_t start = out->n;
  na_out_str(out, name_of(op));
  na_out_bytes(out, ": ", 2);
  size_t value = out->n;
  na_format_write(op->format, plan->source, out);
  if (out->n == value && !out->over)
    out->n = start; /* nothing to say, no header */
  else
    na_out_bytes(out, "\r\n", 2);
}

static void write_added(const mutation_plan *plan, na_out *out) {
  for (uint32_t i = 0; i < plan->n; i++) {
    const na_header_mutation *op = plan->ops[i];
    if (op->op == NA_HEADER_REMOVE || is_replaced(plan, i + 1, name_of(op)))
      continue;
    if (op->op == NA_HEADER_ADD_IF_ABSENT && is_present(plan, i, name_of(op)))
      continue;
    write_operation(plan, op, out);
  }
}

void na_own_header(na_own_headers *own, const char *name, na_str value) {
  assert(own->n < NA_MAX_OWN_HEADERS);
  own->items[own->n++] = (na_header){.name = na_str_of(name), .value = value};
}

void na_write_headers(const na_header *headers, uint32_t n, const na_own_headers *own, const na_header_levels *levels,
                      na_str authority, na_out *out) {
  mutation_plan plan;
  plan.headers = headers;
  plan.nheaders = n;
  plan.own = own;
  plan.authority = authority;
  make_plan(&plan, levels);
  if (plan.authority.n)
    na_out_header(out, (na_str){"host", 4}, plan.authority);
  write_received(&plan, out);
  write_own(&plan, out);
  write_added(&plan, out);
}
