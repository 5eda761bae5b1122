/* SPDX-License-Identifier: Apache-2.0 */
#include <nodeagent/bpf.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's ENOTSUPP, which user space has no name for: the map type has no such operation. */
#define KERNEL_ENOTSUPP 524
/* Bytes kept of what libbpf says. The end is what counts: a verifier log has the reason in its last lines. */
#define LOG_KEPT 4096
/* Elements that are counted in one call; no bucket of a hash map is nearly as long. */
#define COUNT_CHUNK 1024

/* What linux/bpf.h has since Linux 6.4, and libbpf since 1.2. */
#define NETFILTER_SECTION "netfilter"
#define NETFILTER_PROGRAM ((enum bpf_prog_type)32)
#define NETFILTER_ATTACH  ((enum bpf_attach_type)45)

struct netfilter_link {
  uint32_t program_fd, target, attach_type, link_flags;
  uint32_t pf, hook;
  int32_t priority;
  uint32_t flags;
};

struct na_bpf {
  struct bpf_object *object;
};

static _Thread_local char log_text[LOG_KEPT];
static _Thread_local size_t log_used;
static pthread_once_t log_once = PTHREAD_ONCE_INIT;

static void log_append(const char *text, size_t n) {
  if (n >= LOG_KEPT) {
    text += n - (LOG_KEPT - 1);
    n = LOG_KEPT - 1;
  }
  size_t room = LOG_KEPT - 1 - log_used;
  if (n > room) {
    memmove(log_text, log_text + (n - room), log_used - (n - room));
    log_used -= n - room;
  }
  memcpy(log_text + log_used, text, n);
  log_used += n;
  log_text[log_used] = '\0';
}

static int on_print(enum libbpf_print_level level, const char *format, va_list arguments) {
  if (level != LIBBPF_WARN)
    return 0;
  char *text = NULL;
  int n = vasprintf(&text, format, arguments);
  if (n > 0)
    log_append(text, (size_t)n);
  if (n >= 0)
    free(text);
  return n;
}

static void log_install(void) {
  libbpf_set_print(on_print);
}

/* Every call that may fail begins here. */
static void log_begin(void) {
  pthread_once(&log_once, log_install);
  log_used = 0;
  log_text[0] = '\0';
}

const char *na_bpf_error(void) {
  return log_text;
}

static void type_netfilter_programs(struct bpf_object *object) {
  struct bpf_program *program;
  bpf_object__for_each_program(program, object) {
    if (strcmp(bpf_program__section_name(program), NETFILTER_SECTION) != 0)
      continue;
    bpf_program__set_type(program, NETFILTER_PROGRAM);
    bpf_program__set_expected_attach_type(program, NETFILTER_ATTACH);
  }
}

int na_bpf_open(const char *path, na_bpf **out) {
  log_begin();
  na_bpf *object = calloc(1, sizeof *object);
  if (!object)
    return -ENOMEM;
  object->object = bpf_object__open_file(path, NULL);
  if (!object->object) {
    int error = -errno;
    free(object);
    return error;
  }
  type_netfilter_programs(object->object);
  *out = object;
  return 0;
}

void na_bpf_close(na_bpf *object) {
  bpf_object__close(object->object);
  free(object);
}

int na_bpf_limit_map(na_bpf *object, const char *map, uint32_t entries) {
  log_begin();
  struct bpf_map *found = bpf_object__find_map_by_name(object->object, map);
  return found ? bpf_map__set_max_entries(found, entries) : -ENOENT;
}

/* libbpf takes a pinned map only when all of its layout is the same, its size too. */
static int take_pinned_size(struct bpf_map *map, const char *path) {
  struct bpf_map_info info = {0};
  uint32_t size = sizeof info;
  int fd = bpf_obj_get(path);
  if (fd < 0)
    return errno == ENOENT ? 0 : -errno;
  int error = bpf_obj_get_info_by_fd(fd, &info, &size);
  close(fd);
  return error ? error : bpf_map__set_max_entries(map, info.max_entries);
}

int na_bpf_share_map(na_bpf *object, const char *map, const char *path) {
  log_begin();
  struct bpf_map *found = bpf_object__find_map_by_name(object->object, map);
  if (!found)
    return -ENOENT;
  int error = take_pinned_size(found, path);
  return error ? error : bpf_map__set_pin_path(found, path);
}

int na_bpf_load(na_bpf *object) {
  log_begin();
  return bpf_object__load(object->object);
}

int na_bpf_map(const na_bpf *object, const char *map) {
  return bpf_object__find_map_fd_by_name(object->object, map);
}

int na_bpf_attach(const na_bpf *object, const char *program, int target_fd) {
  log_begin();
  struct bpf_program *found = bpf_object__find_program_by_name(object->object, program);
  if (!found)
    return -ENOENT;
  return bpf_link_create(bpf_program__fd(found), target_fd, bpf_program__expected_attach_type(found), NULL);
}

int na_bpf_attach_netfilter(const na_bpf *object, const char *program, uint32_t pf, uint32_t hook, int32_t priority) {
  log_begin();
  struct bpf_program *found = bpf_object__find_program_by_name(object->object, program);
  if (!found)
    return -ENOENT;
  struct netfilter_link link = {
      .program_fd = (uint32_t)bpf_program__fd(found),
      .attach_type = NETFILTER_ATTACH,
      .pf = pf,
      .hook = hook,
      .priority = priority,
  };
  int fd = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof link);
  return fd < 0 ? -errno : fd;
}

