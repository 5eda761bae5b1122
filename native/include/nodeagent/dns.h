/* SPDX-License-Identifier: Apache-2.0
 *
 * Names that the engine answers to workloads whose DNS is captured (NA_LISTENER_DNS). Questions for other names, and
 * for other records than addresses, go on to the name server that the workload asked, from its own namespace.
 *
 * Part of the engine's interface: include <nodeagent/engine.h>, which tells its conventions.
 */
#ifndef NODEAGENT_DNS_H
#define NODEAGENT_DNS_H

#ifndef NODEAGENT_ENGINE_H
#error "include <nodeagent/engine.h>"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Addresses of a name at most: those of a service without a virtual address are its workloads'. */
#define NA_DNS_MAX_ADDRESSES 1024
/* Seconds that clients may remember an answer (as ztunnel's). */
#define NA_DNS_TTL 30

/* Add or replace a name with n addresses (16 bytes each); with none, remove it. The name is a host in lower case, or
 * `*.` and a domain for all below it. With `/NAMESPACE` behind it, it is for workloads of that namespace only, and goes
 * before the one without. -EINVAL for what cannot be a name, and more than NA_DNS_MAX_ADDRESSES. */
NA_API int na_builder_dns(na_builder *b, const char *name, const uint8_t *addresses, size_t n);

/* The search list of a workload, domains with spaces between, that of its namespace first:
 * `default.svc.cluster.local svc.cluster.local cluster.local`. Once; -EEXIST for another one. */
NA_API int na_workload_search(na_engine *engine, uint32_t id, const char *domains);

/* What the name is for a client with such a search list, by the data path's own code: writes the known name into `name`
 * and up to max addresses (16 bytes each). Returns how many there are, of both families; -ENOENT: others are asked. */
NA_API int na_engine_explain_name(na_engine *engine, const char *question, const char *domains, char *name,
                                  size_t name_size, uint8_t *addresses, size_t max);

#ifdef __cplusplus
}
#endif

#endif
