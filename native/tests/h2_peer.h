/* SPDX-License-Identifier: Apache-2.0
 *
 * An HTTP/2 peer that tests play by hand, frame by frame, over blocking TLS: to say what no library would.
 */
#ifndef NODEAGENT_H2_PEER_H
#define NODEAGENT_H2_PEER_H

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "hbone_rig.h"

enum {
  H2_DATA = 0,
  H2_HEADERS = 1,
  H2_PRIORITY = 2,
  H2_RST_STREAM = 3,
  H2_SETTINGS = 4,
  H2_PING = 6,
  H2_GOAWAY = 7,
  H2_WINDOW_UPDATE = 8,
  H2_CONTINUATION = 9
};
enum { H2_ACK = 1, H2_END_STREAM = 1, H2_END_HEADERS = 4 };

typedef struct h2_peer {
  int fd;
  SSL *ssl;
  SSL_CTX *context;
  uint8_t payload[1 << 17]; /* of the last frame read */
  size_t n;
  int type;
  int flags;
  uint32_t stream;
} h2_peer;

/* What a peer's TLS is to be like. */
typedef struct h2_tls {
  const credential *own; /* NULL: no certificate */
  const credential *ca;
  const char *protocol; /* ALPN; NULL: h2 */
  int version;          /* 0: TLS 1.3 */
  bool server;
} h2_tls;

static int choose_protocol(SSL *ssl, const uint8_t **out, uint8_t *out_n, const uint8_t *in, unsigned n,
                           void *protocol) {
  *out = protocol;
  *out_n = (uint8_t)strlen(protocol);
  return SSL_TLSEXT_ERR_OK;
}

