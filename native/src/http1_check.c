/* SPDX-License-Identifier: Apache-2.0
 *
 * The parser as a pure evaluator, for tests and for explaining refusals.
 */
#include <errno.h>
#include <nodeagent/engine.h>
#include <stdio.h>

#include "http1.h"

/* The engine's defaults: see na_config. */
static const na_h1_limits default_limits = {.max_head_bytes = 61440, .max_headers = 100, .max_request_line = 8192};

int na_http1_check_request(const char *bytes, size_t n, char *why, size_t why_size) {
  na_h1_head head;
  na_h1_error error = {0, ""};
  uint32_t scanned = 0;
  int used = na_h1_parse_request(bytes, n, &scanned, &default_limits, &head, &error);
  if (why_size)
    snprintf(why, why_size, "%s", used < 0 ? error.reason : "");
  return used < 0 ? -(int)error.status : used;
}
