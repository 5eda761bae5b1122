/* SPDX-License-Identifier: Apache-2.0
 *
 * DNS of captured workloads: what is known of the mesh is answered at once, everything else goes on to the name server
 * that the workload asked, with another id and from another port, out of the workload's namespace.
 *
 * dns_server.c takes datagrams, dns_stream.c connections; dns_forward.c asks name servers by datagrams, dns_stream.c
 * those of its clients by a connection. dns_asked.c finds out which name server that is.
 */
#ifndef NODEAGENT_DNS_SERVER_H
#define NODEAGENT_DNS_SERVER_H

#include "dns_message.h"
#include "worker.h"

/* Longest question section: a name, type and class. */
#define NA_DNS_QUESTION_MAX 259

/* A datagram socket in a workload's namespace. */
typedef struct na_dns_listener {
  union {
    na_watch watch;
    na_grave grave;
  };
  na_link link;
  na_worker *worker;
  na_workload *workload;
  na_address address; /* where it is */
  uint64_t cookie;    /* of the workload's namespace, for the map of flows; 0: not known */
  int conntrack;      /* netlink socket there, or -1 */
  uint32_t nquestions;
} na_dns_listener;

/* A worker's; NULL in na_worker until something of DNS is opened there. */
struct na_dns {
  na_link listeners;
  na_link questions; /* na_dns_question (dns_forward.c) */
  na_link streams;   /* na_dns_stream (dns_stream.c) */
  uint32_t nquestions;
  uint32_t nstreams;
};

/* Worker: the state, made when it is first needed; NULL without memory. */
na_dns *na_dns_of(na_worker *worker);
/* Worker: take datagrams from fd, which is owned from here on, also on error. */
int na_dns_listen(na_worker *worker, na_workload *workload, int fd);
/* Worker: take a connection over. `asked` is the name server that the client connected to; NULL: it is not known. */
void na_dns_accept(na_worker *worker, na_workload *workload, int fd, const na_address *asked);
/* Worker: end all that is done for the workload (NULL: for any): DNS clients ask again. */
void na_dns_drain(na_worker *worker, const na_workload *workload);
void na_dns_free(na_worker *worker);

/* What to do with a client's message. */
enum na_dns_verdict {
  NA_DNS_IGNORE,
  NA_DNS_REPLY,   /* *n bytes in `out` */
  NA_DNS_FORWARD, /* to the name server */
};

/* Decide on a message of n bytes, and write the reply into `out`, which has room for NA_DNS_MAX_MESSAGE. Counts. */
enum na_dns_verdict na_dns_decide(na_worker *worker, const na_workload *workload, const uint8_t *bytes, size_t n,
                                  bool stream, na_dns_query *query, uint8_t *out, size_t *out_n);

/* dns_forward.c: ask `server` for a client of the listener, who hears of the answer, or of SERVFAIL. */
void na_dns_forward(na_dns_listener *listener, const na_address *client, const na_address *server, const uint8_t *bytes,
                    size_t n, const na_dns_query *query);
void na_dns_questions_close(na_worker *worker, const na_dns_listener *listener);
/* Send to a client; a datagram that cannot be sent is lost. */
void na_dns_send(const na_dns_listener *listener, const na_address *client, const uint8_t *bytes, size_t n);

/* dns_asked.c: the name server that a client of the listener asked; false: it is not known. */
bool na_dns_asked(na_dns_listener *listener, const na_address *client, na_address *out);

/* dns_stream.c */
void na_dns_streams_close(na_worker *worker, const na_workload *workload);

/* Count an answer of a name server, and the time that it took. */
void na_dns_note_answer(na_worker *worker, uint64_t started_us);

#endif
