/* SPDX-License-Identifier: Apache-2.0
 *
 * Values of headers with command operators: what is read is written without an end of line, and within the room.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "header_format.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void write_any(const na_format_source *source, const na_format_part *part, na_out *out) {
  if (part->command == NA_FORMAT_START_TIME)
    na_format_time(part->text, 1545094923045678, out);
  else
    na_out_cstr(out, "value");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const na_format_source source = {write_any};
  char *text = strndup((const char *)data, size);
  char error[160], room[512];
  na_format *format;
  if (na_format_new(text, &format, error, sizeof error) == 0) {
    na_out out = {.p = room, .size = sizeof room};
    na_format_write(format, &source, &out);
    CHECK(out.n <= sizeof room);
    CHECK(strpbrk(text, "\r\n") || !memchr(room, '\n', out.n));
    na_format_is_empty(format, &source);
    na_format_free(format);
  }
  free(text);
  return 0;
}
