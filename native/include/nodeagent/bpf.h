/* SPDX-License-Identifier: Apache-2.0
 *
 * BPF objects, links, maps and pins, by libbpf: what nodeagent/dataplane/bpf.py is made of. Nothing here is the
 * engine's, and no worker calls it.
 *
 * Functions return 0 (or a descriptor) or -errno; na_bpf_error() has libbpf's words on the calling thread's last
 * failure. Descriptors returned are the caller's to close.
 */
#ifndef NODEAGENT_BPF_H
#define NODEAGENT_BPF_H

#include <nodeagent/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct na_bpf na_bpf;

/* Open the object file at `path`, compiled with BTF; nothing reaches the kernel yet. */
NA_API int na_bpf_open(const char *path, na_bpf **out);
/* Unload what is neither pinned nor attached, and free. */
NA_API void na_bpf_close(na_bpf *object);
/* Before na_bpf_load(): share the map with other objects and later runs by a pin at `path`; a map that is pinned there
 * already is taken instead of a new one, with as many entries as it has. -ENOENT: the object has no such map. */
NA_API int na_bpf_share_map(na_bpf *object, const char *map, const char *path);
/* Before na_bpf_share_map(): make the map for so many entries. -ENOENT. */
NA_API int na_bpf_limit_map(na_bpf *object, const char *map, uint32_t entries);
/* Create the maps and have the verifier check the programs. -EINVAL also when a pinned map has another layout. */
NA_API int na_bpf_load(na_bpf *object);
/* The descriptor of a map, which stays the object's; -ENOENT. */
NA_API int na_bpf_map(const na_bpf *object, const char *map);
/* Attach a program to a cgroup's directory or a network namespace, by its section's hook. Returns the link's
 * descriptor, with which the attachment ends unless it is pinned. */
NA_API int na_bpf_attach(const na_bpf *object, const char *program, int target_fd);
/* Attach a program (section "netfilter", Linux 6.4) to a hook of the calling thread's network namespace: pf is
 * NFPROTO_*, hook NF_INET_*. Returns the link's descriptor; -EBUSY: a program with that priority is attached there.
 * Such a link's program cannot be replaced. */
NA_API int na_bpf_attach_netfilter(const na_bpf *object, const char *program, uint32_t pf, uint32_t hook,
                                   int32_t priority);
/* Replace the program of a link, atomically. */
NA_API int na_bpf_replace(const na_bpf *object, const char *program, int link_fd);
/* End a link's attachment; it stays a link without one. */
NA_API int na_bpf_detach(int link_fd);
/* A descriptor that runs an iterator program over a map's elements when it is read, and gives what the program writes,
 * to its end. */
NA_API int na_bpf_iterate(const na_bpf *object, const char *program, int map_fd);

/* Run a program `times` over with nothing attached (BPF_PROG_TEST_RUN), where its type has that: on a context, which it
 * may change, and a packet, each with a size of 0 where there is none. `verdict` is what it returned at last. */
NA_API int na_bpf_try(const na_bpf *object, const char *program, const void *packet, uint32_t packet_size,
                      void *context, uint32_t context_size, uint32_t times, uint32_t *verdict);

/* Pin a link or map at `path` on a bpf filesystem; get one that is pinned. */
NA_API int na_bpf_pin(int fd, const char *path);
NA_API int na_bpf_get(const char *path);

/* Elements of a map; sizes are the caller's to know, per-CPU values are 8-byte aligned arrays by possible CPU. */
NA_API int na_bpf_map_update(int map_fd, const void *key, const void *value);
NA_API int na_bpf_map_lookup(int map_fd, const void *key, void *value);
NA_API int na_bpf_map_delete(int map_fd, const void *key);
/* The key after `key` (NULL: the first); -ENOENT at the end. */
NA_API int na_bpf_map_next(int map_fd, const void *key, void *next);
/* n elements at once, keys and values side by side in arrays. Returns how many were written; fewer than n when the map
 * is full or refuses one (na_bpf_error()). Kernels without batches write one by one. */
NA_API int na_bpf_map_update_batch(int map_fd, const void *keys, const void *values, uint32_t n, uint32_t key_size,
                                   uint32_t value_size);
/* Up to n elements of a hash map, keys and values side by side in arrays: from the beginning (*position 0), or from
 * where the call before has left *position, which is 0 again after the last ones. Returns how many. Those that come and
 * go meanwhile may be missed. n is at least 1024, or -ENOSPC for a crowded bucket. */
NA_API int na_bpf_map_read(int map_fd, uint64_t *position, void *keys, void *values, uint32_t n);
/* How many keys a hash map holds; -ENOTSUPP (524) for other types. Those that come and go meanwhile may be missed. */
NA_API int na_bpf_map_count(int map_fd, uint32_t key_size, uint32_t value_size);
/* CPUs that a per-CPU value has room for. */
NA_API int na_bpf_cpus(void);

/* Have the kernel count how long programs run, until the descriptor that is returned is closed (Linux 5.8). */
NA_API int na_bpf_stats_begin(void);
/* Nanoseconds and runs that were counted of all loaded programs whose names begin with one of the prefixes. */
NA_API int na_bpf_run_time(const char *const *prefixes, size_t n, uint64_t *ns, uint64_t *runs);

/* What libbpf and the verifier said, their last lines; "" if nothing. Valid until the thread's next call. */
NA_API const char *na_bpf_error(void);

#ifdef __cplusplus
}
#endif

#endif
