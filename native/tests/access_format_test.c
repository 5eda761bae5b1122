/* SPDX-License-Identifier: Apache-2.0 */
#include <nodeagent/access_format.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_common.h"
#include "engine.h"

#define SET(record, field, text) memcpy((record)->field, text, sizeof text)

static na_access_record request(void) {
  static const uint8_t client[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [13] = 1, [15] = 1};
  static const uint8_t server[16] = {0xfd, [15] = 7};
  na_access_record record = {.start_us = 1480521145123456,
                             .duration_us = 5400,
                             .upstream_us = 4200,
                             .bytes_in = 7,
                             .bytes_out = 295,
                             .cluster_tag = 3,
                             .status = 200,
                             .protocol = 1,
                             .http_minor = 1};
  memcpy(record.downstream_remote, client, 16);
  memcpy(record.upstream_remote, server, 16);
  record.downstream_remote_port = 41000;
  record.upstream_remote_port = 443;
  SET(&record, method, "GET");
  SET(&record, path, "/reviews/0?x=1");
  SET(&record, authority, "reviews:9080");
  SET(&record, user_agent, "a\n\"b\\");
  return record;
}

static const na_access_name name = {.tag = 3, .text = "outbound|9080||reviews"};

static char *formatted(const na_access_record *record, uint32_t format) {
  char *out = malloc(NA_ACCESS_LINE_MAX); /* exactly, so that ASan sees a byte too much */
  size_t used;
  assert_int_equal(na_access_format(NULL, record, 1, format, &name, 1, out, NA_ACCESS_LINE_MAX, &used), 1);
  assert_true(used < NA_ACCESS_LINE_MAX);
  out[used] = '\0';
  return out;
}

static void writes_istios_text(void **state) {
  na_access_record record = request();
  char *line = formatted(&record, NA_ACCESS_TEXT);
  assert_string_equal(line, "[2016-11-30T15:52:25.123Z] \"GET /reviews/0?x=1 HTTP/1.1\" 200 - - - \"-\" 7 295 5 4 "
                            "\"-\" \"a\\x0a\"b\\\" \"-\" \"reviews:9080\" \"[fd00::7]:443\" outbound|9080||reviews "
                            "- - 10.1.0.1:41000 - -\n");
  free(line);
}

static void writes_json(void **state) {
  na_access_record record = request();
  char *line = formatted(&record, NA_ACCESS_JSON);
  assert_non_null(strstr(line, "\"user_agent\":\"a\\n\\\"b\\\\\","));
  assert_non_null(strstr(line, "\"response_code\":200,"));
  assert_non_null(strstr(line, "\"upstream_local_address\":null,"));
  assert_string_equal(line + strlen(line) - 2, "}\n");
  free(line);
}

static void names_catch_alls(void **state) {
  na_access_record record = request();
  record.cluster_tag = 9;
  char *line = formatted(&record, NA_ACCESS_TEXT);
  assert_non_null(strstr(line, " PassthroughCluster "));
  free(line);
  record.inbound = 1;
  line = formatted(&record, NA_ACCESS_TEXT);
  assert_non_null(strstr(line, " InboundPassthroughCluster "));
  free(line);
}

static void names_peers_by_side(void **state) {
  static na_engine engine;
  na_principals_init(&engine.principals);
  na_access_record record = request();
  record.principal = na_principals_intern(&engine.principals, "spiffe://cluster.local/ns/a/sa/b");
  char out[NA_ACCESS_LINE_MAX + 1];
  size_t used;
  const char *ends[] = {" \"-\" \"spiffe://cluster.local/ns/a/sa/b\"\n",
                        " \"spiffe://cluster.local/ns/a/sa/b\" \"-\"\n"};
  for (uint8_t inbound = 0; inbound < 2; inbound++) {
    record.inbound = inbound;
    assert_int_equal(
        na_access_format(&engine, &record, 1, NA_ACCESS_IDENTITY_TEXT, &name, 1, out, NA_ACCESS_LINE_MAX, &used), 1);
    out[used] = '\0';
    assert_string_equal(out + used - strlen(ends[inbound]), ends[inbound]);
  }
  na_principals_free(&engine.principals);
}

