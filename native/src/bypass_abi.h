/* SPDX-License-Identifier: Apache-2.0
 *
 * What BPF programs and user space both know, beside the engine's own types: three of the structs have names that the
 * engine uses, too.
 */
#ifndef NODEAGENT_BYPASS_ABI_H
#define NODEAGENT_BYPASS_ABI_H

#define na_address     na_bpf_address
#define na_destination na_bpf_destination
#define na_flow        na_bpf_flow
#include <nodeagent_abi.h>
#undef na_address
#undef na_destination
#undef na_flow

#endif
