/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking for tokens, as Envoy's jwt_authn does (authenticator.cc, verifier.cc), but that where several tokens are there
 * all of them must be good, always.
 */
#include "tokens.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "http_request.h"
#include "token_effects.h"
#include "worker.h"

/* Of a path in www-authenticate, as Envoy. */
#define REALM_BYTES 256

typedef struct token_asking {
  const na_tokens *tokens;
  na_subject *subject;
  uint64_t now_s;
} token_asking;

static void count(const na_subject *subject, enum na_counter_id id) {
  if (subject->worker)
    na_worker_count(subject->worker, id);
}

/* ---- one token ---- */

/* The worker's cache; NULL when there is no worker, or no memory for it. */
static na_jwt_cache *cache_of(const token_asking *asking) {
  na_worker *worker = asking->subject->worker;
  if (worker && !worker->jwts)
    (void)na_jwt_cache_new(worker->config->jwt_cache_tokens, worker->config->jwt_cache_bytes, &worker->jwts);
  return worker ? worker->jwts : NULL;
}

static enum na_jwt_status check_claims(const token_asking *asking, const na_provider *provider, const na_jwt *jwt,
                                       const na_texts *audiences) {
  if (*provider->issuer && !na_str_eq(jwt->issuer, provider->issuer))
    return NA_JWT_UNKNOWN_ISSUER;
  enum na_jwt_status status = na_jwt_check_time(jwt, asking->now_s, provider->clock_skew_s);
  if (status)
    return status;
  return na_jwt_is_for(jwt, audiences->items, audiences->n) ? NA_JWT_OK : NA_JWT_AUDIENCE;
}

static enum na_jwt_status verify(const token_asking *asking, const na_provider *provider, na_jwt *jwt,
                                 na_jwt_cache *cache, const unsigned char digest[NA_JWT_DIGEST]) {
  count(asking->subject, NA_COUNTER_JWT_VERIFIED);
  enum na_jwt_status status = na_jwt_verify(jwt, provider->keys, provider->nkeys);
  if (!status && cache && na_jwt_cache_add(cache, digest, jwt))
    count(asking->subject, NA_COUNTER_JWT_EVICTED);
  return status;
}

/* Whether the text is a good token of the provider; then *out is it, with a reference. */
static enum na_jwt_status check_token(const token_asking *asking, const na_provider *provider, na_str text,
                                      const na_texts *audiences, na_jwt **out) {
  unsigned char digest[NA_JWT_DIGEST];
  na_jwt_cache *cache = cache_of(asking);
  if (cache && na_jwt_cache_digest(cache, provider->digest, text, digest))
    cache = NULL;
  na_jwt *known = cache ? na_jwt_cache_find(cache, digest) : NULL;
  na_jwt *jwt = known ? na_jwt_ref(known) : NULL;
  enum na_jwt_status status = known ? NA_JWT_OK : na_jwt_parse(text, &jwt);
  if (!status)
    status = check_claims(asking, provider, jwt, audiences);
  if (known)
    count(asking->subject, NA_COUNTER_JWT_CACHED);
  else if (!status)
    status = verify(asking, provider, jwt, cache, digest);
  if (known && status == NA_JWT_EXPIRED)
    na_jwt_cache_drop(cache, digest);
  if (status)
    na_jwt_unref(jwt);
  *out = status ? NULL : jwt;
  return status;
}

/* ---- needs ---- */

/* Good tokens; what comes of them comes when all is well. */
typedef struct good_tokens {
  struct {
    const na_provider *provider;
    const na_token_place *place;
    na_jwt *jwt;
  } items[NA_MAX_TOKENS];
  uint32_t n;
} good_tokens;

static void keep_good(good_tokens *good, const na_provider *provider, const na_token_place *place, na_jwt *jwt) {
  good->items[good->n].provider = provider;
  good->items[good->n].place = place;
  good->items[good->n++].jwt = jwt;
}

/* Let the tokens have their effects if the status allows it; they are given back. */
static enum na_jwt_status conclude(const token_asking *asking, good_tokens *good, enum na_jwt_status status) {
  for (uint32_t i = 0; i < good->n; i++) {
    if (!status && na_token_effects(asking->subject, good->items[i].provider, good->items[i].place, good->items[i].jwt))
      status = NA_JWT_NO_MEMORY;
    na_jwt_unref(good->items[i].jwt);
  }
  return status;
}

static enum na_jwt_status find_all(const token_asking *asking, const na_provider *provider, na_found_tokens *found) {
  for (uint32_t i = 0; i < provider->nplaces; i++)
    if (na_tokens_find(found, &provider->places[i], asking->subject->facts.request))
      return NA_JWT_NO_MEMORY;
  return found->overflow ? NA_JWT_MULTIPLE : NA_JWT_OK;
}

