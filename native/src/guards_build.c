/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards under construction.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "heap.h"
#include "uri_template.h"

int na_guards_fail(na_guards *guards, int rc, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(guards->error, sizeof guards->error, format, args);
  va_end(args);
  return rc;
}

static int no_memory(na_guards *guards) {
  return na_guards_fail(guards, -ENOMEM, "out of memory");
}

/* ---- life --------------------------------------------------------------------------------------------------- */

int na_guards_new(na_guards **out) {
  na_guards *guards = calloc(1, sizeof *guards);
  if (!guards)
    return -ENOMEM;
  atomic_init(&guards->refs, 1);
  *out = guards;
  return 0;
}

na_guards *na_guards_ref(na_guards *guards) {
  atomic_fetch_add_explicit(&guards->refs, 1, memory_order_relaxed);
  return guards;
}

void na_guards_free(na_guards *guards) {
  if (!guards || atomic_fetch_sub_explicit(&guards->refs, 1, memory_order_acq_rel) != 1)
    return;
  for (int side = 0; side < 2; side++)
    for (na_stage *stage = guards->stages[side], *next; stage; stage = next) {
      next = stage->next;
      stage->kind->free(stage);
    }
  free(guards);
}

const char *na_guards_error(const na_guards *guards) {
  return guards->error;
}

/* ---- stages ------------------------------------------------------------------------------------------------- */

static int close_expression(na_guards *guards) {
  na_expression *expression = guards->open;
  if (!expression)
    return 0;
  guards->open = NULL;
  int rc = na_expression_seal(expression);
  if (rc == -E2BIG)
    return na_guards_fail(guards, rc, "the check of '%s' is nested more than %d deep", guards->open_name,
                          NA_MAX_CHECK_DEPTH);
  return rc ? na_guards_fail(guards, rc, "the check of '%s' is no whole expression", guards->open_name) : 0;
}

int na_guards_begin(na_guards *guards) {
  if (guards->sealed)
    return na_guards_fail(guards, -EBUSY, "guards that are in use cannot be changed");
  return close_expression(guards);
}

int na_guards_append(na_guards *guards, enum na_guarded guarded, na_stage *stage) {
  uint32_t n = 0;
  na_stage **at = (unsigned)guarded <= NA_GUARDED_REQUEST ? &guards->stages[guarded] : NULL;
  for (; at && *at; at = &(*at)->next)
    n++;
  if (!at || n == NA_MAX_STAGES) {
    stage->kind->free(stage);
    return at ? na_guards_fail(guards, -E2BIG, "more than %d stages", NA_MAX_STAGES)
              : na_guards_fail(guards, -EINVAL, "guards of %u are unknown", (unsigned)guarded);
  }
  *at = stage;
  guards->rules = NULL;
  guards->tokens = NULL;
  guards->callout = NULL;
  guards->keeps = guards->keeps || stage->kind->keeps;
  return 0;
}

void na_guards_open(na_guards *guards, na_expression *expression, const char *name) {
  guards->open = expression;
  guards->open_name = name;
}

void na_guards_enlist(na_guards *guards, na_names *names) {
  for (int side = 0; side < 2 && !guards->sealed; side++)
    for (na_stage *stage = guards->stages[side]; stage; stage = stage->next)
      if (stage->kind->enlist)
        stage->kind->enlist(stage, names);
}

int na_guards_seal(na_guards *guards) {
  if (guards->sealed)
    return 0;
  int rc = na_guards_begin(guards);
  for (int side = 0; side < 2 && !rc; side++)
    for (na_stage *stage = guards->stages[side]; stage && !rc; stage = stage->next)
      rc = stage->kind->seal ? stage->kind->seal(guards, stage) : 0;
  guards->sealed = !rc;
  return rc;
}

int na_guards_bind(na_guards *guards, na_slots *cluster_names) {
  int rc = 0;
  for (int side = 0; side < 2 && !rc; side++)
    for (na_stage *stage = guards->stages[side]; stage && !rc; stage = stage->next)
      rc = stage->kind->bind ? stage->kind->bind(guards, stage, cluster_names) : 0;
  return rc;
}