/* In JSON, where a line may have more fields than others. */
static void says_who_audits(void **state) {
  static na_engine engine;
  na_principals_init(&engine.policies);
  na_access_record record = request();
  char out[NA_ACCESS_LINE_MAX + 1];
  size_t used;
  const char *ends[] = {",\"x_forwarded_for\":null}\n",
                        ",\"x_forwarded_for\":null,\"audited_by\":\"ns[a]-policy[b]-rule[0]\"}\n",
                        ",\"x_forwarded_for\":null,\"audited_by\":\"overflow\"}\n"};
  const uint32_t ids[] = {0, na_principals_intern(&engine.policies, "ns[a]-policy[b]-rule[0]"), UINT32_MAX};
  for (size_t i = 0; i < COUNT(ids); i++) {
    record.audit = ids[i];
    assert_int_equal(na_access_format(&engine, &record, 1, NA_ACCESS_JSON, &name, 1, out, NA_ACCESS_LINE_MAX, &used),
                     1);
    out[used] = '\0';
    assert_string_equal(out + used - strlen(ends[i]), ends[i]);
  }
  na_principals_free(&engine.policies);
}

/* The longest that a line can be: every byte escaped. */
static void the_longest_line_fits(void **state) {
  static char long_name[NA_ACCESS_NAME_MAX + 100];
  na_access_record record;
  memset(long_name, 1, sizeof long_name - 1);
  memset(&record, 0xff, sizeof record);
  record.cluster_tag = 3;
  record.protocol = 1;
  char *const texts[] = {record.method,     record.authority,     record.path,
                         record.user_agent, record.forwarded_for, record.request_id,
                         record.route,      record.detail,        record.upstream_failure};
  const size_t sizes[] = {sizeof record.method,     sizeof record.authority,     sizeof record.path,
                          sizeof record.user_agent, sizeof record.forwarded_for, sizeof record.request_id,
                          sizeof record.route,      sizeof record.detail,        sizeof record.upstream_failure};
  for (size_t i = 0; i < COUNT(texts); i++) {
    memset(texts[i], 1, sizes[i] - 1);
    texts[i][sizes[i] - 1] = '\0';
  }
  na_access_name longest = {.tag = 3, .text = long_name};
  char *out = malloc(NA_ACCESS_LINE_MAX);
  size_t used;
  assert_int_equal(na_access_format(NULL, &record, 1, NA_ACCESS_JSON, &longest, 1, out, NA_ACCESS_LINE_MAX, &used), 1);
  assert_true(used > 6 * NA_ACCESS_NAME_MAX && used <= NA_ACCESS_LINE_MAX);
  free(out);
}

static void stops_where_a_line_might_not_fit(void **state) {
  na_access_record records[3] = {request(), request(), request()};
  char *out = malloc(NA_ACCESS_LINE_MAX + 100);
  size_t used;
  assert_int_equal(na_access_format(NULL, records, 3, NA_ACCESS_TEXT, &name, 1, out, NA_ACCESS_LINE_MAX + 100, &used),
                   1);
  assert_int_equal(na_access_format(NULL, records, 3, NA_ACCESS_TEXT, &name, 1, out, NA_ACCESS_LINE_MAX - 1, &used), 0);
  assert_int_equal(used, 0);
  assert_int_equal(na_access_format(NULL, records, 3, 7, &name, 1, out, NA_ACCESS_LINE_MAX, &used), -EINVAL);
  free(out);
}

static void lists_each_tag_once(void **state) {
  na_access_record records[5] = {{.cluster_tag = 7}, {.cluster_tag = 0}, {.cluster_tag = 9}, {.cluster_tag = 7}};
  uint32_t tags[5];
  assert_int_equal(na_access_tags(records, 5, tags), 2);
  assert_int_equal(tags[0], 7);
  assert_int_equal(tags[1], 9);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(writes_istios_text),  cmocka_unit_test(writes_json),
      cmocka_unit_test(names_catch_alls),    cmocka_unit_test(the_longest_line_fits),
      cmocka_unit_test(lists_each_tag_once), cmocka_unit_test(names_peers_by_side),
      cmocka_unit_test(says_who_audits),     cmocka_unit_test(stops_where_a_line_might_not_fit),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