/* A token of one provider. */
static enum na_jwt_status need_token(const token_asking *asking, const na_token_need *need) {
  const na_provider *provider = &asking->tokens->providers[need->provider];
  const na_texts *audiences = need->audiences.n ? &need->audiences : &provider->audiences;
  na_found_tokens found = {.n = 0};
  good_tokens good = {.n = 0};
  enum na_jwt_status status = find_all(asking, provider, &found);
  if (!status && !found.n)
    status = NA_JWT_MISSING;
  for (uint32_t i = 0; i < found.n && !status; i++) {
    na_jwt *jwt;
    status = check_token(asking, provider, found.items[i].text, audiences, &jwt);
    if (!status)
      keep_good(&good, provider, found.items[i].place, jwt);
  }
  status = conclude(asking, &good, status);
  na_found_tokens_clear(&found);
  return status;
}

/* Whether a provider is one of those that the group names; NULL, or a group that names none: of all. */
static bool is_of_group(const na_token_need *group, uint32_t provider) {
  bool names_any = false;
  for (uint32_t i = 0, at = 1; group && i < group->n; at += group[at].size, i++) {
    if (group[at].kind != NA_NEED_TOKEN)
      continue;
    names_any = true;
    if (group[at].provider == provider)
      return true;
  }
  return !names_any;
}

static bool has_place(const na_provider *provider, const na_token_place *place) {
  for (uint32_t i = 0; i < provider->nplaces; i++)
    if (na_token_place_eq(&provider->places[i], place))
      return true;
  return false;
}

/* The first provider of the group from which a token of that issuer may be in that place. */
static const na_provider *provider_of(const token_asking *asking, const na_token_need *group,
                                      const na_token_place *place, na_str issuer) {
  for (uint32_t i = 0; i < asking->tokens->nproviders; i++) {
    const na_provider *provider = &asking->tokens->providers[i];
    if (is_of_group(group, i) && has_place(provider, place) &&
        (!*provider->issuer || na_str_eq(issuer, provider->issuer)))
      return provider;
  }
  return NULL;
}

static enum na_jwt_status check_any(const token_asking *asking, const na_token_need *group, const na_found_token *token,
                                    good_tokens *good) {
  na_jwt *jwt;
  enum na_jwt_status status = na_jwt_parse(token->text, &jwt);
  if (status)
    return status;
  const na_provider *provider = provider_of(asking, group, token->place, jwt->issuer);
  na_jwt_unref(jwt);
  if (!provider)
    return NA_JWT_UNKNOWN_ISSUER;
  status = check_token(asking, provider, token->text, &provider->audiences, &jwt);
  if (!status)
    keep_good(good, provider, token->place, jwt);
  return status;
}

/* No token, or good ones; `failed`: whatever is there. */
static enum na_jwt_status need_nothing(const token_asking *asking, const na_token_need *group, bool failed) {
  na_found_tokens found = {.n = 0};
  good_tokens good = {.n = 0};
  enum na_jwt_status status = NA_JWT_OK;
  for (uint32_t i = 0; i < asking->tokens->nproviders && !status; i++)
    if (is_of_group(group, i))
      status = find_all(asking, &asking->tokens->providers[i], &found);
  for (uint32_t i = 0; i < found.n && (!status || failed); i++) {
    enum na_jwt_status one = check_any(asking, group, &found.items[i], &good);
    status = status ? status : one;
  }
  status = conclude(asking, &good, failed && status != NA_JWT_NO_MEMORY ? NA_JWT_OK : status);
  na_found_tokens_clear(&found);
  return status;
}

static enum na_jwt_status ask_need(const token_asking *asking, const na_token_need *need);

/* Of two failures, the one that tells more; Envoy: AnyVerifierImpl. */
static enum na_jwt_status telling(enum na_jwt_status a, enum na_jwt_status b) {
  if (b == NA_JWT_MISSING || (b == NA_JWT_UNKNOWN_ISSUER && a != NA_JWT_MISSING))
    return a;
  return b;
}

static enum na_jwt_status ask_any(const token_asking *asking, const na_token_need *group) {
  enum na_jwt_status result = NA_JWT_MISSING;
  bool may_miss = false, may_fail = false;
  for (uint32_t i = 0, at = 1; i < group->n; at += group[at].size, i++) {
    may_miss = may_miss || group[at].kind == NA_NEED_MISSING;
    may_fail = may_fail || group[at].kind == NA_NEED_MISSING_OR_FAILED;
    if (group[at].kind == NA_NEED_MISSING || group[at].kind == NA_NEED_MISSING_OR_FAILED)
      continue;
    enum na_jwt_status status = ask_need(asking, &group[at]);
    if (!status)
      return NA_JWT_OK;
    result = telling(result, status);
  }
  if (!may_miss && !may_fail)
    return result;
  enum na_jwt_status status = need_nothing(asking, group, may_fail);
  return status ? telling(result, status) : NA_JWT_OK;
}

static enum na_jwt_status ask_all(const token_asking *asking, const na_token_need *group) {
  enum na_jwt_status status = NA_JWT_OK;
  for (uint32_t i = 0, at = 1; i < group->n && !status; at += group[at].size, i++)
    status = ask_need(asking, &group[at]);
  return status;
}

