/* SPDX-License-Identifier: Apache-2.0
 *
 * Stages of tokens under construction.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "heap.h"
#include "http1_parse.h"
#include "tokens.h"

static int no_memory(na_guards *guards) {
  return na_guards_fail(guards, -ENOMEM, "out of memory");
}

static const char *or_empty(const char *text) {
  return text ? text : "";
}

/* ---- life ---- */

static void texts_clear(na_texts *texts) {
  for (uint32_t i = 0; i < texts->n; i++)
    free(texts->items[i]);
  free(texts->items);
  *texts = (na_texts){0};
}

static void provider_clear(na_provider *provider) {
  for (uint32_t i = 0; i < provider->nkeys; i++)
    na_jwt_key_clear(&provider->keys[i]);
  for (uint32_t i = 0; i < provider->nplaces; i++) {
    free(provider->places[i].name);
    free(provider->places[i].prefix);
  }
  for (uint32_t i = 0; i < provider->nclaims; i++) {
    free(provider->claims[i].claim);
    free(provider->claims[i].header);
  }
  free(provider->keys);
  free(provider->places);
  free(provider->claims);
  texts_clear(&provider->audiences);
  texts_clear(&provider->split_claims);
  free(provider->name);
  free(provider->issuer);
  free(provider->metadata_key);
  free(provider->payload_header);
}

static void rule_clear(na_token_rule *rule) {
  for (uint32_t i = 0; i < rule->n; i++)
    texts_clear(&rule->needs[i].audiences);
  free(rule->needs);
  na_matcher_clear(&rule->path);
}

void na_tokens_free(na_stage *stage) {
  na_tokens *tokens = na_container_of(stage, na_tokens, stage);
  for (uint32_t i = 0; i < tokens->nproviders; i++)
    provider_clear(&tokens->providers[i]);
  for (uint32_t i = 0; i < tokens->nrules; i++)
    rule_clear(&tokens->rules[i]);
  free(tokens->providers);
  free(tokens->rules);
  free(tokens);
}

int na_guards_tokens(na_guards *guards, int pass_preflight) {
  int rc = na_guards_begin(guards);
  if (rc)
    return rc;
  na_tokens *tokens = calloc(1, sizeof *tokens);
  if (!tokens)
    return no_memory(guards);
  tokens->stage.kind = &na_stage_tokens;
  tokens->pass_preflight = pass_preflight != 0;
  rc = na_guards_append(guards, NA_GUARDED_REQUEST, &tokens->stage);
  if (!rc)
    guards->tokens = tokens;
  return rc;
}

/* ---- providers ---- */

/* The stage that is being built; NULL with the error set. */
static na_tokens *building(na_guards *guards, const char *what, int *rc) {
  *rc = na_guards_begin(guards);
  if (!*rc && !guards->tokens)
    *rc = na_guards_fail(guards, -EINVAL, "%s belongs to no stage of tokens", what);
  return *rc ? NULL : guards->tokens;
}

/* The issuer that is being built, which has `n` things of a kind; NULL with the error set. */
static na_provider *last_provider(na_guards *guards, const char *what, int *rc) {
  na_tokens *tokens = building(guards, what, rc);
  if (tokens && !tokens->nproviders)
    *rc = na_guards_fail(guards, -EINVAL, "%s belongs to no provider", what);
  return *rc ? NULL : &tokens->providers[tokens->nproviders - 1];
}

/* Make room for one more of at most NA_MAX_TOKEN_ITEMS. */
static int grow(na_guards *guards, void *items, uint32_t n, size_t size, const char *what) {
  if (n == NA_MAX_TOKEN_ITEMS)
    return na_guards_fail(guards, -E2BIG, "more than %d of %s", NA_MAX_TOKEN_ITEMS, what);
  return na_grow(items, n, size) ? no_memory(guards) : 0;
}

static int add_text(na_guards *guards, na_texts *texts, const char *text, const char *what) {
  int rc = grow(guards, &texts->items, texts->n, sizeof *texts->items, what);
  if (!rc && !(texts->items[texts->n] = strdup(text)))
    return no_memory(guards);
  texts->n += !rc;
  return rc;
}

static int check_header(na_guards *guards, const char *name) {
  na_str view = na_str_of(name);
  if (!view.n || na_h1_span(view.p, view.n, NA_C_TOKEN) != view.n)
    return na_guards_fail(guards, -EINVAL, "'%.64s' is no header name", name);
  if (na_header_is_protected(view) || na_str_ieq(view, "host"))
    return na_guards_fail(guards, -EINVAL, "header '%s' cannot be changed", name);
  return 0;
}

