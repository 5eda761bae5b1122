/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers made here: errors, redirects and direct responses.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "authz.h"
#include "http_request.h"

/* RFC 9110 5.6.7 */
static na_str date_now(char *out, size_t size) {
  time_t now = time(NULL);
  struct tm utc;
  gmtime_r(&now, &utc);
  return (na_str){out, (uint32_t)strftime(out, size, "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

static na_header header(const char *name, na_str value) {
  return (na_header){.name = na_str_of(name), .value = value};
}

/* What an answer is made of. */
typedef struct na_answer {
  uint16_t status;
  const char *body;
  size_t n;
  const na_header *headers; /* besides our own */
  uint32_t nheaders;
} na_answer;

static bool has_content_type(const na_answer *answer) {
  for (uint32_t i = 0; i < answer->nheaders; i++)
    if (na_str_ieq(answer->headers[i].name, "content-type"))
      return true;
  return false;
}

/* Send a complete response. */
static void reply(na_http_request *request, const na_answer *answer) {
  char length[24], date[40];
  na_header headers[NA_H1_MAX_HEADERS + 5];
  uint32_t count = 0;
  size_t n = answer->n;
  bool bodiless = answer->status == 204 || answer->status == 304;
  snprintf(length, sizeof length, "%zu", n);
  if (!bodiless)
    headers[count++] = header("content-length", na_str_of(length));
  if (n && !has_content_type(answer))
    headers[count++] = header("content-type", na_str_of("text/plain"));
  for (uint32_t i = 0; i < answer->nheaders && i < NA_H1_MAX_HEADERS; i++)
    headers[count++] = answer->headers[i];
  if (request->flags & NA_FLAG_UO) /* callers may tell it from other 503s */
    headers[count++] = header("x-envoy-overloaded", na_str_of("true"));
  headers[count++] = header("date", date_now(date, sizeof date));
  headers[count++] = header("server", na_str_of("nodeagent"));
  na_response response = {.status = answer->status,
                          .reason = na_str_of(na_h1_reason(answer->status)),
                          .headers = headers,
                          .nheaders = count,
                          .body = n ? NA_BODY_LENGTH : NA_BODY_NONE,
                          .local = true};
  if (bodiless || request->is_head)
    n = 0;
  request->state = NA_REQUEST_ANSWERING;
  request->status = answer->status;
  request->bytes_out = n;
  if (request->responder->head(request, &response, (char *)answer->body, n, true) < 0)
    na_request_abort(request, NA_FLAG_DC, "downstream_remote_disconnect");
  else
    na_request_finish(request);
}

void na_reply_text(na_http_request *request, uint16_t status, const char *text) {
  reply(request, &(na_answer){.status = status, .body = text, .n = text ? strlen(text) : 0});
}

void na_reply_refusal(na_http_request *request, const na_refusal *refusal) {
  reply(request, &(na_answer){.status = refusal->status,
                              .body = refusal->body.p,
                              .n = refusal->body.n,
                              .headers = refusal->headers,
                              .nheaders = refusal->nheaders});
}

void na_reply_direct(na_http_request *request) {
  const na_route *route = request->route;
  reply(request, &(na_answer){.status = route->respond.status, .body = route->respond.body, .n = route->respond.n});
}

static void reply_to(na_http_request *request, na_str location) {
  const na_header there = header("location", location);
  reply(request, &(na_answer){.status = (uint16_t)request->route->redirect.code, .headers = &there, .nheaders = 1});
}

void na_reply_redirect(na_http_request *request) {
  char location[8192];
  na_out out = {.p = location, .size = sizeof location};
  na_route_write_location(request->route, &na_request_head(request)->request, &out);
  if (out.over)
    na_request_reply(request, 500, NA_FLAG_LR, "redirect_too_long", "redirect location too long");
  else
    reply_to(request, (na_str){location, (uint32_t)out.n});
}
