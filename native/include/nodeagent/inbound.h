/* SPDX-License-Identifier: Apache-2.0
 *
 * What the ports of workloads speak, and who may come in.
 *
 * Part of the engine's interface: include <nodeagent/engine.h>, which tells its conventions.
 */
#ifndef NODEAGENT_INBOUND_H
#define NODEAGENT_INBOUND_H

#ifndef NODEAGENT_ENGINE_H
#error "include <nodeagent/engine.h>"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* -- guards: who may do what -- */

/* Guards are stages, asked in order; the first refusal ends it. One list is asked of each connection that is taken for
 * TCP, the other of each HTTP request. */
enum na_guarded { NA_GUARDED_CONNECTION = 0, NA_GUARDED_REQUEST = 1 };

/* What a check on a text looks at. */
enum na_attribute {
  NA_ATTRIBUTE_PRINCIPAL = 0,       /* the peer's SPIFFE ID, with its scheme */
  NA_ATTRIBUTE_NAMESPACE = 1,       /* of it */
  NA_ATTRIBUTE_SERVICE_ACCOUNT = 2, /* of it, as `namespace/name` */
  NA_ATTRIBUTE_TRUST_DOMAIN = 3,    /* of it */
  NA_ATTRIBUTE_HEADER = 4, /* by name, of several values any; also :method :authority :path :scheme. The authority is
                              compared without case (CVE-2021-39155) */
  NA_ATTRIBUTE_PATH = 5,   /* normalised, without query */
  NA_ATTRIBUTE_SNI = 6,
  NA_ATTRIBUTE_METADATA = 7, /* the texts of what earlier stages found out, by name; of several values, any */
  NA_ATTRIBUTE_LITERAL = 8,  /* the numbers and booleans of it, as in JSON: to Envoy they are no texts */
};

/* Whose address a check looks at. */
enum na_place {
  NA_PLACE_PEER = 0,        /* the connection's (through a tunnel: the tunnel's) */
  NA_PLACE_CLIENT = 1,      /* the last of X-Forwarded-For (Envoy without use_remote_address); if none, the peer's */
  NA_PLACE_DESTINATION = 2, /* where the connection was going */
};

enum na_rule_action {
  NA_RULE_ALLOW = 0, /* what no policy matches is refused */
  NA_RULE_DENY = 1,  /* what a policy matches is refused */
  NA_RULE_LOG = 2,   /* nothing is refused, matches are counted and marked */
};

/* Of na_check_text only, besides enum na_match_kind: an Envoy URI template (`*`, `**`, `{name}`, `{name=**}`), and
 * Istio's `{*}` and `{**}`. */
#define NA_MATCH_TEMPLATE 7

/* Guards under construction. The calls return 0, -EINVAL or -E2BIG with the reason in na_guards_error(), -EBUSY once
 * a builder has taken them, or -ENOMEM. */
NA_API int na_guards_new(na_guards **out);
/* Give the reference back. */
NA_API void na_guards_free(na_guards *guards);
NA_API const char *na_guards_error(const na_guards *guards);
/* How slashes in paths are read before requests are judged and forwarded, besides Envoy's normalize_path: flags. */
#define NA_SLASHES_MERGE  1 /* several in a row are one (merge_slashes) */
#define NA_SLASHES_DECODE 2 /* `%2F` and `%5C` are slashes (path_with_escaped_slashes_action UNESCAPE_AND_FORWARD) */
#define NA_SLASHES_REJECT 4 /* paths with those are refused (REJECT_REQUEST) */

NA_API int na_guards_slashes(na_guards *guards, uint32_t flags);
/* Append a stage of rules; its policies follow. `shadow`: the outcome is counted only, and known to later stages as
 * metadata `envoy.filters.http.rbac\x1f<prefix>shadow_effective_policy_id` and `\x1f<prefix>shadow_engine_result`. */
NA_API int na_guards_rules(na_guards *guards, enum na_guarded guarded, enum na_rule_action action, int shadow,
                           const char *prefix);
/* Append a policy to the stage that was begun last. Its check follows, in prefix order. */
NA_API int na_guards_policy(na_guards *guards, const char *name);
/* An expression in prefix order. What is asked about and is not there (a header of a TCP connection, the principal of a
 * plaintext peer) makes a check false. */
