/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes both ways between two streams, each half ending on its own (half-close kept): what TCP proxying and upgraded
 * HTTP connections do. Reads go through the worker's I/O buffer; a half that proves bulky goes by splice(2).
 */
#ifndef NODEAGENT_RELAY_H
#define NODEAGENT_RELAY_H

#include "stream.h"
#include "worker.h"

/* Bytes in one direction after which splicing pays (baselines: it costs 6 % on small exchanges). */
#define NA_SPLICE_AFTER (256 * 1024)

typedef struct na_relay na_relay;

enum na_relay_end {
  NA_RELAY_DONE,   /* both halves ended in order */
  NA_RELAY_BROKEN, /* the stream named failed */
};

typedef struct na_relay_half {
  na_stream *from;
  na_stream *to;
  uint64_t bytes;
  uint64_t reported; /* of bytes, in the statistics */
  int pipe[2];
  uint32_t in_pipe;
  bool spliced; /* owns the pipe */
  bool done;
} na_relay_half;

struct na_relay {
  na_worker *worker;
  na_relay_half halves[2]; /* 0: from the downstream, 1: to the downstream */
  na_link reporting;       /* worker->reporting */
  uint64_t last_ms;        /* when bytes moved last */
  bool ended;
  /* The relay is over; broken_side 0 is the downstream, 1 the upstream (NA_RELAY_BROKEN). */
  void (*end)(na_relay *relay, enum na_relay_end how, int broken_side);
  /* Put the bytes since the last report into the statistics. */
  void (*report)(na_relay *relay);
};

/* Take over both streams' watch functions and go. What was read before is sent first by the caller. */
void na_relay_start(na_relay *relay, na_worker *worker, na_stream *downstream, na_stream *upstream,
                    void (*end)(na_relay *relay, enum na_relay_end how, int broken_side),
                    void (*report)(na_relay *relay));
/* Report the last bytes and give the pipes back; the streams are the caller's again. */
void na_relay_stop(na_relay *relay);
/* Count bytes that the caller moved itself. */
void na_relay_account(na_relay *relay, int half, size_t n);

#endif
