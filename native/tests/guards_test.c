/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards: what can be built, and what their checks see in a connection or request.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "authz.h"
#include "request_rig.h"
#include "uri_template.h"

#define WEB "spiffe://cluster.local/ns/shop/sa/web"

static na_address address_of(const char *ip, uint16_t port) {
  na_address address = {.port = port};
  char mapped[64];
  snprintf(mapped, sizeof mapped, "%s%s", strchr(ip, ':') ? "" : "::ffff:", ip);
  assert_int_equal(inet_pton(AF_INET6, mapped, address.ip), 1);
  return address;
}

/* Guards with one policy that is open for checks. */
static na_guards *one_policy(enum na_rule_action action) {
  na_guards *guards;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, action, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "p"), 0);
  return guards;
}

static const na_check *check_of(na_guards *guards) {
  int rc = na_guards_seal(guards);
  if (rc)
    fail_msg("%s", na_guards_error(guards));
  return ((na_rules *)guards->stages[NA_GUARDED_REQUEST])->policies[0].check.checks;
}

/* ---- texts ---- */

typedef struct text_case {
  enum na_attribute attribute;
  uint32_t kind;
  const char *name;
  const char *value;
  uint32_t flags;
  bool holds;
} text_case;

static void expect_text(const text_case *c, const na_facts *facts) {
  na_guards *guards = one_policy(NA_RULE_ALLOW);
  if (na_check_text(guards, c->attribute, c->kind, c->name, c->value, c->flags))
    fail_msg("%s", na_guards_error(guards));
  if (na_check_holds(check_of(guards), facts) != c->holds)
    fail_msg("attribute %u kind %u name %s value %s flags %u: %d expected", c->attribute, c->kind,
             c->name ? c->name : "-", c->value, c->flags, c->holds);
  na_guards_free(guards);
}

static void checks_who_the_peer_is(void **state) {
  const na_address peer = address_of("10.0.0.1", 999), destination = address_of("10.0.0.2", 80);
  na_facts facts = {.peer = &peer, .destination = &destination};
  static const text_case known[] = {
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, WEB, 0, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, WEB "2", 0, false},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, "spiffe://cluster.local/ns/shop/sa/we", 0, false},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_PREFIX, NULL, "spiffe://cluster.local/ns/shop/", 0, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_SUFFIX, NULL, "/sa/web", 0, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_REGEX, NULL, ".*/ns/shop/.*", 0, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_REGEX, NULL, "ns/shop", 0, false}, /* the whole text */
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_CONTAINS, NULL, "/NS/", NA_MATCH_IGNORE_CASE, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_PRESENT, NULL, "", 0, true},
      {NA_ATTRIBUTE_PRINCIPAL, NA_MATCH_EXACT, NULL, "x", NA_MATCH_INVERT, true},
      {NA_ATTRIBUTE_NAMESPACE, NA_MATCH_EXACT, NULL, "shop", 0, true},
      {NA_ATTRIBUTE_NAMESPACE, NA_MATCH_EXACT, NULL, "Shop", 0, false},
      {NA_ATTRIBUTE_NAMESPACE, NA_MATCH_PREFIX, NULL, "sho", 0, true},
      {NA_ATTRIBUTE_SERVICE_ACCOUNT, NA_MATCH_EXACT, NULL, "shop/web", 0, true},
      {NA_ATTRIBUTE_SERVICE_ACCOUNT, NA_MATCH_EXACT, NULL, "web", 0, false},
      {NA_ATTRIBUTE_TRUST_DOMAIN, NA_MATCH_EXACT, NULL, "cluster.local", 0, true},
      {NA_ATTRIBUTE_TRUST_DOMAIN, NA_MATCH_EXACT, NULL, "other", 0, false},
      {NA_ATTRIBUTE_SNI, NA_MATCH_EXACT, NULL, "a.test", 0, true},
      {NA_ATTRIBUTE_SNI, NA_MATCH_SUFFIX, NULL, ".test", 0, true},
  };
  facts.sni = na_str_of("a.test");
  na_facts_set_principal(&facts, na_str_of(WEB));
  for (size_t i = 0; i < COUNT(known); i++)
    expect_text(&known[i], &facts);
}

