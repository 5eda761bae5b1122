/* SPDX-License-Identifier: Apache-2.0
 *
 * The way of a tunnel through another one (double HBONE): a stream of the outer tunnel, joined to a socket pair whose
 * other end the inner tunnel takes for its connection. The detour through the kernel costs a copy each way; it spares
 * TLS a second way of reading and writing, and bounds what waits between the two by a socket's buffers.
 */
#ifndef NODEAGENT_HBONE_PASSAGE_H
#define NODEAGENT_HBONE_PASSAGE_H

#include "hbone.h"

typedef struct na_passage na_passage;

/* Tell the owner that there is no way (any more); it closes the passage. `why` is for people. */
typedef void na_passage_fn(void *owner, int error, const char *why);

/* Begin: the inner tunnel's descriptor, connected, or -errno. Not to be freed but by na_passage_close(). */
int na_passage_open(const na_hbone_dial *dial, na_passage_fn *lost, void *owner, na_passage **out);
void na_passage_close(na_passage *passage);

#endif