NA_API int na_check_always(na_guards *guards);
/* The next n checks: all of them, or (any) one. */
NA_API int na_check_all(na_guards *guards, uint32_t n);
NA_API int na_check_any(na_guards *guards, uint32_t n);
NA_API int na_check_not(na_guards *guards);
/* `kind`: enum na_match_kind or NA_MATCH_TEMPLATE; `name` of a header or of metadata, else NULL; `flags`: NA_MATCH_*.
 */
NA_API int na_check_text(na_guards *guards, enum na_attribute attribute, uint32_t kind, const char *name,
                         const char *value, uint32_t flags);
/* `prefix` is of 128 bits. */
NA_API int na_check_address(na_guards *guards, enum na_place place, const uint8_t *address, uint32_t prefix);
/* The destination's port is low..high. */
NA_API int na_check_port(na_guards *guards, uint32_t low, uint32_t high);
/* Whether a check on a text (not by NA_MATCH_TEMPLATE) would hold of `text`; empty: it is not there. 1, 0, -EINVAL if
 * there can be no such check, -ENOMEM. */
NA_API int na_check_text_holds(enum na_match_kind kind, const char *value, uint32_t flags, const char *text);

/* -- guards: tokens (Envoy's jwt_authn) -- */

/* Where a token may be. */
enum na_token_place_kind { NA_TOKEN_HEADER = 0, NA_TOKEN_PARAM = 1, NA_TOKEN_COOKIE = 2 };

/* An issuer of tokens. NULL texts are empty. */
typedef struct na_provider_config {
  const char *name;
  const char *issuer;         /* `iss`; empty: any */
  const char *payload_header; /* for the payload as it is in the token; empty: none */
  const char *metadata_key;   /* the payload becomes metadata `envoy.filters.http.jwt_authn\x1f<key>`; empty: not */
  uint32_t clock_skew_s;
  uint8_t pad_payload; /* 1: with the padding of base64 */
  uint8_t forward;     /* 1: leave the token in the request; cookies stay in any case */
  uint16_t reserved;
} na_provider_config;

/* Append a stage for requests: tokens are verified and needed. pass_preflight: CORS preflight requests need none.
 * Providers and rules follow. */
NA_API int na_guards_tokens(na_guards *guards, int pass_preflight);
/* Append an issuer to that stage. Headers of payloads and claims are taken away from each request first. */
NA_API int na_guards_provider(na_guards *guards, const na_provider_config *config);
/* What the last issuer has: an audience that will do (none: any), a key, a place of tokens (none: `Authorization:
 * Bearer` and the parameter `access_token`), a claim (nested ones with dots) for a header, a claim whose words become a
 * list in the metadata.
 * The key is a SubjectPublicKeyInfo in DER; `kid` and `algorithm` (`RS256`) may be empty: any. -EINVAL for a key that
 * cannot be used; the issuer then goes without. With no keys at all its tokens are invalid. */
NA_API int na_provider_audience(na_guards *guards, const char *audience);
NA_API int na_provider_key(na_guards *guards, const char *kid, const char *algorithm, const uint8_t *der, size_t n);
NA_API int na_provider_place(na_guards *guards, enum na_token_place_kind kind, const char *name, const char *prefix);
NA_API int na_provider_claim_header(na_guards *guards, const char *claim, const char *header);
NA_API int na_provider_split_claim(na_guards *guards, const char *claim);
/* Append a rule: what requests of a path need. The first one that matches holds. kind: enum na_match_kind, path NULL:
 * any. The need follows, in prefix order; without one nothing is needed. */
NA_API int na_guards_token_rule(na_guards *guards, uint32_t kind, const char *path, uint32_t flags);
/* A valid token of the provider, for one of the n audiences (none: the provider's own). */
NA_API int na_need_token(na_guards *guards, const char *provider, const char *const *audiences, size_t n);
/* The next n needs: one, or all of them. */
NA_API int na_need_any(na_guards *guards, uint32_t n);
NA_API int na_need_all(na_guards *guards, uint32_t n);
/* No token, or good ones; within na_need_any only of the providers named there. failed: bad ones will do, too. */
NA_API int na_need_nothing(na_guards *guards, int failed);

/* -- guards: asking somebody else (Envoy's ext_authz, v3) -- */