/* Nothing is true of what is not there. */
static void nobody_is_nobody(void **state) {
  const na_address peer = address_of("10.0.0.1", 999);
  na_facts facts = {.peer = &peer, .destination = &peer};
  const char *const ids[] = {"", "cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/../sa/web"};
  for (size_t i = 0; i < COUNT(ids); i++) {
    na_facts_set_principal(&facts, na_str_of(ids[i]));
    for (uint32_t attribute = 0; attribute <= NA_ATTRIBUTE_LITERAL; attribute++) {
      const char *name = attribute == NA_ATTRIBUTE_HEADER || attribute >= NA_ATTRIBUTE_METADATA ? "n" : NULL;
      expect_text(&(text_case){attribute, NA_MATCH_PRESENT, name, "", 0, false}, &facts);
      expect_text(&(text_case){attribute, NA_MATCH_PREFIX, name, "", 0, false}, &facts);
      expect_text(&(text_case){attribute, NA_MATCH_REGEX, name, ".*", 0, false}, &facts);
      expect_text(&(text_case){attribute, NA_MATCH_EXACT, name, "x", NA_MATCH_INVERT, false}, &facts);
    }
  }
}

static void checks_what_is_asked_for(void **state) {
  const na_address peer = address_of("10.0.0.1", 999);
  const na_h1_head *head =
      head_of("POST /a/b;v=1?q=/c HTTP/1.1\r\nHost: Shop.Example.com:80\r\nX-One: a\r\n"
              "x-two: b\r\nX-Two: c\r\nX-Empty:\r\nX-Obs: \xe9t\xe9\r\nConnection: close, x-hop\r\n"
              "X-Hop: h\r\n\r\n");
  const na_facts facts = {.peer = &peer, .destination = &peer, .request = &head->request};
  static const text_case cases[] = {
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":method", "POST", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":method", "post", 0, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":path", "/a/b;v=1?q=/c", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":scheme", "http", 0, true},
      /* CVE-2021-39155: a host has no case. */
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":authority", "shop.example.com:80", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "Host", "SHOP.EXAMPLE.COM:80", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_SUFFIX, ":authority", ".EXAMPLE.com:80", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_REGEX, ":authority", "shop\\.example\\.com(:[0-9]+)?", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":authority", "shop.example.com", 0, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, ":authority", "shop.EXAMPLE.com:80", NA_MATCH_INVERT, false},
      {NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/a/b;v=1", 0, true},
      {NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/a/b", 0, false}, /* parameters are of the path */
      {NA_ATTRIBUTE_PATH, NA_MATCH_PREFIX, NULL, "/a/b", 0, true},
      {NA_ATTRIBUTE_PATH, NA_MATCH_SUFFIX, NULL, "/c", 0, false}, /* the query is not */
      {NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, NULL, "/A/B;V=1", NA_MATCH_IGNORE_CASE, true},
      {NA_ATTRIBUTE_PATH, NA_MATCH_TEMPLATE, NULL, "/a/{*}", 0, true},
      {NA_ATTRIBUTE_PATH, NA_MATCH_TEMPLATE, NULL, "/{*}", 0, false},
      {NA_ATTRIBUTE_PATH, NA_MATCH_TEMPLATE, NULL, "/{*}", NA_MATCH_INVERT, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-one", "a", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "X-ONE", "a", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "X-ONE", "A", 0, false},
      /* Each value is looked at: none hides behind another. */
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-two", "b", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-two", "c", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-two", "b,c", 0, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-two", "c", NA_MATCH_INVERT, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-two", "d", NA_MATCH_INVERT, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_CONTAINS, "x-two", "c", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_PRESENT, "x-empty", "", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-empty", "", 0, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_PRESENT, "x-none", "", 0, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_PRESENT, "x-none", "", NA_MATCH_INVERT, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-none", "a", NA_MATCH_INVERT, false},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-none", "a", NA_MATCH_INVERT | NA_MATCH_MISSING_AS_EMPTY, true},
      {NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, "x-obs", "\xe9t\xe9", 0, true},
      /* What is not forwarded is not seen. */
      {NA_ATTRIBUTE_HEADER, NA_MATCH_PRESENT, "x-hop", "", 0, false},
  };
  for (size_t i = 0; i < COUNT(cases); i++)
    expect_text(&cases[i], &facts);
}

