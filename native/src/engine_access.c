/* SPDX-License-Identifier: Apache-2.0
 *
 * Explaining what the guards of a port say, with no packet.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "engine.h"
#include "http_path.h"

#define HEAD_BYTES 65536

/* A question taken apart. */
typedef struct hearing {
  const na_inbound *inbound;
  na_address peer;
  na_address destination;
  na_authz authz;
  na_h1_head head;
  na_out *out;
  char text[HEAD_BYTES]; /* the request as a client would send it */
} hearing;

/* ---- the request ---- */

/* The path as it is given, or in its normal form. */
static void write_path(na_out *head, const char *path, bool normal, uint32_t slashes) {
  na_str part = {path, (uint32_t)strcspn(path, "?")};
  if (!normal) {
    na_out_str(head, part);
  } else if (head->size - head->n < (size_t)part.n * NA_PATH_GROWTH) {
    head->over = true;
  } else {
    long n = na_path_normalise(part, slashes, head->p + head->n);
    head->over = head->over || n < 0;
    head->n += n < 0 ? 0 : (size_t)n;
  }
  na_out_cstr(head, path + part.n);
}

/* -EINVAL when the pairs are none. */
static int write_headers(na_out *head, const char *p, size_t n) {
  for (const char *end = p + n; p < end;) {
    size_t name_n = strnlen(p, (size_t)(end - p));
    const char *value = p + name_n + 1;
    size_t value_n = value < end ? strnlen(value, (size_t)(end - value)) : 0;
    if (value >= end || value + value_n == end)
      return -EINVAL;
    na_out_header(head, (na_str){p, (uint32_t)name_n}, (na_str){value, (uint32_t)value_n});
    p = value + value_n + 1;
  }
  return 0;
}

/* Put the request in words, and read it as if it had come. */
static int read_as_sent(hearing *h, const na_access_question *question, bool normal) {
  const na_h1_limits limits = {.max_head_bytes = HEAD_BYTES, .max_headers = 100, .max_request_line = HEAD_BYTES};
  na_out head = {.p = h->text, .size = sizeof h->text};
  na_h1_error error;
  uint32_t scanned = 0;
  na_out_cstr(&head, question->method);
  na_out_cstr(&head, " ");
  write_path(&head, question->path ? question->path : "/", normal, na_inbound_slashes(h->inbound, question->port));
  na_out_cstr(&head, " HTTP/1.1\r\nhost: ");
  na_out_cstr(&head, question->authority ? question->authority : "");
  na_out_cstr(&head, "\r\n");
  int rc = write_headers(&head, question->headers, question->headers_n);
  na_out_cstr(&head, "\r\n");
  if (rc || head.over)
    return -EINVAL;
  int n = na_h1_parse_request(h->text, head.n, &scanned, &limits, &h->head, &error);
  return n == (int)head.n ? 0 : -EINVAL;
}

static int read_request(hearing *h, const na_access_question *question) {
  int rc = read_as_sent(h, question, false);
  return rc ? rc : read_as_sent(h, question, true);
}

/* ---- asking ---- */

static void line(na_out *out, const char *word, const char *rest) {
  na_out_cstr(out, word);
  na_out_cstr(out, "\t");
  na_out_cstr(out, rest);
  na_out_cstr(out, "\n");
}

static void write_verdict(na_out *out, const na_refusal *refusal) {
  na_out_cstr(out, "verdict\tdenied\t");
  na_out_u64(out, refusal->status);
  na_out_cstr(out, "\t");
  na_out_cstr(out, refusal->detail);
  na_out_cstr(out, "\n");
}

/* Explain stages up to the one that refuses; whether none did. */
static bool ask(hearing *h, const char *principal, const char *name, const na_stage *stage, bool of_request) {
  na_refusal refusal = {0};
  na_subject subject = {.authz = &h->authz,
                        .head = of_request ? &h->head : NULL,
                        .facts = {.peer = &h->peer,
                                  .destination = &h->destination,
                                  .request = of_request ? &h->head.request : NULL,
                                  .metadata = &h->authz.metadata}};
  if (!stage)
    return true;
  na_facts_set_principal(&subject.facts, na_str_of(principal ? principal : ""));
  line(h->out, "guards", name);
  for (; stage; stage = stage->next) {
    stage->kind->explain(stage, &subject, h->out);
    if (stage->kind->ask(stage, &subject, &refusal) == NA_VERDICT_DENY) {
      write_verdict(h->out, &refusal);
      return false;
    }
  }
  return true;
}

static const char *protocol_name(enum na_protocol protocol) {
  static const char *const names[] = {"tcp", "http", "detect", "refuse"};
  return names[protocol];
}

static void hear(hearing *h, const na_access_question *question) {
  uint32_t tag;
  na_guards *guards;
  enum na_protocol protocol = na_inbound_protocol(h->inbound, question->port, &tag);
  bool of_request = question->method && protocol != NA_PROTOCOL_TCP;
  line(h->out, "protocol", protocol_name(protocol));
  if (protocol == NA_PROTOCOL_REFUSE) {
    const na_refusal refusal = {.status = 503, .detail = "inbound_configuration_not_in_force"};
    write_verdict(h->out, &refusal);
    return;
  }
  const na_stage *stage =
      na_inbound_stages(h->inbound, question->port, of_request ? NA_GUARDED_REQUEST : NA_GUARDED_CONNECTION, &guards);
  if (ask(h, question->principal, "every", na_inbound_every(h->inbound), false) &&
      ask(h, question->principal, of_request ? "request" : "connection", stage, of_request))
    line(h->out, "verdict", "allowed");
}

int na_engine_explain_access(na_engine *engine, const na_access_question *question, char *out, size_t size) {
  const na_inbound *inbound =
      na_snapshot_inbound(na_snapshots_current(na_engine_snapshots(engine)), question->workload);
  na_out lines = {.p = out, .size = size ? size - 1 : 0};
  if (!inbound)
    return -ENOENT;
  hearing *h = calloc(1, sizeof *h);
  if (!h)
    return -ENOMEM;
  h->inbound = inbound;
  h->out = &lines;
  h->peer.port = question->source_port;
  h->destination.port = question->port;
  memcpy(h->peer.ip, question->source, sizeof h->peer.ip);
  memcpy(h->destination.ip, question->destination, sizeof h->destination.ip);
  int rc = question->method ? read_request(h, question) : 0;
  if (!rc)
    hear(h, question);
  na_authz_clear(&h->authz);
  free(h);
  if (rc)
    return rc;
  if (lines.over || !size)
    return -ENOSPC;
  out[lines.n] = '\0';
  return (int)lines.n;
}
