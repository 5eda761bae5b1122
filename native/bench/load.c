/* SPDX-License-Identifier: Apache-2.0
 *
 * The load generator: one thread, HTTP/1.1 or TCP, closed or open loop, and it checks all that comes back.
 *
 *   nodeagent-load --protocol http|http-close|echo|stream|connect --target ADDRESS:PORT [--connections N]
 *                  [--rate N] [--warm-up SECONDS] [--seconds SECONDS] [--body BYTES] [--host NAME] [--hold]
 *                  [--tls PREFIX [--resume]]
 *
 * With --tls the target is spoken to in TLS 1.3 with the certificate in PREFIX.chain.pem, .key.pem and .roots.pem;
 * connections do not resume each other's sessions unless --resume says so.
 *
 * Prints the line {"event":"begin"} when the warm-up is over and one JSON object at the end. In an open loop (--rate)
 * a latency counts from when the request was to be sent, not from when it could be (no coordinated omission).
 */
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "load.h"
#include "net.h"

static const load_protocol *const protocols[] = {&load_http, &load_http_close, &load_echo, &load_stream, &load_connect};
static const char *const error_names[LOAD_ERRORS] = {"connect", "closed", "status", "framing", "content"};

static load state;

static const load_protocol *find_protocol(const char *name) {
  for (size_t i = 0; i < sizeof protocols / sizeof *protocols; i++)
    if (strcmp(protocols[i]->name, name) == 0)
      return protocols[i];
  die("--protocol %s: not one of http, http-close, echo, stream, connect", name);
}

static double parse_seconds(const char *option, const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= 0 && value <= 86400))
    die("%s %s: not a number of seconds", option, text);
  return value;
}

static void set_option(load_options *o, int option, const char *value) {
  switch (option) {
  case 'p':
    o->protocol = find_protocol(value);
    break;
  case 't':
    o->target = parse_endpoint("--target", value);
    break;
  case 'c':
    o->connections = (uint32_t)parse_number("--connections", value, 1, 100000);
    break;
  case 'r':
    o->rate = parse_number("--rate", value, 1, 10000000);
    break;
  case 'w':
    o->warm_up = parse_seconds("--warm-up", value);
    break;
  case 's':
    o->seconds = parse_seconds("--seconds", value);
    break;
  case 'b':
    o->body = parse_number("--body", value, 0, 1 << 20);
    break;
  case 'H':
    if (strlen(value) > 253 || strpbrk(value, "\r\n "))
      die("--host %s: not the name of a host", value);
    o->host = value;
    break;
  case 'h':
    o->hold = true;
    break;
  case 'T':
    o->tls = value;
    break;
  case 'R':
    o->resume = true;
    break;
  default:
    die("usage: nodeagent-load --protocol http|http-close|echo|stream|connect --target ADDRESS:PORT "
        "[--connections N] [--rate N] [--warm-up SECONDS] [--seconds SECONDS] [--body BYTES] [--host NAME] "
        "[--hold] [--tls PREFIX [--resume]]");
  }
}

static void read_options(load_options *o, int argc, char **argv) {
  static const struct option options[] = {
      {"protocol", required_argument, NULL, 'p'},
      {"target", required_argument, NULL, 't'},
      {"connections", required_argument, NULL, 'c'},
      {"rate", required_argument, NULL, 'r'},
      {"warm-up", required_argument, NULL, 'w'},
      {"seconds", required_argument, NULL, 's'},
      {"body", required_argument, NULL, 'b'},
      {"host", required_argument, NULL, 'H'},
      {"hold", no_argument, NULL, 'h'},
      {"tls", required_argument, NULL, 'T'},
      {"resume", no_argument, NULL, 'R'},
      {0},
  };
  int option;
  *o = (load_options){.connections = 1, .warm_up = 1, .seconds = 3, .body = 64, .host = "bench.local"};
  while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
    set_option(o, option, optarg);
  if (!o->protocol || !o->target.sin_port || optind < argc)
    set_option(o, '?', NULL);
  if (o->resume && !o->tls)
    die("--resume goes with --tls");
  if (o->protocol->streams && (o->rate || o->hold))
    die("a stream has no requests: --rate and --hold do not go with it");
  if (o->protocol->connects && (!o->rate || o->connections > 1 || o->hold || o->tls))
    die("connect goes with --rate, and with one connection at a time, neither held nor with TLS");
}

static void say_begin(void) {
  puts("{\"event\":\"begin\"}");
  fflush(stdout);
}

static void print_result(const load *l, uint64_t elapsed_ns, uint64_t used_ns, uint32_t held) {
  printf("{\"event\":\"end\",\"seconds\":%.6f,\"cpu\":%.6f,\"requests\":%llu,\"bytes\":%llu,\"opened\":%llu,"
         "\"missed\":%llu,\"held\":%u,\"errors\":{",
         (double)elapsed_ns / 1e9, (double)used_ns / 1e9, (unsigned long long)l->requests, (unsigned long long)l->bytes,
         (unsigned long long)l->opened, (unsigned long long)l->missed, held);
  for (int i = 0; i < LOAD_ERRORS; i++)
    printf("%s\"%s\":%llu", i ? "," : "", error_names[i], (unsigned long long)l->errors[i]);
  fputs("},\"first_error\":\"", stdout);
  for (const char *p = l->first_error; *p; p++) /* what a peer sent may be in it */
    printf(*p < ' ' || *p == '"' || *p == '\\' || *p == 127 ? "?" : "%c", *p);
  fputs("\",\"latency\":", stdout);
  histogram_print(&l->latency, stdout);
  puts("}");
}

static uint64_t began, began_cpu;

static void begin(void) {
  say_begin();
  began = clock_ns();
  began_cpu = cpu_ns();
}

int main(int argc, char **argv) {
  read_options(&state.options, argc, argv);
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN);
  (void)prctl(PR_SET_TIMERSLACK, 1); /* wake when a request is due, not up to 50 us later */
  uint32_t held = 0;
  if (state.options.hold)
    held = load_hold(&state, begin);
  else if (state.options.protocol->connects)
    load_connects(&state, begin);
  else
    load_run(&state, begin);
  print_result(&state, clock_ns() - began, cpu_ns() - began_cpu, held);
  return 0;
}