static void checks_metadata(void **state) {
  const na_address peer = address_of("10.0.0.1", 999);
  na_metadata metadata = {0};
  const na_facts facts = {.peer = &peer, .destination = &peer, .metadata = &metadata};
  assert_int_equal(na_metadata_set_text(&metadata, "f", "one", na_str_of("a")), 0);
  json_t *list = json_pack("[s, i, b]", "x", 7, 1);
  assert_int_equal(na_metadata_set(&metadata, "f", "many", list), 0);
  static const text_case cases[] = {
      {NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT, "f\x1fone", "a", 0, true},
      {NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT, "f\x1fone", "b", 0, false},
      {NA_ATTRIBUTE_METADATA, NA_MATCH_PRESENT, "f\x1fone", "", 0, true},
      {NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT, "f\x1fmany", "x", 0, true},
      /* A number is no text, nor is a boolean. */
      {NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT, "f\x1fmany", "7", 0, false},
      {NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT, "f\x1fmany", "true", 0, false},
      {NA_ATTRIBUTE_LITERAL, NA_MATCH_EXACT, "f\x1fmany", "7", 0, true},
      {NA_ATTRIBUTE_LITERAL, NA_MATCH_EXACT, "f\x1fmany", "true", 0, true},
      {NA_ATTRIBUTE_LITERAL, NA_MATCH_EXACT, "f\x1fmany", "x", 0, false},
      {NA_ATTRIBUTE_METADATA, NA_MATCH_PRESENT, "g\x1fone", "", 0, false},
  };
  for (size_t i = 0; i < COUNT(cases); i++)
    expect_text(&cases[i], &facts);
  na_metadata_clear(&metadata);
}

/* ---- addresses, ports, operators ---- */

static void checks_addresses(void **state) {
  static const struct {
    const char *ip, *range;
    uint32_t prefix;
    bool holds;
  } cases[] = {
      {"10.1.2.3", "10.1.2.3", 128, true},
      {"10.1.2.4", "10.1.2.3", 128, false},
      {"10.1.2.3", "10.1.0.0", 112, true},
      {"10.2.2.3", "10.1.0.0", 112, false},
      {"10.1.2.3", "10.1.2.0", 127, false},
      {"10.1.2.1", "10.1.2.0", 127, true},
      {"10.129.0.1", "10.128.0.0", 105, true},
      {"10.127.0.1", "10.128.0.0", 105, false},
      {"1.2.3.4", "0.0.0.0", 96, true},
      {"fd00::1", "0.0.0.0", 96, false},
      {"fd00::1", "fd00::", 8, true},
      {"fe00::1", "fd00::", 8, false},
      {"fd00::1", "::", 0, true},
      {"1.2.3.4", "::", 0, false}, /* IPv4 is in no range of IPv6 */
      {"fd00::1", "fd00::1", 128, true},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    const na_address asked = address_of(cases[i].ip, 80), other = address_of("192.0.2.1", 9);
    const na_address range = address_of(cases[i].range, 0);
    for (int place = NA_PLACE_PEER; place <= NA_PLACE_DESTINATION; place++) {
      bool of_destination = place == NA_PLACE_DESTINATION;
      const na_facts facts = {.peer = of_destination ? &other : &asked,
                              .destination = of_destination ? &asked : &other};
      na_guards *guards = one_policy(NA_RULE_ALLOW);
      assert_int_equal(na_check_address(guards, (enum na_place)place, range.ip, cases[i].prefix), 0);
      if (na_check_holds(check_of(guards), &facts) != cases[i].holds)
        fail_msg("%s in %s/%u: %d expected", cases[i].ip, cases[i].range, cases[i].prefix, cases[i].holds);
      na_guards_free(guards);
    }
  }
}

