/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage of tokens: Envoy's jwt_authn filter. Built by tokens_build.c, asked by tokens.c; token_places.c finds
 * tokens in requests.
 */
#ifndef NODEAGENT_TOKENS_H
#define NODEAGENT_TOKENS_H

#include "authz.h"
#include "jwt.h"

/* Bounds; above them -E2BIG. */
#define NA_MAX_PROVIDERS   256 /* of a stage */
#define NA_MAX_TOKEN_ITEMS 128 /* of one provider: keys, places, audiences, headers and claims, each */
#define NA_MAX_TOKEN_RULES 1024
#define NA_MAX_NEEDS       256 /* of a rule */
/* Tokens that a request may have for one need; with more it is refused. */
#define NA_MAX_TOKENS 8

typedef struct na_token_place {
  uint8_t kind; /* enum na_token_place_kind */
  char *name;   /* of headers: lower case */
  char *prefix;
} na_token_place;

typedef struct na_texts {
  char **items;
  uint32_t n;
} na_texts;

typedef struct na_claim_header {
  char *claim;
  char *header;
} na_claim_header;

typedef struct na_provider {
  char *name;
  char *issuer;       /* empty: any */
  char *metadata_key; /* empty: none */
  char *payload_header;
  bool pad_payload;
  bool forward;
  uint32_t clock_skew_s;
  na_texts audiences;
  na_texts split_claims;
  na_jwt_key *keys;
  uint32_t nkeys;
  na_token_place *places;
  uint32_t nplaces;
  na_claim_header *claims;
  uint32_t nclaims;
  unsigned char digest[NA_JWT_DIGEST]; /* of the keys */
} na_provider;

enum na_need_kind { NA_NEED_TOKEN, NA_NEED_ANY, NA_NEED_ALL, NA_NEED_MISSING, NA_NEED_MISSING_OR_FAILED };

/* A node of a requirement, in prefix order. */
typedef struct na_token_need {
  uint8_t kind;      /* enum na_need_kind */
  uint32_t n;        /* ANY, ALL: operands */
  uint32_t size;     /* of the requirement that begins here, itself included */
  uint32_t provider; /* TOKEN: index */
  na_texts audiences;
} na_token_need;

typedef struct na_token_rule {
  bool has_path;
  na_matcher path;
  na_token_need *needs; /* none: nothing is needed */
  uint32_t n;
} na_token_rule;

struct na_tokens {
  na_stage stage;
  bool pass_preflight; /* CORS preflight requests need no tokens */
  na_provider *providers;
  uint32_t nproviders;
  na_token_rule *rules;
  uint32_t nrules;
};

static inline const na_tokens *na_tokens_of(const na_stage *stage) {
  return na_container_of((na_stage *)stage, na_tokens, stage);
}

/* tokens_build.c */
int na_tokens_seal(na_guards *guards, na_stage *stage);
void na_tokens_free(na_stage *stage);

/* ---- token_places.c ---- */

typedef struct na_found_token {
  const na_token_place *place;
  na_str text;
} na_found_token;

/* The tokens of a request at places, in the order of the places. */
typedef struct na_found_tokens {
  na_found_token items[NA_MAX_TOKENS];
  uint32_t n;
  bool overflow;                /* there are more */
  char *decoded[NA_MAX_TOKENS]; /* memory of parameters that were percent-encoded */
  uint32_t ndecoded;
} na_found_tokens;

/* Look at one more place, unless one like it was looked at already. -ENOMEM. */
int na_tokens_find(na_found_tokens *found, const na_token_place *place, const na_request *request);
void na_found_tokens_clear(na_found_tokens *found);
/* Whether two places are one and the same. */
bool na_token_place_eq(const na_token_place *a, const na_token_place *b);

#endif
