/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client and a server say to each other through an engine, whatever carries it.
 */
#ifndef NODEAGENT_CONVERSATION_H
#define NODEAGENT_CONVERSATION_H

#include "engine_rig.h"

/* The client ends its data first; the server goes on, and closes. Both sockets are used up; the client's stays open. */
UNUSED static void talk_until_the_client_ends(int client, int server) {
  put(client, "one");
  expect(server, "one");
  put(server, "two");
  expect(client, "two");
  shutdown(client, SHUT_WR);
  expect_end(server);
  put(server, "still");
  expect(client, "still");
  close(server);
  expect_end(client);
}

/* The server ends its data first; both sockets are closed. */
UNUSED static void talk_until_the_server_ends(int client, int server) {
  shutdown(server, SHUT_WR);
  expect_end(client);
  put(client, "more");
  expect(server, "more");
  close(client);
  expect_end(server);
  close(server);
}

/* ---- bulk: a known byte at each place, another sequence for each salt ---- */

static uint8_t bulk_byte(size_t i, unsigned salt) {
  return (uint8_t)((i * 2654435761u >> 13) + salt);
}

UNUSED static void send_bulk(int fd, unsigned salt, size_t size) {
  static __thread uint8_t block[65536];
  for (size_t at = 0; at < size; at += sizeof block) {
    for (size_t i = 0; i < sizeof block; i++)
      block[i] = bulk_byte(at + i, salt);
    put_n(fd, block, sizeof block);
  }
}

/* Whether that is what comes. `pause_ms` after each 8 MiB makes a slow reader. */
UNUSED static bool check_bulk(int fd, unsigned salt, size_t size, int pause_ms) {
  static __thread uint8_t block[65536];
  for (size_t at = 0; at < size; at += sizeof block) {
    get_n(fd, block, sizeof block);
    for (size_t i = 0; i < sizeof block; i++)
      if (block[i] != bulk_byte(at + i, salt))
        return false;
    if (pause_ms && at % (8 * 1024 * 1024) == 0)
      sleep_ms(pause_ms);
  }
  return true;
}

/* Send while anything is taken; how much that was. */
UNUSED static size_t send_until_blocked(int fd) {
  static char block[65536];
  size_t total = 0;
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  while (poll(&room, 1, 300) == 1) {
    ssize_t n = send(fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0)
      total += (size_t)n;
  }
  return total;
}

UNUSED static void receive_all(int fd, size_t size) {
  static char block[65536];
  for (size_t left = size, n; left; left -= n)
    get_n(fd, block, n = left < sizeof block ? left : sizeof block);
}

#endif