/* Envoy: the last of all that is in the headers of the name, if it is an address; else the peer. */
static void checks_who_is_forwarded_for(void **state) {
  static const struct {
    const char *headers, *range;
  } cases[] = {
      {"", "192.0.2.1"},
      {"X-Forwarded-For: 10.0.0.1\r\n", "10.0.0.1"},
      {"X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n", "10.0.0.2"},
      {"X-Forwarded-For: 10.0.0.2,\t10.0.0.1 \r\n", "10.0.0.1"},
      {"x-forwarded-for: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n", "10.0.0.2"},
      {"X-Forwarded-For: fd00::1\r\n", "fd00::1"},
      {"X-Forwarded-For: 10.0.0.1,\r\n", "192.0.2.1"},
      {"X-Forwarded-For: 10.0.0.1, unknown\r\n", "192.0.2.1"},
      {"X-Forwarded-For: 10.0.0.1:80\r\n", "192.0.2.1"},
      {"X-Forwarded-For: [fd00::1]\r\n", "192.0.2.1"},
      {"X-Forwarded-For: \r\n", "192.0.2.1"},
  };
  const na_address peer = address_of("192.0.2.1", 9);
  for (size_t i = 0; i < COUNT(cases); i++) {
    char text[512];
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", cases[i].headers);
    const na_facts facts = {.peer = &peer, .destination = &peer, .request = &head_of(text)->request};
    na_guards *guards = one_policy(NA_RULE_ALLOW);
    assert_int_equal(na_check_address(guards, NA_PLACE_CLIENT, address_of(cases[i].range, 0).ip, 128), 0);
    if (!na_check_holds(check_of(guards), &facts))
      fail_msg("%s is not from %s", cases[i].headers, cases[i].range);
    na_guards_free(guards);
  }
}

static void checks_ports(void **state) {
  const na_address peer = address_of("10.0.0.1", 80), destination = address_of("10.0.0.2", 8080);
  const na_facts facts = {.peer = &peer, .destination = &destination};
  static const struct {
    uint32_t low, high;
    bool holds;
  } cases[] = {{8080, 8080, true}, {80, 80, false}, {8081, 65535, false}, {0, 8079, false}, {1, 65535, true}};
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_guards *guards = one_policy(NA_RULE_ALLOW);
    assert_int_equal(na_check_port(guards, cases[i].low, cases[i].high), 0);
    assert_int_equal(na_check_holds(check_of(guards), &facts), cases[i].holds);
    na_guards_free(guards);
  }
}

/* Build an expression from letters: t true, f false, ! not, 0-9 with & or | before: how many operands. */
static void add_expression(na_guards *guards, const char *text) {
  for (const char *p = text; *p; p++) {
    int rc = -EINVAL;
    if (*p == 't')
      rc = na_check_always(guards);
    else if (*p == 'f')
      rc = na_check_any(guards, 0);
    else if (*p == '!')
      rc = na_check_not(guards);
    else if (*p == '&')
      rc = na_check_all(guards, (uint32_t)(*++p - '0'));
    else if (*p == '|')
      rc = na_check_any(guards, (uint32_t)(*++p - '0'));
    assert_int_equal(rc, 0);
  }
}

static void combines_checks(void **state) {
  const na_address peer = address_of("10.0.0.1", 80);
  const na_facts facts = {.peer = &peer, .destination = &peer};
  static const struct {
    const char *text;
    bool holds;
  } cases[] = {
      {"t", true},          {"f", false},        {"!f", true},         {"!t", false},       {"!!t", true},
      {"&0", true},         {"|0", false},       {"&2tt", true},       {"&2tf", false},     {"&2ft", false},
      {"|2ff", false},      {"|2ft", true},      {"|2tf", true},       {"&2|2ff!f", false}, {"&2|2ft!f", true},
      {"|2&2tf&2tt", true}, {"|3&2tf!tt", true}, {"|3&2tf!tf", false}, {"&3t|1tt", true},   {"!&2t|2ff", true},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_guards *guards = one_policy(NA_RULE_ALLOW);
    add_expression(guards, cases[i].text);
    if (na_check_holds(check_of(guards), &facts) != cases[i].holds)
      fail_msg("%s: %d expected", cases[i].text, cases[i].holds);
    na_guards_free(guards);
  }
}

/* ---- rules ---- */