int na_guards_slashes(na_guards *guards, uint32_t flags) {
  const uint32_t known = NA_SLASHES_MERGE | NA_SLASHES_DECODE | NA_SLASHES_REJECT;
  int rc = na_guards_begin(guards);
  if (!rc && flags & ~known)
    rc = na_guards_fail(guards, -EINVAL, "flags %u of slashes are unknown", flags);
  if (!rc)
    guards->slashes = (uint8_t)flags;
  return rc;
}

/* ---- rules -------------------------------------------------------------------------------------------------- */

static int name_outcome(na_rules *rules, const char *prefix) {
  if (asprintf(&rules->effective, "%sshadow_effective_policy_id", prefix) < 0) {
    rules->effective = NULL;
    return -ENOMEM;
  }
  if (asprintf(&rules->result, "%sshadow_engine_result", prefix) < 0) {
    rules->result = NULL;
    return -ENOMEM;
  }
  return 0;
}

int na_guards_rules(na_guards *guards, enum na_guarded guarded, enum na_rule_action action, int shadow,
                    const char *prefix) {
  int rc = na_guards_begin(guards);
  if (rc)
    return rc;
  if ((unsigned)action > NA_RULE_LOG)
    return na_guards_fail(guards, -EINVAL, "action %u of rules is unknown", (unsigned)action);
  na_rules *rules = calloc(1, sizeof *rules);
  if (!rules)
    return no_memory(guards);
  rules->stage.kind = &na_stage_rules;
  rules->action = (uint8_t)action;
  rules->shadow = shadow != 0;
  if (shadow && name_outcome(rules, prefix ? prefix : "")) {
    rules->stage.kind->free(&rules->stage);
    return no_memory(guards);
  }
  rc = na_guards_append(guards, guarded, &rules->stage);
  if (!rc)
    guards->rules = rules;
  return rc;
}

int na_guards_policy(na_guards *guards, const char *name) {
  int rc = na_guards_begin(guards);
  na_rules *rules = guards->rules;
  if (rc)
    return rc;
  if (!rules)
    return na_guards_fail(guards, -EINVAL, "policy '%s' belongs to no rules", name);
  if (!*name || strlen(name) > NA_MAX_POLICY_NAME)
    return na_guards_fail(guards, -EINVAL, "a policy's name has 1 to %d bytes", NA_MAX_POLICY_NAME);
  if (rules->n == NA_MAX_POLICIES)
    return na_guards_fail(guards, -E2BIG, "more than %d policies in one place", NA_MAX_POLICIES);
  char *copy = strdup(name);
  if (!copy || na_grow(&rules->policies, rules->n, sizeof *rules->policies)) {
    free(copy);
    return no_memory(guards);
  }
  na_policy *policy = &rules->policies[rules->n++];
  *policy = (na_policy){.name = copy};
  na_guards_open(guards, &policy->check, policy->name);
  return 0;
}

/* ---- checks ------------------------------------------------------------------------------------------------- */

/* Append a check to the expression that is open. Takes it, also on error. */
static int append(na_guards *guards, na_check check) {
  na_expression *open = guards->open;
  int rc = 0;
  if (guards->sealed)
    rc = na_guards_fail(guards, -EBUSY, "guards that are in use cannot be changed");
  else if (!open)
    rc = na_guards_fail(guards, -EINVAL, "a check belongs to no policy");
  else if (open->n == NA_MAX_CHECKS)
    rc = na_guards_fail(guards, -E2BIG, "'%s' has more than %d checks", guards->open_name, NA_MAX_CHECKS);
  else if (na_grow(&open->checks, open->n, sizeof *open->checks))
    rc = no_memory(guards);
  if (!rc)
    open->checks[open->n++] = check;
  else if (check.kind == NA_CHECK_TEXT)
    na_matcher_clear(&check.text);
  return rc;
}

int na_check_always(na_guards *guards) {
  return append(guards, (na_check){.kind = NA_CHECK_ALWAYS});
}

int na_check_all(na_guards *guards, uint32_t n) {
  return append(guards, (na_check){.kind = NA_CHECK_ALL, .n = n});
}

