/* SPDX-License-Identifier: Apache-2.0
 *
 * What HBONE peers write: authorities, SPIFFE IDs, baggage, forwarded, traceparent. What is accepted must hold
 * together.
 */
#include <stdlib.h>

#include "hbone_authority.h"
#include "hbone_headers.h"
#include "spiffe.h"

#define CHECK(x) ((x) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* An address that was accepted is accepted again in its own form, and means the same. */
static void check_authority(na_str text) {
  na_hbone_authority got, again;
  char formatted[NA_ADDRESS_TEXT];
  if (!na_hbone_parse_authority(text, &got))
    return;
  CHECK(got.address.port > 0);
  if (got.host.n) {
    CHECK(got.host.p == text.p && got.host.n < text.n && na_ip_is_any(got.address.ip));
    return;
  }
  na_address_format(&got.address, formatted);
  bool parsed = na_hbone_parse_authority(na_str_of(formatted), &again);
  CHECK(parsed && na_address_eq(&got.address, &again.address));
}

static bool within(na_str part, na_str whole) {
  return part.n == 0 || (part.p >= whole.p && part.p + part.n <= whole.p + whole.n);
}

static void check_spiffe(na_str text) {
  na_spiffe id;
  if (!na_spiffe_parse(text.p, text.n, &id))
    return;
  CHECK(id.trust_domain.n > 0 && id.trust_domain.n <= 255 && !memchr(text.p, '\0', text.n));
  CHECK(9 + id.trust_domain.n + id.path.n == text.n);
  CHECK((id.namespace.n > 0) == (id.service_account.n > 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  /* A copy without a terminator: reading on is an error that ASan sees. */
  char *copy = malloc(n ? n : 1), forwarded[64];
  if (n)
    memcpy(copy, data, n);
  na_str text = {copy, (uint32_t)n};
  check_authority(text);
  check_spiffe(text);
  CHECK(within(na_baggage_find(text, "service.name"), text));
  CHECK(within(na_forwarded_client(text), text));
  (void)na_traceparent_valid(text);
  na_address client = {.port = 1};
  size_t written = na_forwarded_format(&client, text, forwarded, sizeof forwarded);
  CHECK(written < sizeof forwarded && strlen(forwarded) <= written);
  free(copy);
  return 0;
}