static enum na_verdict verdict_of(na_guards *guards, const char **detail) {
  const na_address peer = address_of("10.0.0.1", 80);
  na_subject subject = {.facts = {.peer = &peer, .destination = &peer}};
  na_refusal refusal = {0};
  const na_stage *at;
  assert_int_equal(na_guards_seal(guards), 0);
  enum na_verdict verdict = na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &subject, &refusal, &at);
  *detail = verdict == NA_VERDICT_DENY ? refusal.detail : "";
  return verdict;
}

static void decides_as_envoy_does(void **state) {
  static const struct {
    const char *stages; /* a/d/l, A/D: shadows; then the policies' checks, up to a comma */
    const char *detail; /* "": allowed */
  } cases[] = {
      {"", ""},
      {"a", "rbac_access_denied_matched_policy[none]"}, /* rules without policies allow nobody */
      {"d", ""},
      {"at", ""},
      {"af", "rbac_access_denied_matched_policy[none]"},
      {"aft", ""},
      {"dt", "rbac_access_denied_matched_policy[p0]"},
      {"dft", "rbac_access_denied_matched_policy[p1]"},
      {"df", ""},
      {"df,at", ""},
      {"df,af", "rbac_access_denied_matched_policy[none]"},
      {"dt,at", "rbac_access_denied_matched_policy[p0]"},
      {"lt", ""},
      {"lt,dt", "rbac_access_denied_matched_policy[p0]"},
      {"Af", ""},
      {"Dt", ""},
      {"Dt,af", "rbac_access_denied_matched_policy[none]"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_guards *guards;
    const char *detail;
    bool begins = true;
    int n = 0;
    assert_int_equal(na_guards_new(&guards), 0);
    for (const char *p = cases[i].stages; *p; p++) {
      char name[8];
      if (*p == ',' || begins) {
        p += *p == ',';
        enum na_rule_action action = *p == 'a' || *p == 'A' ? NA_RULE_ALLOW : *p == 'l' ? NA_RULE_LOG : NA_RULE_DENY;
        assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, action, *p < 'a', "x_"), 0);
        begins = false;
        n = 0;
        continue;
      }
      snprintf(name, sizeof name, "p%d", n++);
      assert_int_equal(na_guards_policy(guards, name), 0);
      add_expression(guards, (char[]){*p, '\0'});
    }
    bool allowed = verdict_of(guards, &detail) == NA_VERDICT_ALLOW;
    if (strcmp(detail, cases[i].detail) != 0 || allowed != !*cases[i].detail)
      fail_msg("%s: '%s' expected, not '%s'", cases[i].stages, cases[i].detail, detail);
    na_guards_free(guards);
  }
}

static void shadows_tell_what_they_found(void **state) {
  na_guards *guards;
  const na_address peer = address_of("10.0.0.1", 80);
  na_authz authz = {0};
  na_subject subject = {.facts = {.peer = &peer, .destination = &peer, .metadata = &authz.metadata}, .authz = &authz};
  na_refusal refusal;
  const na_stage *at;
  assert_int_equal(na_guards_new(&guards), 0);
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 1, "dry_"), 0);
  assert_int_equal(na_guards_policy(guards, "would"), 0);
  assert_int_equal(na_check_always(guards), 0);
  /* A later stage goes by it. */
  assert_int_equal(na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 0, NULL), 0);
  assert_int_equal(na_guards_policy(guards, "both"), 0);
  assert_int_equal(na_check_all(guards, 2), 0);
  assert_int_equal(na_check_text(guards, NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT,
                                 "envoy.filters.http.rbac\x1f"
                                 "dry_shadow_effective_policy_id",
                                 "would", 0),
                   0);
  assert_int_equal(na_check_text(guards, NA_ATTRIBUTE_METADATA, NA_MATCH_EXACT,
                                 "envoy.filters.http.rbac\x1f"
                                 "dry_shadow_engine_result",
                                 "denied", 0),
                   0);
  assert_int_equal(na_guards_seal(guards), 0);
  assert_int_equal(na_stages_ask(guards->stages[NA_GUARDED_REQUEST], &subject, &refusal, &at), NA_VERDICT_DENY);
  assert_string_equal(refusal.detail, "rbac_access_denied_matched_policy[both]");
  na_metadata_clear(&authz.metadata);
  na_guards_free(guards);
}

