/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking guards. Their stages are asked in order about a subject, a connection or a request; the first refusal ends it.
 * A stage may have to wait for somebody's answer: then the asking goes on behind it when the answer is there.
 *
 * What concerns connections and requests as such is in conn_guard.c and http_guard.c; a kind of stage is a file of its
 * own with an na_stage_kind (rules.c).
 */
#ifndef NODEAGENT_AUTHZ_H
#define NODEAGENT_AUTHZ_H

#include "guards.h"
#include "head_edits.h"
#include "router.h"

typedef struct na_conn na_conn;                 /* conn.h */
typedef struct na_http_request na_http_request; /* http_request.h */
typedef struct na_worker na_worker;             /* worker.h */

enum na_verdict {
  NA_VERDICT_ALLOW, /* go on with the next stage */
  NA_VERDICT_DENY,
  NA_VERDICT_WAIT, /* the asker will be told */
};

/* How to refuse. Of a connection only flags and detail matter. What it points to is static, or the guards', or valid
 * until the call to which it is given returns. */
typedef struct na_refusal {
  uint16_t status;
  uint32_t flags;     /* enum na_flag */
  const char *detail; /* %RESPONSE_CODE_DETAILS%, %CONNECTION_TERMINATION_DETAILS% */
  na_str body;
  const na_header *headers; /* besides those of every answer; a content-type takes the place of text/plain */
  uint32_t nheaders;
} na_refusal;

/* Somebody who can wait. */
typedef struct na_asker na_asker;
struct na_asker {
  /* The answer: ALLOW, or DENY with a refusal. Once, after NA_VERDICT_WAIT was returned, from an event of its own and
   * never from within ask(); `abandon` must not be called after that. */
  void (*resume)(na_asker *asker, enum na_verdict verdict, const na_refusal *refusal);
  /* Set by a stage before it returns NA_VERDICT_WAIT, and called when whoever waits is gone: do not resume it. */
  void (*abandon)(void *waiting);
  void *waiting;
};

/* What of a request outlives the asking of a stage; made only for guards that keep something, on the request until its
 * end. */
typedef struct na_authz {
  na_asker asker;
  na_guards *guards;        /* reference, while it waits */
  const na_stage *stage;    /* at which it waits; NULL: it does not */
  na_conn *conn;            /* who waits: a connection, */
  na_http_request *request; /* or a request */
  na_metadata metadata;
  na_head_edits edits; /* made again whenever its head is parsed */
  char *challenge;     /* www-authenticate of a refusal */
  na_header challenge_header;
  na_mutations answer; /* headers for the answer to the request, whoever gives it */
  /* More of the request's body has come, while somebody waits for it; NULL: nobody does. full: no more can be kept. */
  void (*more)(void *waiting, bool full);
} na_authz;

/* Whom a stage is asked about. */
typedef struct na_subject {
  na_facts facts;
  na_worker *worker;        /* NULL: explained to people */
  na_conn *conn;            /* likewise */
  na_http_request *request; /* NULL: a connection, or explained */
  na_h1_head *head;         /* the request's, which a stage may edit; NULL likewise */
  na_authz *authz;          /* the request's; NULL unless the guards keep something */
  na_asker *asker;          /* NULL: nobody can wait */
  bool again;               /* an open connection, once more: nothing is counted, nobody else is asked */
} na_subject;

struct na_stage_kind {
  const char *name;
  bool keeps; /* na_guards.keeps */
  /* NA_VERDICT_DENY: fill in *refusal (zeroed). NA_VERDICT_WAIT: only if there is an asker. */
  enum na_verdict (*ask)(const na_stage *stage, na_subject *subject, na_refusal *refusal);
  /* Say in lines what it sees in the subject; the verdict comes from ask(), with worker, conn and asker NULL. */
  void (*explain)(const na_stage *stage, const na_subject *subject, na_out *out);
  /* Complete it, and check it: na_guards_fail(). NULL: nothing to do. */
  int (*seal)(na_guards *guards, na_stage *stage);
  /* Take numbers for what is reported by name. NULL: nothing is. */
  void (*enlist)(na_stage *stage, na_names *names);
  /* Hold the slots of clusters. NULL: it needs none. */
  int (*bind)(na_guards *guards, na_stage *stage, na_slots *cluster_names);
  void (*free)(na_stage *stage);
};

extern const na_stage_kind na_stage_rules;
extern const na_stage_kind na_stage_tokens;  /* tokens.h */
extern const na_stage_kind na_stage_callout; /* callout.h */

/* Ask `stage` and those behind it; NULL: there are none, allowed. *waiting is the stage that waits, or that refused. */
enum na_verdict na_stages_ask(const na_stage *stage, na_subject *subject, na_refusal *refusal,
                              const na_stage **waiting);
/* The request is over: whatever it waits for must not come. NULL is nobody's. */
void na_authz_free(na_authz *authz);
/* Add a header to the answer, or (NA_HEADER_SET) put it in place of others. Those of the connection are left out.
 * -E2BIG, -ENOMEM. */
int na_authz_answer_header(na_authz *authz, enum na_header_op op, na_str name, na_str value);
/* Let go of what stages kept; `authz` itself is the caller's. */
void na_authz_clear(na_authz *authz);

#endif