/* Shake hands over fd; whether that went well as far as this side can tell. */
UNUSED static bool h2_handshake(h2_peer *peer, int fd, const h2_tls *tls) {
  const char *protocol = tls->protocol ? tls->protocol : "h2";
  uint8_t wire[16] = {(uint8_t)strlen(protocol)};
  memcpy(wire + 1, protocol, strlen(protocol));
  memset(peer, 0, sizeof *peer);
  peer->fd = fd;
  peer->context = SSL_CTX_new(TLS_method());
  SSL_CTX_set_max_proto_version(peer->context, tls->version ? tls->version : TLS1_3_VERSION);
  if (tls->own) {
    assert_int_equal(SSL_CTX_use_certificate(peer->context, tls->own->certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(peer->context, tls->own->key), 1);
  }
  SSL_CTX_set_alpn_protos(peer->context, wire, (unsigned)strlen(protocol) + 1);
  SSL_CTX_set_alpn_select_cb(peer->context, choose_protocol, (void *)protocol);
  if (tls->server)
    SSL_CTX_set_verify(peer->context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  if (tls->ca)
    X509_STORE_add_cert(SSL_CTX_get_cert_store(peer->context), tls->ca->certificate);
  peer->ssl = SSL_new(peer->context);
  SSL_set_fd(peer->ssl, fd);
  ERR_clear_error();
  return (tls->server ? SSL_accept(peer->ssl) : SSL_connect(peer->ssl)) == 1;
}

UNUSED static void h2_close(h2_peer *peer) {
  SSL_free(peer->ssl);
  SSL_CTX_free(peer->context);
  close(peer->fd);
}

UNUSED static bool h2_write(h2_peer *peer, const void *bytes, size_t n) {
  ERR_clear_error();
  return n == 0 || SSL_write(peer->ssl, bytes, (int)n) == (int)n;
}

/* Send a frame; whether the connection still takes it. */
UNUSED static bool h2_send(h2_peer *peer, int type, int flags, uint32_t stream, const void *payload, size_t n) {
  static uint8_t frame[9 + (1 << 17)];
  assert_true(n <= sizeof frame - 9);
  const uint8_t head[9] = {(uint8_t)(n >> 16),      (uint8_t)(n >> 8),      (uint8_t)n,
                           (uint8_t)type,           (uint8_t)flags,         (uint8_t)(stream >> 24),
                           (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
  memcpy(frame, head, 9);
  if (n)
    memcpy(frame + 9, payload, n);
  return h2_write(peer, frame, n + 9);
}

static bool h2_read(h2_peer *peer, void *out, size_t n) {
  for (uint8_t *p = out; n;) {
    ERR_clear_error();
    int got = SSL_read(peer->ssl, p, (int)n);
    if (got <= 0)
      return false;
    p += got;
    n -= (size_t)got;
  }
  return true;
}

/* Read the next frame; false when the connection has ended. */
UNUSED static bool h2_next(h2_peer *peer) {
  uint8_t head[9];
  if (!h2_read(peer, head, sizeof head))
    return false;
  peer->n = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
  peer->type = head[3];
  peer->flags = head[4];
  peer->stream = (uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8];
  assert_true(peer->n <= sizeof peer->payload);
  return h2_read(peer, peer->payload, peer->n);
}

/* Read on to a frame of the type (and stream, unless 0); false when the connection has ended. */
UNUSED static bool h2_await(h2_peer *peer, int type, uint32_t stream) {
  while (h2_next(peer))
    if (peer->type == type && (!stream || peer->stream == stream) && !(type == H2_PING && peer->flags & H2_ACK))
      return true;
  return false;
}

UNUSED static void h2_settings(h2_peer *peer) {
  assert_true(h2_send(peer, H2_SETTINGS, 0, 0, NULL, 0));
}

#define H2_PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

/* A client that has said hello. */
UNUSED static void h2_dial(h2_peer *peer, const hbone_scene *s) {
  assert_true(h2_handshake(peer, dial(s->tunnel), &(h2_tls){.own = &s->a, .ca = &s->ca}));
  assert_true(h2_write(peer, H2_PREFACE, strlen(H2_PREFACE)));
  h2_settings(peer);
}

/* A server on the accepted socket that has heard the hello. */
UNUSED static void h2_answer(h2_peer *peer, int fd, const hbone_scene *s) {
  char preface[sizeof H2_PREFACE] = {0};
  assert_true(h2_handshake(peer, fd, &(h2_tls){.own = &s->b, .ca = &s->ca, .server = true}));
  assert_true(h2_read(peer, preface, strlen(H2_PREFACE)));
  assert_string_equal(preface, H2_PREFACE);
  h2_settings(peer);
}

/* HPACK: a literal that is not indexed, without Huffman coding (RFC 7541 6.2.2); values below 127 bytes. */
UNUSED static size_t h2_literal(uint8_t *out, const char *name, const char *value) {
  size_t name_n = strlen(name), value_n = strlen(value);
  assert_true(name_n < 127 && value_n < 127);
  out[0] = 0;
  out[1] = (uint8_t)name_n;
  memcpy(out + 2, name, name_n);
  out[2 + name_n] = (uint8_t)value_n;
  memcpy(out + 3 + name_n, value, value_n);
  return 3 + name_n + value_n;
}

/* Send a header block of name, value pairs up to NULL. */
UNUSED static bool h2_headers(h2_peer *peer, uint32_t stream, int flags, const char *const *pairs) {
  uint8_t block[4096];
  size_t n = 0;
  for (; *pairs; pairs += 2)
    n += h2_literal(block + n, pairs[0], pairs[1]);
  return h2_send(peer, H2_HEADERS, flags | H2_END_HEADERS, stream, block, n);
}

UNUSED static bool h2_connect_to(h2_peer *peer, uint32_t stream, const char *authority) {
  return h2_headers(peer, stream, 0, (const char *const[]){":method", "CONNECT", ":authority", authority, NULL});
}

/* CONNECT to the scene's back end. */
UNUSED static bool h2_connect(h2_peer *peer, uint32_t stream, const hbone_scene *s) {
  char authority[32];
  snprintf(authority, sizeof authority, "127.0.0.1:%u", s->backend);
  return h2_connect_to(peer, stream, authority);
}

/* The status of a response in HPACK as nghttp2 writes it: indexed 8..14, or a literal of three digits at the end. */
static int h2_status_of(const h2_peer *peer) {
  static const int indexed[] = {200, 204, 206, 304, 400, 404, 500};
  size_t at = 0;
  while (at < peer->n && (peer->payload[at] & 0xe0) == 0x20) /* table size update */
    at++;
  uint8_t first = peer->payload[at];
  if (first >= 0x88 && first <= 0x8e)
    return indexed[first - 0x88];
  assert_true(first == 0x48 || first == 0x08 || first == 0x18); /* name :status by index */
  const uint8_t *value = peer->payload + at + 2;
  if (peer->payload[at + 1] == 3)
    return (value[0] - '0') * 100 + (value[1] - '0') * 10 + value[2] - '0';
  assert_int_equal(peer->payload[at + 1], 0x82); /* Huffman: 5 bits for 0, 1, 2; 6 for 3..9 */
  unsigned bits = (unsigned)value[0] << 16 | (unsigned)value[1] << 8 | 0xff, used = 0;
  int status = 0;
  for (int i = 0; i < 3; i++) {
    unsigned five = bits >> (19 - used) & 31, six = bits >> (18 - used) & 63;
    status = status * 10 + (int)(five < 3 ? five : six - 22);
    used += five < 3 ? 5 : 6;
  }
  return status;
}

/* Wait for the response of a stream; its status, or 0 when the stream or the connection ended without. */
UNUSED static int h2_status(h2_peer *peer, uint32_t stream) {
  while (h2_next(peer)) {
    if (peer->type == H2_RST_STREAM && peer->stream == stream)
      return 0;
    if (peer->type == H2_HEADERS && peer->stream == stream)
      return h2_status_of(peer);
  }
  return 0;
}

/* The error code of the GOAWAY or RST_STREAM that was read. */
UNUSED static uint32_t h2_error(const h2_peer *peer) {
  const uint8_t *p = peer->payload + (peer->type == H2_GOAWAY ? 4 : 0);
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The connection is ended for the reason. */
UNUSED static void h2_expect_goaway(h2_peer *peer, uint32_t error) {
  if (!h2_await(peer, H2_GOAWAY, 0))
    fail_msg("the connection ended without GOAWAY");
  assert_int_equal(h2_error(peer), error);
  assert_false(h2_await(peer, -1, 0)); /* the end */
}

/* The scene's endpoint is behind a tunnel that the test itself serves. */
UNUSED static int play_server(hbone_scene *s) {
  uint16_t port;
  int listener = listen_any(&port);
  na_builder *b = rig_change(&s->r);
  na_endpoint endpoint = endpoint_at(s->backend);
  na_tunnel_config tunnel = {.port = port, .identities = ID_B};
  uint32_t via = 1;
  assert_int_equal(na_builder_tunnelled_endpoints(b, "c", &endpoint, 1, &via, &tunnel, 1), 0);
  rig_commit(&s->r);
  return listener;
}

UNUSED static void stop_playing(hbone_scene *s, int listener) {
  na_builder *b = rig_change(&s->r);
  hbone_endpoint(b, s, ID_B);
  rig_commit(&s->r);
  close(listener);
}

UNUSED static const uint8_t OK_HEAD[] = {0x88}; /* :status 200 */

#endif