int na_check_any(na_guards *guards, uint32_t n) {
  return append(guards, (na_check){.kind = NA_CHECK_ANY, .n = n});
}

int na_check_not(na_guards *guards) {
  return append(guards, (na_check){.kind = NA_CHECK_NOT});
}

/* Host is what the codec makes an authority of; it has no case. */
static void settle_header(const char **name, uint32_t *flags) {
  if (strcasecmp(*name, "host") == 0)
    *name = ":authority";
  if (strcmp(*name, ":authority") == 0)
    *flags |= NA_MATCH_IGNORE_CASE;
}

static int fill_text(na_guards *guards, na_matcher *matcher, uint32_t kind, const char *name, const char *value,
                     uint32_t flags) {
  if (kind != NA_MATCH_TEMPLATE)
    return na_matcher_init(matcher, (enum na_match_kind)kind, name, value, flags, guards->error, sizeof guards->error);
  *matcher = (na_matcher){.kind = NA_MATCH_REGEX, .flags = (uint8_t)flags};
  if (name || !value || flags & ~(uint32_t)NA_MATCH_INVERT)
    return na_guards_fail(guards, -EINVAL, "a template is for paths, with no flag but to invert");
  return na_uri_template_compile(value, &matcher->regex, guards->error, sizeof guards->error);
}

int na_check_text(na_guards *guards, enum na_attribute attribute, uint32_t kind, const char *name, const char *value,
                  uint32_t flags) {
  bool metadata = attribute == NA_ATTRIBUTE_METADATA || attribute == NA_ATTRIBUTE_LITERAL;
  bool named = attribute == NA_ATTRIBUTE_HEADER || metadata;
  char lower[256];
  na_check check = {.kind = NA_CHECK_TEXT, .what = (uint8_t)attribute};
  if ((unsigned)attribute > NA_ATTRIBUTE_LITERAL || named != (name != NULL))
    return na_guards_fail(guards, -EINVAL, "attribute %u is unknown, or has a name where none belongs or lacks one",
                          (unsigned)attribute);
  if (attribute == NA_ATTRIBUTE_HEADER) {
    if (strlen(name) >= sizeof lower)
      return na_guards_fail(guards, -E2BIG, "header name '%.40s...' is too long", name);
    for (size_t i = 0; i <= strlen(name); i++)
      lower[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] | 0x20 : name[i]);
    name = lower;
    settle_header(&name, &flags);
  }
  if (kind == NA_MATCH_TEMPLATE && attribute != NA_ATTRIBUTE_PATH)
    return na_guards_fail(guards, -EINVAL, "a template is for paths");
  int rc = fill_text(guards, &check.text, kind, name, value, flags);
  guards->keeps = guards->keeps || metadata; /* shadows are to tell what they find */
  return rc ? rc : append(guards, check);
}

int na_check_address(na_guards *guards, enum na_place place, const uint8_t *address, uint32_t prefix) {
  na_check check = {.kind = NA_CHECK_ADDRESS, .what = (uint8_t)place, .n = prefix};
  if ((unsigned)place > NA_PLACE_DESTINATION || prefix > 128)
    return na_guards_fail(guards, -EINVAL, "place %u is unknown, or prefix %u is longer than an address",
                          (unsigned)place, prefix);
  memcpy(check.address, address, sizeof check.address);
  return append(guards, check);
}

int na_check_port(na_guards *guards, uint32_t low, uint32_t high) {
  if (low > high || high > UINT16_MAX)
    return na_guards_fail(guards, -EINVAL, "%u..%u is no range of ports", low, high);
  return append(guards, (na_check){.kind = NA_CHECK_PORT, .port = {.low = (uint16_t)low, .high = (uint16_t)high}});
}

int na_check_text_holds(enum na_match_kind kind, const char *value, uint32_t flags, const char *text) {
  na_matcher matcher;
  char error[1];
  const na_str there = na_str_of(text);
  int rc = na_matcher_init(&matcher, kind, NULL, value, flags, error, sizeof error);
  if (rc)
    return rc;
  rc = na_matcher_named(&matcher, there.n ? &there : NULL);
  na_matcher_clear(&matcher);
  return rc;
}