typedef struct na_callout_config {
  const char *cluster;      /* whom to ask; while it is not there, there is no answer */
  const char *authority;    /* gRPC: `:authority` of the call; NULL or empty: the cluster's name */
  const char *path_prefix;  /* HTTP: before the request's path */
  uint32_t timeout_ms;      /* 200 */
  uint32_t status_on_error; /* without an answer; 403 */
  uint32_t body_bytes;      /* of the body that are sent along; 0 none, 1 MiB at most */
  uint8_t grpc;             /* 0: HTTP */
  uint8_t fail_open;        /* 1: without an answer it passes */
  uint8_t body_partial;     /* 1: of a longer body, as much as fits; else 413 */
  uint8_t body_raw;         /* 1: as bytes; else as text */
  uint8_t mark_open;        /* 1: what passes without an answer has x-envoy-auth-failure-mode-allowed: true */
} na_callout_config;

/* Names of headers, without case. */
enum na_callout_names {
  NA_CALLOUT_SEND = 0,           /* gRPC: what is told; none: all. HTTP: besides method, path, Host and Authorization */
  NA_CALLOUT_HIDE = 1,           /* never told */
  NA_CALLOUT_KEEP = 2,           /* HTTP: of an allowing answer, for the request, in place of what it has */
  NA_CALLOUT_KEEP_APPEND = 3,    /* HTTP: the same, behind what it has, if it has it */
  NA_CALLOUT_ANSWER = 4,         /* HTTP: of a refusing answer, for the client; none: all */
  NA_CALLOUT_ANSWER_ALLOWED = 5, /* HTTP: of an allowing answer, for the client */
  NA_CALLOUT_TO_METADATA = 6,    /* HTTP: of an allowing answer, metadata `envoy.filters.http.ext_authz` by name */
};

enum na_callout_headers {
  NA_CALLOUT_EXTRA = 0,    /* HTTP: sent in any case */
  NA_CALLOUT_METADATA = 1, /* gRPC: initial metadata */
};

/* Append a stage; what follows is its. Connections are asked about by gRPC only. */
NA_API int na_guards_callout(na_guards *guards, enum na_guarded guarded, const na_callout_config *config);
/* Ask only if the check holds that follows in prefix order. */
NA_API int na_callout_when(na_guards *guards);
/* kind: enum na_match_kind. */
NA_API int na_callout_name(na_guards *guards, enum na_callout_names which, uint32_t kind, const char *value);
NA_API int na_callout_header(na_guards *guards, enum na_callout_headers which, const char *name, const char *value);

/* -- inbound: what the ports of a workload speak -- */

typedef struct na_inbound_port {
  uint16_t port;
  uint16_t protocol; /* enum na_protocol */
  uint32_t tag;
  uint32_t guards; /* na_builder_guarded_inbound: the number of its guards, from 1; 0 none */
} na_inbound_port;

/* Put the inbound configuration of a workload in force. Before the first call: HTTP is answered 503 (flag NC), other
 * connections are reset, on every port. `fallback` is the protocol of ports that are not listed. */
NA_API int na_builder_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                              uint32_t fallback);

/* A port of a service that the workload serves: tunnel peers may ask for it by the service's name. */
typedef struct na_inbound_name {
  const char *host;
  uint16_t port;
  uint16_t target; /* the workload's */
} na_inbound_name;

enum na_application_tunnel {
  NA_APPLICATION_TUNNEL_NONE = 0,
  NA_APPLICATION_TUNNEL_PROXY = 1, /* PROXY protocol version 2, with the client's SPIFFE ID in TLV 0xD0 */
};

/* The rest of a workload's inbound configuration. Guards by number as in na_inbound_port. */
typedef struct na_inbound_config {
  uint32_t fallback;        /* enum na_protocol of ports that are not listed */
  uint32_t fallback_guards; /* theirs */
  uint32_t every; /* asked of each connection to any port, before the port's own; of these guards, what is asked of
                     connections */
  const na_inbound_name *names; /* n_names of them; copied */
  uint32_t n_names;
  uint32_t tunnel;      /* enum na_application_tunnel: how the application hears of what came through a tunnel. It may
                           then be asked for any address: it is a proxy. The port takes TCP, whatever is declared */
  uint32_t tunnel_port; /* of the application; 0: the port that was asked for */
} na_inbound_config;

/* As na_builder_inbound, with guards: m of them, of which the builder takes references. They cannot be changed any
 * more. Open connections that may not be under them are reset. */
NA_API int na_builder_guarded_inbound(na_builder *b, uint32_t workload, const na_inbound_port *ports, size_t n,
                                      const na_inbound_config *config, na_guards *const *guards, size_t m);
/* Take it out of force again. The engine does so itself for a workload that is gone. */
NA_API int na_builder_inbound_remove(na_builder *b, uint32_t workload);

#ifdef __cplusplus
}
#endif

#endif