static enum na_jwt_status ask_need(const token_asking *asking, const na_token_need *need) {
  switch ((enum na_need_kind)need->kind) {
  case NA_NEED_TOKEN:
    return need_token(asking, need);
  case NA_NEED_ANY:
    return ask_any(asking, need);
  case NA_NEED_ALL:
    return ask_all(asking, need);
  case NA_NEED_MISSING:
  case NA_NEED_MISSING_OR_FAILED:
    return need_nothing(asking, NULL, need->kind == NA_NEED_MISSING_OR_FAILED);
  }
  return NA_JWT_MISSING;
}

/* ---- the stage ---- */

static const na_token_rule *rule_for(const na_tokens *tokens, na_str path) {
  for (uint32_t i = 0; i < tokens->nrules; i++)
    if (!tokens->rules[i].has_path || na_matcher_text(&tokens->rules[i].path, path))
      return &tokens->rules[i];
  return NULL;
}

static bool has_header(const na_request *request, const char *name) {
  const na_header *header = na_h1_find(request, na_str_of(name));
  return header && header->value.n;
}

/* Fetch standard 4.8: it never has credentials. */
static bool is_preflight(const na_request *request) {
  return na_str_eq(request->method, "OPTIONS") && has_header(request, "origin") &&
         has_header(request, "access-control-request-method");
}

static enum na_jwt_status check_request(const na_tokens *tokens, na_subject *subject) {
  const token_asking asking = {.tokens = tokens, .subject = subject, .now_s = (uint64_t)time(NULL)};
  const na_token_rule *rule = rule_for(tokens, subject->facts.request->path);
  return rule && rule->n ? ask_need(&asking, rule->needs) : NA_JWT_OK;
}

/* `Bearer realm="<where>"`; kept on the request. What would end the quoted string is percent-encoded. */
static void challenge(na_subject *subject, enum na_jwt_status status, na_header *header, na_refusal *refusal) {
  const na_request *request = subject->facts.request;
  char text[2048];
  na_out out = {.p = text, .size = sizeof text - 1};
  na_out_cstr(&out, "Bearer realm=\"");
  na_out_str(&out, request->scheme);
  na_out_cstr(&out, "://");
  na_out_str(&out, request->authority);
  for (uint32_t i = 0; i < request->path_query.n && i < REALM_BYTES; i++) {
    char c = request->path_query.p[i];
    na_out_bytes(&out, c == '"' ? "%22" : c == '\\' ? "%5C" : &c, c == '"' || c == '\\' ? 3 : 1);
  }
  na_out_cstr(&out, status == NA_JWT_MISSING ? "\"" : "\", error=\"invalid_token\"");
  text[out.n] = '\0';
  free(subject->authz->challenge);
  subject->authz->challenge = out.over ? strdup("Bearer") : strdup(text);
  if (!subject->authz->challenge)
    return;
  *header = (na_header){.name = na_str_of("www-authenticate"), .value = na_str_of(subject->authz->challenge)};
  refusal->headers = header;
  refusal->nheaders = 1;
}

static enum na_verdict ask(const na_stage *stage, na_subject *subject, na_refusal *refusal) {
  const na_tokens *tokens = na_tokens_of(stage);
  if (subject->again) /* they were good when the request came, and may be taken out of it */
    return NA_VERDICT_ALLOW;
  enum na_jwt_status status = na_token_sanitize(subject, tokens) ? NA_JWT_NO_MEMORY : NA_JWT_OK;
  if (!status && tokens->pass_preflight && is_preflight(subject->facts.request)) {
    count(subject, NA_COUNTER_JWT_PREFLIGHTS);
    return NA_VERDICT_ALLOW;
  }
  if (!status)
    status = check_request(tokens, subject);
  count(subject, status ? NA_COUNTER_JWT_DENIED : NA_COUNTER_JWT_ALLOWED);
  if (!status)
    return NA_VERDICT_ALLOW;
  *refusal = (na_refusal){.status = status == NA_JWT_AUDIENCE ? 403 : 401,
                          .detail = na_jwt_status_detail(status),
                          .body = na_str_of(na_jwt_status_text(status))};
  if (subject->authz)
    challenge(subject, status, &subject->authz->challenge_header, refusal);
  return NA_VERDICT_DENY;
}

static void explain(const na_stage *stage, const na_subject *subject, na_out *out) {
  na_subject copy = *subject;
  copy.worker = NULL;
  copy.head = NULL;
  copy.authz = NULL;
  na_out_cstr(out, "stage\ttokens\ntokens\t");
  na_out_cstr(out, na_jwt_status_text(check_request(na_tokens_of(stage), &copy)));
  na_out_cstr(out, "\n");
}

const na_stage_kind na_stage_tokens = {
    .name = "tokens", .keeps = true, .ask = ask, .explain = explain, .seal = na_tokens_seal, .free = na_tokens_free};
