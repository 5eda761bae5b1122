/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing a set of domains while it is being built. Readers use na_domains_find (router.h).
 */
#ifndef NODEAGENT_ROUTER_DOMAINS_H
#define NODEAGENT_ROUTER_DOMAINS_H

#include "router.h"

int na_domains_empty(na_domains **out);
/* Replace *domains by a copy that may be changed, unless nobody else has it. -ENOMEM. */
int na_domains_own(na_domains **domains);
/* The first domain of vhost that another one has, or NULL. */
const char *na_domains_conflict(na_domains *domains, const na_vhost *vhost, const na_vhost **other);
/* Add all domains of vhost, none of which conflicts. -ENOMEM: nothing was added. */
int na_domains_add(na_domains *domains, na_vhost *vhost);
void na_domains_remove(na_domains *domains, const na_vhost *vhost);

#endif
