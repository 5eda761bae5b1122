/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets, clocks and options, as the programs of the benchmark need them. What cannot go on ends the program with a
 * message: there is nothing to save.
 */
#ifndef NODEAGENT_BENCH_NET_H
#define NODEAGENT_BENCH_NET_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

/* Print to standard error and exit with status 1. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);
/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t clock_ns(void);
/* Processor time of this process in nanoseconds. */
uint64_t cpu_ns(void);
/* Raise the limit of descriptors as far as it goes. */
void raise_descriptor_limit(void);
/* A whole number of an option within bounds, or die() naming the option. */
uint64_t parse_number(const char *option, const char *text, uint64_t low, uint64_t high);
/* `ADDRESS:PORT` or `PORT` (127.0.0.1), IPv4. */
struct sockaddr_in parse_endpoint(const char *option, const char *text);
/* A non-blocking listening socket. */
int listen_on(const struct sockaddr_in *address);
/* A non-blocking connection without Nagle's delay, in progress or done; -errno when it fails at once. */
int connect_to(const struct sockaddr_in *address);
/* Non-blocking accept without Nagle's delay; -errno. */
int accept_from(int listener);
/* epoll_ctl(2) that dies on failure. */
void epoll_arm(int epoll_fd, int operation, int fd, uint32_t events, void *data);

#endif
