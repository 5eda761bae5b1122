/* SPDX-License-Identifier: Apache-2.0
 *
 * How long BPF programs run, as the kernel counts it while somebody wants to know.
 */
#include <nodeagent/bpf.h>

#include <bpf/bpf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

int na_bpf_stats_begin(void) {
  int fd = bpf_enable_stats(BPF_STATS_RUN_TIME);
  return fd < 0 ? -errno : fd;
}

static bool begins_with_one(const char *name, const char *const *prefixes, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
      return true;
  return false;
}

int na_bpf_run_time(const char *const *prefixes, size_t n, uint64_t *ns, uint64_t *runs) {
  uint32_t id = 0;
  *ns = *runs = 0;
  while (!bpf_prog_get_next_id(id, &id)) {
    struct bpf_prog_info info = {0};
    uint32_t size = sizeof info;
    int fd = bpf_prog_get_fd_by_id(id);
    if (fd < 0 && errno == ENOENT) /* gone meanwhile */
      continue;
    if (fd < 0)
      return -errno;
    int failed = bpf_obj_get_info_by_fd(fd, &info, &size);
    close(fd);
    if (!failed && begins_with_one(info.name, prefixes, n)) {
      *ns += info.run_time_ns;
      *runs += info.run_cnt;
    }
  }
  return errno == ENOENT ? 0 : -errno;
}
