/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests as the codec makes them of bytes.
 */
#ifndef NODEAGENT_REQUEST_RIG_H
#define NODEAGENT_REQUEST_RIG_H

#include <string.h>

#include "cmocka_common.h"
#include "http1.h"

/* A head; valid until the next call. */
static na_h1_head *head_of(const char *bytes) {
  static na_h1_head head;
  na_h1_error error = {0};
  na_h1_limits limits = {.max_head_bytes = 65536, .max_headers = 100, .max_request_line = 8192};
  uint32_t scanned = 0;
  if (na_h1_parse_request(bytes, strlen(bytes), &scanned, &limits, &head, &error) <= 0)
    fail_msg("%s: %s", bytes, error.reason);
  return &head;
}

/* Its request; valid as long. */
__attribute__((unused)) static na_request *request_of(const char *bytes) {
  return &head_of(bytes)->request;
}

#endif