int na_guards_provider(na_guards *guards, const na_provider_config *config) {
  int rc;
  na_tokens *tokens = building(guards, "a provider", &rc);
  if (!tokens)
    return rc;
  if (tokens->nproviders == NA_MAX_PROVIDERS)
    return na_guards_fail(guards, -E2BIG, "more than %d providers", NA_MAX_PROVIDERS);
  if (config->payload_header && *config->payload_header && (rc = check_header(guards, config->payload_header)))
    return rc;
  na_provider provider = {.name = strdup(or_empty(config->name)),
                          .issuer = strdup(or_empty(config->issuer)),
                          .metadata_key = strdup(or_empty(config->metadata_key)),
                          .payload_header = na_lower_copy(or_empty(config->payload_header)),
                          .pad_payload = config->pad_payload != 0,
                          .forward = config->forward != 0,
                          .clock_skew_s = config->clock_skew_s};
  if (!provider.name || !provider.issuer || !provider.metadata_key || !provider.payload_header ||
      na_grow(&tokens->providers, tokens->nproviders, sizeof provider)) {
    provider_clear(&provider);
    return no_memory(guards);
  }
  tokens->providers[tokens->nproviders++] = provider;
  return 0;
}

int na_provider_audience(na_guards *guards, const char *audience) {
  int rc;
  na_provider *provider = last_provider(guards, "an audience", &rc);
  return provider ? add_text(guards, &provider->audiences, audience, "audiences") : rc;
}

int na_provider_split_claim(na_guards *guards, const char *claim) {
  int rc;
  na_provider *provider = last_provider(guards, "a claim", &rc);
  return provider ? add_text(guards, &provider->split_claims, claim, "claims") : rc;
}

int na_provider_key(na_guards *guards, const char *kid, const char *algorithm, const uint8_t *der, size_t n) {
  int rc;
  char why[128] = "out of memory";
  na_provider *provider = last_provider(guards, "a key", &rc);
  if (provider)
    rc = grow(guards, &provider->keys, provider->nkeys, sizeof *provider->keys, "keys");
  if (rc)
    return rc;
  rc = na_jwt_key_init(&provider->keys[provider->nkeys], kid, algorithm, der, n, why, sizeof why);
  if (rc)
    return na_guards_fail(guards, rc, "provider '%s', key '%.64s': %s", provider->name, or_empty(kid), why);
  provider->nkeys++;
  return 0;
}

static int add_place(na_provider *provider, enum na_token_place_kind kind, const char *name, const char *prefix) {
  na_token_place place = {(uint8_t)kind, strdup(name), strdup(prefix)};
  if (!place.name || !place.prefix || na_grow(&provider->places, provider->nplaces, sizeof place)) {
    free(place.name);
    free(place.prefix);
    return -ENOMEM;
  }
  provider->places[provider->nplaces++] = place;
  return 0;
}

int na_provider_place(na_guards *guards, enum na_token_place_kind kind, const char *name, const char *prefix) {
  int rc;
  na_provider *provider = last_provider(guards, "a place", &rc);
  if (provider && ((unsigned)kind > NA_TOKEN_COOKIE || !*name))
    return na_guards_fail(guards, -EINVAL, "provider '%s': a token's place is unknown, or has no name", provider->name);
  if (provider)
    rc = grow(guards, &provider->places, provider->nplaces, sizeof *provider->places, "places");
  if (rc)
    return rc;
  char *lower = kind == NA_TOKEN_HEADER ? na_lower_copy(name) : NULL;
  rc = add_place(provider, kind, lower ? lower : name, or_empty(prefix));
  free(lower);
  return rc ? no_memory(guards) : 0;
}

int na_provider_claim_header(na_guards *guards, const char *claim, const char *header) {
  int rc;
  na_provider *provider = last_provider(guards, "a claim", &rc);
  if (provider && !(rc = check_header(guards, header)))
    rc = grow(guards, &provider->claims, provider->nclaims, sizeof *provider->claims, "claims for headers");
  if (rc)
    return rc;
  na_claim_header both = {strdup(claim), na_lower_copy(header)};
  if (!both.claim || !both.header) {
    free(both.claim);
    free(both.header);
    return no_memory(guards);
  }
  provider->claims[provider->nclaims++] = both;
  return 0;
}

/* ---- rules ---- */

int na_guards_token_rule(na_guards *guards, uint32_t kind, const char *path, uint32_t flags) {
  int rc;
  na_token_rule rule = {.has_path = path != NULL};
  na_tokens *tokens = building(guards, "a rule", &rc);
  if (!tokens)
    return rc;
  if (tokens->nrules == NA_MAX_TOKEN_RULES)
    return na_guards_fail(guards, -E2BIG, "more than %d rules", NA_MAX_TOKEN_RULES);
  if (path)
    rc = na_matcher_init(&rule.path, (enum na_match_kind)kind, NULL, path, flags, guards->error, sizeof guards->error);
  if (!rc && na_grow(&tokens->rules, tokens->nrules, sizeof rule)) {
    na_matcher_clear(&rule.path);
    rc = no_memory(guards);
  }
  if (!rc)
    tokens->rules[tokens->nrules++] = rule;
  return rc;
}

