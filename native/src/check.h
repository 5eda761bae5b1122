/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks: expressions over what is known of a connection or request, in prefix order. Built through na_check_* calls
 * (guards_build.c), then immutable. To evaluate one allocates nothing.
 */
#ifndef NODEAGENT_CHECK_H
#define NODEAGENT_CHECK_H

#include "address.h"
#include "matcher.h"
#include "metadata.h"
#include "spiffe.h"

/* Bounds of one expression; above them -E2BIG. */
#define NA_MAX_CHECKS      65536
#define NA_MAX_CHECK_DEPTH 32

enum na_check_kind {
  NA_CHECK_ALWAYS,
  NA_CHECK_ALL,
  NA_CHECK_ANY,
  NA_CHECK_NOT,
  NA_CHECK_TEXT,
  NA_CHECK_ADDRESS,
  NA_CHECK_PORT,
};

typedef struct na_check {
  uint8_t kind;  /* enum na_check_kind */
  uint8_t what;  /* enum na_attribute of a text, enum na_place of an address */
  uint32_t n;    /* ALL, ANY: operands; ADDRESS: bits of the prefix */
  uint32_t size; /* of the expression that begins here, itself included */
  union {
    na_matcher text;
    uint8_t address[16];
    struct {
      uint16_t low;
      uint16_t high;
    } port;
  };
} na_check;

typedef struct na_expression {
  na_check *checks;
  uint32_t n;
} na_expression;

/* What is asked about. Whoever fills it in keeps what it points to for as long as it is used. */
typedef struct na_facts {
  na_str principal; /* the peer's SPIFFE ID; empty: nobody vouches for it */
  na_spiffe id;     /* its parts */
  const na_address *peer;
  const na_address *destination;
  na_str sni;                  /* empty: none */
  const na_request *request;   /* NULL: a connection */
  const na_metadata *metadata; /* NULL: none */
} na_facts;

/* Fill in principal and id. */
void na_facts_set_principal(na_facts *facts, na_str principal);
/* Whether the expression holds. */
bool na_check_holds(const na_check *check, const na_facts *facts);
/* Fill in the sizes of the `n` checks, which must be one whole expression. -EINVAL if they are not, -E2BIG. */
int na_expression_seal(na_expression *expression);
void na_expression_clear(na_expression *expression);

#endif
