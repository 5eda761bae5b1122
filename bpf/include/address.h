/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
 *
 * 16-byte addresses in BPF programs.
 */
#ifndef NODEAGENT_BPF_ADDRESS_H
#define NODEAGENT_BPF_ADDRESS_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nodeagent_abi.h"

#define AF_INET  2
#define AF_INET6 10

/* Keeps the compiler from merging the context accesses of two branches into one through a computed pointer, which the
 * verifier refuses ("dereference of modified ctx ptr"). */
#define KEEP_BRANCH() asm volatile("" ::: "memory")

/* Comparisons here have one branch, not one for each word: the verifier follows them all, and an address is compared
 * with sixteen others more than once. */

static __always_inline void set_mapped(struct na_address *a, __u32 ip4) {
  a->word[0] = 0;
  a->word[1] = 0;
  a->word[2] = bpf_htonl(0xffff);
  a->word[3] = ip4;
}

static __always_inline int is_mapped(const struct na_address *a) {
  return !(a->word[0] | a->word[1] | (a->word[2] ^ bpf_htonl(0xffff)));
}

static __always_inline int is_zero(const struct na_address *a) {
  return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

/* The unspecified address, which connect() takes for the host itself. */
static __always_inline int is_any(const struct na_address *a) {
  return is_zero(a) || (is_mapped(a) && !a->word[3]);
}

static __always_inline int is_loopback(const struct na_address *a) {
  if (is_mapped(a))
    return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
  return !(a->word[0] | a->word[1] | a->word[2] | (a->word[3] ^ bpf_htonl(1)));
}

static __always_inline int same_address(const struct na_address *a, const struct na_address *b) {
  return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
           (a->word[3] ^ b->word[3]));
}

/* To many, or an address of IPv6 that means nothing without its link. */
static __always_inline int is_of_link(const struct na_address *a) {
  __u32 first = bpf_ntohl(a->word[is_mapped(a) ? 3 : 0]);

  if (is_mapped(a))
    return first >= 0xe0000000;
  return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6;
}

static __always_inline int is_link_local4(const struct na_address *a) {
  return is_mapped(a) && (a->word[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
}

/* Whether an address is one of the workload's. */
static __always_inline int is_own(const struct na_workload_entry *workload, const struct na_address *address) {
  for (int i = 0; i < NA_OWN_ADDRESSES; i++)
    if (same_address(&workload->own[i], address))
      return 1;
  return 0;
}

#endif