static int add_need(na_guards *guards, na_token_need need) {
  int rc;
  na_tokens *tokens = building(guards, "a need", &rc);
  if (tokens && !tokens->nrules)
    rc = na_guards_fail(guards, -EINVAL, "a need belongs to no rule");
  if (rc)
    return rc;
  na_token_rule *rule = &tokens->rules[tokens->nrules - 1];
  if (rule->n == NA_MAX_NEEDS)
    return na_guards_fail(guards, -E2BIG, "more than %d needs of a rule", NA_MAX_NEEDS);
  if (na_grow(&rule->needs, rule->n, sizeof need))
    return no_memory(guards);
  rule->needs[rule->n++] = need;
  return 0;
}

static int find_provider(na_guards *guards, const char *name, uint32_t *index) {
  int rc;
  na_tokens *tokens = building(guards, "a need", &rc);
  for (uint32_t i = 0; tokens && i < tokens->nproviders; i++)
    if (strcmp(tokens->providers[i].name, name) == 0) {
      *index = i;
      return 0;
    }
  return tokens ? na_guards_fail(guards, -EINVAL, "provider '%s' is needed and not there", name) : rc;
}

int na_need_token(na_guards *guards, const char *provider, const char *const *audiences, size_t n) {
  na_token_need need = {.kind = NA_NEED_TOKEN};
  int rc = find_provider(guards, provider, &need.provider);
  if (!rc)
    rc = add_need(guards, need);
  if (rc)
    return rc;
  na_token_rule *rule = &guards->tokens->rules[guards->tokens->nrules - 1];
  for (size_t i = 0; i < n && !rc; i++)
    rc = add_text(guards, &rule->needs[rule->n - 1].audiences, audiences[i], "audiences");
  return rc;
}

int na_need_any(na_guards *guards, uint32_t n) {
  return add_need(guards, (na_token_need){.kind = NA_NEED_ANY, .n = n});
}

int na_need_all(na_guards *guards, uint32_t n) {
  return add_need(guards, (na_token_need){.kind = NA_NEED_ALL, .n = n});
}

int na_need_nothing(na_guards *guards, int failed) {
  return add_need(guards, (na_token_need){.kind = failed ? NA_NEED_MISSING_OR_FAILED : NA_NEED_MISSING});
}

/* ---- completing ---- */

/* Fill in the size of the need at `at`, and of those within; false when it is no whole one. */
static bool measure(na_token_need *needs, uint32_t n, uint32_t at, uint32_t depth) {
  if (at >= n || depth > NA_MAX_CHECK_DEPTH)
    return false;
  bool group = needs[at].kind == NA_NEED_ANY || needs[at].kind == NA_NEED_ALL;
  uint32_t size = 1;
  for (uint32_t i = 0; group && i < needs[at].n; i++) {
    if (!measure(needs, n, at + size, depth + 1))
      return false;
    size += needs[at + size].size;
  }
  needs[at].size = size;
  return true;
}

static bool digest_key(EVP_MD_CTX *ctx, const na_jwt_key *key) {
  const char *kid = or_empty(key->kid);
  unsigned char *der = NULL;
  int n = i2d_PUBKEY(key->pkey, &der);
  bool done = n > 0 && EVP_DigestUpdate(ctx, kid, strlen(kid) + 1) == 1 &&
              EVP_DigestUpdate(ctx, &key->algorithm, sizeof key->algorithm) == 1 &&
              EVP_DigestUpdate(ctx, &n, sizeof n) == 1 && EVP_DigestUpdate(ctx, der, (size_t)n) == 1;
  OPENSSL_free(der);
  return done;
}

/* The digest of all that a signature is verified with. */
static int digest_keys(na_provider *provider) {
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  bool done = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
  for (uint32_t i = 0; done && i < provider->nkeys; i++)
    done = digest_key(ctx, &provider->keys[i]);
  done = done && EVP_DigestFinal_ex(ctx, provider->digest, NULL) == 1;
  EVP_MD_CTX_free(ctx);
  return done ? 0 : -ENOMEM;
}

static int complete(na_provider *provider) {
  int rc = digest_keys(provider);
  if (rc || provider->nplaces)
    return rc;
  rc = add_place(provider, NA_TOKEN_HEADER, "authorization", "Bearer "); /* as Envoy */
  return rc ? rc : add_place(provider, NA_TOKEN_PARAM, "access_token", "");
}

int na_tokens_seal(na_guards *guards, na_stage *stage) {
  na_tokens *tokens = na_container_of(stage, na_tokens, stage);
  for (uint32_t i = 0; i < tokens->nrules; i++) {
    na_token_rule *rule = &tokens->rules[i];
    if (rule->n && !(measure(rule->needs, rule->n, 0, 0) && rule->needs[0].size == rule->n))
      return na_guards_fail(guards, -EINVAL, "what rule %u of tokens needs is no whole expression", i + 1);
  }
  for (uint32_t i = 0; i < tokens->nproviders; i++)
    if (complete(&tokens->providers[i]))
      return no_memory(guards);
  return 0;
}
