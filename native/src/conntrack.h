/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a datagram was going before nftables redirected it. For connections the kernel tells by SO_ORIGINAL_DST; for
 * datagrams conntrack must be asked (ctnetlink).
 */
#ifndef NODEAGENT_CONNTRACK_H
#define NODEAGENT_CONNTRACK_H

#include "address.h"
#include "netns.h"

/* A socket to ask by, in a namespace; or -errno. It is the caller's to close. */
int na_conntrack_open(const na_netns *netns, const na_netns *home);
/* The original destination of what came from `client` to `here`, both of one family, by UDP. 0; -ENOENT: it was not
 * redirected; or -errno. Waits for the kernel, which answers within the call. */
int na_conntrack_original(int fd, const na_address *client, const na_address *here, na_address *out);

#endif
