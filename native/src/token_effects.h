/* SPDX-License-Identifier: Apache-2.0
 *
 * What a good token does to its request: claims in headers and metadata, the token itself taken out.
 */
#ifndef NODEAGENT_TOKEN_EFFECTS_H
#define NODEAGENT_TOKEN_EFFECTS_H

#include "tokens.h"

/* Take away what a client may have written in the place of claims. -errno: the request must be refused. */
int na_token_sanitize(na_subject *subject, const na_tokens *tokens);
/* Let a token of the provider, found in that place, have its effects; on metadata only, when it is explained. */
int na_token_effects(na_subject *subject, const na_provider *provider, const na_token_place *place, const na_jwt *jwt);

#endif
