/* SPDX-License-Identifier: Apache-2.0
 *
 * The PROXY protocol, version 2 (HAProxy, proxy-protocol.txt 2.2), as Istio's application tunnels have it: the first
 * bytes of a connection to the application tell who is connected to what, and in TLV 0xD0 the client's SPIFFE ID.
 */
#ifndef NODEAGENT_PROXY_PROTOCOL_H
#define NODEAGENT_PROXY_PROTOCOL_H

#include <stddef.h>

#include "address.h"

/* Signature and length, two IPv6 addresses with ports, and a TLV with an identity. */
#define NA_PROXY_HEADER_MAX (16 + 36 + 3 + 2048)

/* Write the header; its length. An identity that is too long (NA_SPIFFE_MAX) is left out, as an empty one is. */
size_t na_proxy_header(const na_address *source, const na_address *destination, const char *identity,
                       uint8_t out[NA_PROXY_HEADER_MAX]);

#endif