/* ---- what cannot be built ---- */

static void expect_error(na_guards *guards, int rc, int expected, const char *part) {
  assert_int_equal(rc, expected);
  if (!strstr(na_guards_error(guards), part))
    fail_msg("no '%s' in '%s'", part, na_guards_error(guards));
  na_guards_free(guards);
}

static void refuses_what_makes_no_sense(void **state) {
  static const char *const incomplete[] = {"&2t", "!", "|1", "&2t!", "tt", "&0t", "!tt"};
  for (size_t i = 0; i < COUNT(incomplete); i++) {
    na_guards *guards = one_policy(NA_RULE_ALLOW);
    add_expression(guards, incomplete[i]);
    expect_error(guards, na_guards_seal(guards), -EINVAL, "'p' is no whole expression");
  }
  na_guards *guards = one_policy(NA_RULE_ALLOW); /* nothing is no expression */
  expect_error(guards, na_guards_policy(guards, "q"), -EINVAL, "'p' is no whole expression");
  guards = one_policy(NA_RULE_ALLOW);
  for (int i = 0; i < NA_MAX_CHECK_DEPTH; i++)
    assert_int_equal(na_check_not(guards), 0);
  assert_int_equal(na_check_always(guards), 0);
  expect_error(guards, na_guards_seal(guards), -E2BIG, "nested more than");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_all(guards, 4000000000u) ? 0 : na_guards_seal(guards), -EINVAL, "no whole expression");
  assert_int_equal(na_guards_new(&guards), 0);
  expect_error(guards, na_check_always(guards), -EINVAL, "belongs to no policy");
  assert_int_equal(na_guards_new(&guards), 0);
  expect_error(guards, na_guards_policy(guards, "p"), -EINVAL, "belongs to no rules");
  assert_int_equal(na_guards_new(&guards), 0);
  expect_error(guards, na_guards_rules(guards, 2, NA_RULE_ALLOW, 0, NULL), -EINVAL, "guards of 2");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_REGEX, NULL, "(", 0), -EINVAL, "missing )");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, NA_ATTRIBUTE_PATH, NA_MATCH_EXACT, "n", "", 0), -EINVAL, "name");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, NA_ATTRIBUTE_HEADER, NA_MATCH_EXACT, NULL, "", 0), -EINVAL, "name");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, 99, NA_MATCH_EXACT, NULL, "", 0), -EINVAL, "attribute 99");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, NA_ATTRIBUTE_PATH, 99, NULL, "", 0), -EINVAL, "kind 99");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_text(guards, NA_ATTRIBUTE_SNI, NA_MATCH_TEMPLATE, NULL, "/", 0), -EINVAL, "for paths");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_port(guards, 2, 1), -EINVAL, "2..1");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_port(guards, 1, 65536), -EINVAL, "1..65536");
  guards = one_policy(NA_RULE_ALLOW);
  expect_error(guards, na_check_address(guards, NA_PLACE_PEER, (uint8_t[16]){0}, 129), -EINVAL, "prefix 129");
  guards = one_policy(NA_RULE_ALLOW);
  assert_int_equal(na_check_always(guards), 0);
  assert_int_equal(na_guards_seal(guards), 0);
  assert_int_equal(na_check_always(guards), -EBUSY);
  expect_error(guards, na_guards_rules(guards, NA_GUARDED_REQUEST, NA_RULE_DENY, 0, NULL), -EBUSY, "in use");
}

/* ---- templates ---- */

