/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers made here: errors, redirects and direct responses.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

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

/* Send a complete response; `location` may be empty. */
static void reply(na_http_request *request, uint16_t status, na_str location, const char *body, size_t n) {
  char length[24], date[40];
  na_header headers[5];
  uint32_t count = 0;
  bool bodiless = status == 204 || status == 304;
  snprintf(length, sizeof length, "%zu", n);
  if (!bodiless)
    headers[count++] = header("content-length", na_str_of(length));
  if (n)
    headers[count++] = header("content-type", na_str_of("text/plain"));
  if (location.n)
    headers[count++] = header("location", location);
  headers[count++] = header("date", date_now(date, sizeof date));
  headers[count++] = header("server", na_str_of("nodeagent"));
  na_response response = {.status = status,
                          .reason = na_str_of(na_h1_reason(status)),
                          .headers = headers,
                          .nheaders = count,
                          .body = n ? NA_BODY_LENGTH : NA_BODY_NONE,
                          .local = true};
  if (bodiless || request->is_head)
    n = 0;
  request->state = NA_REQUEST_ANSWERING;
  request->status = status;
  request->bytes_out = n;
  if (request->responder->head(request, &response, (char *)body, n, true) < 0)
    na_request_abort(request, NA_FLAG_DC, "downstream_remote_disconnect");
  else
    na_request_finish(request);
}

void na_reply_text(na_http_request *request, uint16_t status, const char *text) {
  reply(request, status, (na_str){0}, text, text ? strlen(text) : 0);
}

void na_reply_direct(na_http_request *request) {
  const na_route *route = request->route;
  reply(request, route->respond.status, (na_str){0}, route->respond.body, route->respond.n);
}

void na_reply_redirect(na_http_request *request) {
  char location[8192];
  na_out out = {.p = location, .size = sizeof location};
  na_route_write_location(request->route, &na_request_head(request)->request, &out);
  if (out.over)
    na_request_reply(request, 500, NA_FLAG_LR, "redirect_too_long", "redirect location too long");
  else
    reply(request, request->route->redirect.code, (na_str){location, (uint32_t)out.n}, NULL, 0);
}