int na_bpf_replace(const na_bpf *object, const char *program, int link_fd) {
  log_begin();
  struct bpf_program *found = bpf_object__find_program_by_name(object->object, program);
  return found ? bpf_link_update(link_fd, bpf_program__fd(found), NULL) : -ENOENT;
}

int na_bpf_detach(int link_fd) {
  log_begin();
  return bpf_link_detach(link_fd);
}

int na_bpf_iterate(const na_bpf *object, const char *program, int map_fd) {
  log_begin();
  struct bpf_program *found = bpf_object__find_program_by_name(object->object, program);
  if (!found)
    return -ENOENT;
  union bpf_iter_link_info target = {.map = {.map_fd = (__u32)map_fd}};
  LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &target, .iter_info_len = sizeof target);
  int link = bpf_link_create(bpf_program__fd(found), 0, BPF_TRACE_ITER, &options);
  if (link < 0)
    return link;
  int iterator = bpf_iter_create(link);
  close(link); /* the iterator holds it */
  return iterator;
}

int na_bpf_try(const na_bpf *object, const char *program, const void *packet, uint32_t packet_size, void *context,
               uint32_t context_size, uint32_t times, uint32_t *verdict) {
  log_begin();
  struct bpf_program *found = bpf_object__find_program_by_name(object->object, program);
  if (!found)
    return -ENOENT;
  LIBBPF_OPTS(bpf_test_run_opts, options, .repeat = (int)times);
  if (packet_size) {
    options.data_in = packet;
    options.data_size_in = packet_size;
  }
  if (context_size) {
    options.ctx_in = options.ctx_out = context;
    options.ctx_size_in = options.ctx_size_out = context_size;
  }
  int error = bpf_prog_test_run_opts(bpf_program__fd(found), &options);
  *verdict = options.retval;
  return error;
}

int na_bpf_pin(int fd, const char *path) {
  log_begin();
  return bpf_obj_pin(fd, path);
}

int na_bpf_get(const char *path) {
  log_begin();
  return bpf_obj_get(path);
}

int na_bpf_map_update(int map_fd, const void *key, const void *value) {
  log_begin();
  return bpf_map_update_elem(map_fd, key, value, BPF_ANY);
}

int na_bpf_map_lookup(int map_fd, const void *key, void *value) {
  log_begin();
  return bpf_map_lookup_elem(map_fd, key, value);
}

int na_bpf_map_delete(int map_fd, const void *key) {
  log_begin();
  return bpf_map_delete_elem(map_fd, key);
}

int na_bpf_map_next(int map_fd, const void *key, void *next) {
  log_begin();
  return bpf_map_get_next_key(map_fd, key, next);
}

/* For map types without batches, and kernels before 5.6. */
static int update_one_by_one(int map_fd, const char *keys, const char *values, uint32_t n, uint32_t key_size,
                             uint32_t value_size) {
  for (uint32_t i = 0; i < n; i++) {
    int error = bpf_map_update_elem(map_fd, keys + (size_t)i * key_size, values + (size_t)i * value_size, BPF_ANY);
    if (error) {
      const char *reason = strerror(-error);
      log_append(reason, strlen(reason));
      return (int)i;
    }
  }
  return (int)n;
}

int na_bpf_map_update_batch(int map_fd, const void *keys, const void *values, uint32_t n, uint32_t key_size,
                            uint32_t value_size) {
  log_begin();
  uint32_t done = n;
  int error = n ? bpf_map_update_batch(map_fd, keys, values, &done, NULL) : 0;
  if (!error)
    return (int)n;
  if (error == -KERNEL_ENOTSUPP || error == -EINVAL || error == -EOPNOTSUPP)
    return update_one_by_one(map_fd, keys, values, n, key_size, value_size);
  const char *reason = strerror(-error);
  log_append(reason, strlen(reason));
  return (int)done;
}

/* The kernel's place in the map is four bytes; above them is whether there is one. */
#define BEGUN (UINT64_C(1) << 32)

int na_bpf_map_read(int map_fd, uint64_t *position, void *keys, void *values, uint32_t n) {
  log_begin();
  uint32_t at = (uint32_t)*position;
  int error = bpf_map_lookup_batch(map_fd, *position ? &at : NULL, &at, keys, values, &n, NULL);
  if (error && error != -ENOENT)
    return error;
  *position = error ? 0 : BEGUN | at;
  return (int)n;
}

int na_bpf_map_count(int map_fd, uint32_t key_size, uint32_t value_size) {
  char *keys = calloc(COUNT_CHUNK, key_size), *values = calloc(COUNT_CHUNK, value_size);
  uint64_t position = 0;
  int total = keys && values ? 0 : -ENOMEM;
  bool more = total == 0;
  while (more) {
    int n = na_bpf_map_read(map_fd, &position, keys, values, COUNT_CHUNK);
    total = n < 0 ? n : total + n;
    more = n >= 0 && position;
  }
  free(keys);
  free(values);
  return total;
}

int na_bpf_cpus(void) {
  log_begin();
  return libbpf_num_possible_cpus();
}