static void matches_templates(void **state) {
  static const struct {
    const char *template, *path;
    bool matches;
  } cases[] = {
      {"/foo", "/foo", true},
      {"/foo", "/foo/", false},
      {"/foo/{*}", "/foo/bar", true},
      {"/foo/{*}", "/foo/", false},
      {"/foo/{*}", "/foo", false},
      {"/foo/{*}", "/foo/bar/baz", false},
      {"/foo/{*}/baz", "/foo/bar/baz", true},
      {"/foo/{*}/baz", "/foo/bar/qux/baz", false},
      {"/foo/{**}", "/foo/", true},
      {"/foo/{**}", "/foo/bar/baz", true},
      {"/foo/{**}", "/foo", false},
      {"/{*}/{**}/end", "/a/b/c/end", true},
      {"/{*}/{**}/end", "/a/b/c/end/more", false},
      {"/{**}/end", "/a/end", true},
      {"/*", "/a", true},
      {"/**", "/a/b", true},
      {"/**.mpd", "/a/b/c.mpd", true},
      {"/**.mpd", "/a/b/cxmpd", false}, /* a dot is a dot */
      {"/v/{id}", "/v/7", true},
      {"/v/{id}", "/v/7/8", false},
      {"/v/{id}.html", "/v/7.html", true},
      {"/v/x{id}", "/v/x7", true},
      {"/v/{id=*}/w", "/v/7/w", true},
      {"/v/{rest=**}", "/v/7/8", true},
      {"/{name=a/*/b}", "/a/x/b", true},
      {"/{name=a/*/b}", "/a/x/c", false},
      {"/a+b$(c)", "/a+b$(c)", true},
      {"/a+b", "/aab", false},
      {"/admin/{**}", "/admin/x*", true}, /* an operator stands for asterisks, too */
      {"/admin/{*}", "/admin/*", true},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    na_regex *regex;
    char error[256];
    if (na_uri_template_compile(cases[i].template, &regex, error, sizeof error))
      fail_msg("%s: %s", cases[i].template, error);
    if (na_regex_full(regex, cases[i].path, strlen(cases[i].path)) != cases[i].matches)
      fail_msg("%s %s: %d expected", cases[i].template, cases[i].path, cases[i].matches);
    na_regex_free(regex);
  }
}

static void refuses_bad_templates(void **state) {
  static const char *const bad[] = {
      "",
      "foo",
      "/{**}/{*}",
      "/**/**",
      "/***",
      "/a*",
      "/{",
      "/{a",
      "/{a=",
      "/{a=}",
      "/{}",
      "/{1a}",
      "/{a-b}",
      "/{a}/{a}",
      "//a",
      "/a//b",
      "/{a=/b//c}",
      "/a b",
      "/[a]",
      "/{a=*b}",
      "/{a=**}/{b}",
      "/{a=x*}",
      "/a}",
      "/{abcdefghijklmnopq}",
      "/{*",
      "/{*}{**}/{*}",
      "/?",
      "/#",
      "/\\",
      "/{a}/{b}/{c}/{d}/{e}/{f}",
      "/{a=*/**/*}",
  };
  for (size_t i = 0; i < COUNT(bad); i++) {
    na_regex *regex = NULL;
    char error[256] = "";
    if (na_uri_template_compile(bad[i], &regex, error, sizeof error) != -EINVAL || !*error)
      fail_msg("'%s' was taken", bad[i]);
  }
  char longest[NA_MAX_TEMPLATE + 2], error[256];
  na_regex *regex;
  memset(longest, 'a', sizeof longest - 1);
  longest[0] = '/';
  longest[sizeof longest - 1] = '\0';
  assert_int_equal(na_uri_template_compile(longest, &regex, error, sizeof error), -E2BIG);
  longest[sizeof longest - 2] = '\0';
  assert_int_equal(na_uri_template_compile(longest, &regex, error, sizeof error), 0);
  na_regex_free(regex);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(checks_who_the_peer_is),
      cmocka_unit_test(nobody_is_nobody),
      cmocka_unit_test(checks_what_is_asked_for),
      cmocka_unit_test(checks_metadata),
      cmocka_unit_test(checks_addresses),
      cmocka_unit_test(checks_who_is_forwarded_for),
      cmocka_unit_test(checks_ports),
      cmocka_unit_test(combines_checks),
      cmocka_unit_test(decides_as_envoy_does),
      cmocka_unit_test(shadows_tell_what_they_found),
      cmocka_unit_test(refuses_what_makes_no_sense),
      cmocka_unit_test(matches_templates),
      cmocka_unit_test(refuses_bad_templates),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
