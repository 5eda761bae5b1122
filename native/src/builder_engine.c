/* SPDX-License-Identifier: Apache-2.0
 *
 * The public calls on an engine that concern nothing but its registry of snapshots.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "builder.h"

int na_builder_new(na_engine *engine, na_builder **out) {
  return na_snapshots_builder(na_engine_snapshots(engine), out);
}

const char *na_engine_error(const na_engine *engine) {
  return na_engine_snapshots((na_engine *)engine)->error;
}

uint64_t na_engine_settled(na_engine *engine) {
  return na_snapshots_settled(na_engine_snapshots(engine));
}

uint64_t na_engine_committed(na_engine *engine) {
  return na_snapshots_committed(na_engine_snapshots(engine));
}

int na_cluster_local(na_engine *engine, const char *cluster, const na_local_endpoint *local, size_t n) {
  na_snapshots *registry = na_engine_snapshots(engine);
  const na_cluster *found = na_snapshots_cluster(registry, cluster);
  if (!found)
    return -ENOENT;
  for (size_t i = 1; i < n; i++)
    if (na_local_endpoint_compare(&local[i - 1], local[i].address, local[i].port) >= 0) {
      na_snapshots_error(registry, "cluster '%s': local endpoint %zu is not behind the one before it", cluster, i);
      return -EINVAL;
    }
  na_hosts_note_local(found->hosts, local, n);
  return 0;
}

/* Split name\0value\0 pairs into headers; -EINVAL when they do not come in pairs or are too many. */
static int split_headers(const char *p, size_t n, na_header *headers, uint32_t *count) {
  const char *end = p + n;
  *count = 0;
  while (p < end) {
    const char *name_end = memchr(p, 0, (size_t)(end - p));
    const char *value_end = name_end ? memchr(name_end + 1, 0, (size_t)(end - name_end - 1)) : NULL;
    if (!value_end || *count == NA_H1_MAX_HEADERS)
      return -EINVAL;
    headers[*count] = (na_header){.name = {p, (uint32_t)(name_end - p)},
                                  .value = {name_end + 1, (uint32_t)(value_end - name_end - 1)}};
    ++*count;
    p = value_end + 1;
  }
  return 0;
}

static void fill_request(na_request *request, const char *method, const char *authority, const char *path) {
  size_t n = strcspn(path, "?");
  request->method = na_str_of(method);
  request->scheme = na_str_of("http");
  request->authority = na_str_of(authority);
  request->path = (na_str){path, (uint32_t)n};
  request->query = na_str_of(path[n] ? path + n + 1 : path + n);
  request->path_query = na_str_of(path);
}

int na_engine_explain_route(na_engine *engine, const char *table_name, const char *method, const char *authority,
                            const char *path, const char *headers, size_t n, char *route_name, size_t route_size,
                            char *cluster, size_t cluster_size) {
  na_header list[NA_H1_MAX_HEADERS];
  na_request request = {.headers = list};
  int rc = split_headers(headers, n, list, &request.nheaders);
  if (rc)
    return rc;
  fill_request(&request, method, authority, path);
  const na_table *table = na_snapshots_table(na_engine_snapshots(engine), table_name);
  bool wait;
  const na_vhost *vhost = table ? na_table_vhost(table, request.authority, &wait) : NULL;
  const na_route *route = vhost ? na_vhost_match(vhost, &request) : NULL;
  if (!route)
    return -ENOENT;
  snprintf(route_name, route_size, "%s", route->name);
  snprintf(cluster, cluster_size, "%s", route->ndestinations ? route->destinations[0].cluster : "");
  return 0;
}
