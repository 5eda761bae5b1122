/* SPDX-License-Identifier: Apache-2.0 */
#include "conntrack.h"

#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_BYTES 4096

typedef struct request {
  struct nlmsghdr header;
  struct nfgenmsg family;
  char attributes[128];
} request;

static void put(request *r, uint16_t type, const void *value, size_t n) {
  struct nlattr attribute = {.nla_len = (uint16_t)(NLA_HDRLEN + n), .nla_type = type};
  char *at = (char *)r + NLMSG_ALIGN(r->header.nlmsg_len);
  memcpy(at, &attribute, sizeof attribute);
  if (n)
    memcpy(at + NLA_HDRLEN, value, n);
  r->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(r->header.nlmsg_len) + NLA_ALIGN(attribute.nla_len));
}

static size_t begin(request *r, uint16_t type) {
  size_t at = r->header.nlmsg_len;
  put(r, type | NLA_F_NESTED, NULL, 0);
  return at;
}

static void end(request *r, size_t at) {
  struct nlattr *attribute = (struct nlattr *)((char *)r + at);
  attribute->nla_len = (uint16_t)(r->header.nlmsg_len - at);
}

/* The entry whose answers go from `here` to the client. */
static void fill(request *r, const na_address *client, const na_address *here) {
  bool v4 = na_ip_is_v4(client->ip);
  uint16_t from = htons(here->port), to = htons(client->port);
  uint8_t udp = IPPROTO_UDP;
  *r = (request){.header = {.nlmsg_len = NLMSG_LENGTH(sizeof r->family),
                            .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
                            .nlmsg_flags = NLM_F_REQUEST},
                 .family = {.nfgen_family = (uint8_t)na_address_family(client), .version = NFNETLINK_V0}};
  size_t tuple = begin(r, CTA_TUPLE_REPLY), ip = begin(r, CTA_TUPLE_IP);
  put(r, v4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, v4 ? here->ip + 12 : here->ip, v4 ? 4 : 16);
  put(r, v4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, v4 ? client->ip + 12 : client->ip, v4 ? 4 : 16);
  end(r, ip);
  size_t protocol = begin(r, CTA_TUPLE_PROTO);
  put(r, CTA_PROTO_NUM, &udp, sizeof udp);
  put(r, CTA_PROTO_SRC_PORT, &from, sizeof from);
  put(r, CTA_PROTO_DST_PORT, &to, sizeof to);
  end(r, protocol);
  end(r, tuple);
}

/* The value of an attribute among n bytes of them; NULL if it is not there. */
static const char *find(const char *bytes, size_t n, uint16_t type, size_t *length) {
  while (n >= NLA_HDRLEN) {
    struct nlattr attribute;
    memcpy(&attribute, bytes, sizeof attribute);
    if (attribute.nla_len < NLA_HDRLEN || attribute.nla_len > n)
      return NULL;
    *length = attribute.nla_len - NLA_HDRLEN;
    if ((attribute.nla_type & NLA_TYPE_MASK) == type)
      return bytes + NLA_HDRLEN;
    size_t step = NLA_ALIGN(attribute.nla_len);
    if (step >= n)
      return NULL;
    bytes += step;
    n -= step;
  }
  return NULL;
}

static int read_original(const char *bytes, size_t n, bool v4, na_address *out) {
  size_t length, size = v4 ? 4 : 16;
  uint16_t port;
  const char *tuple = find(bytes, n, CTA_TUPLE_ORIG, &length);
  size_t tuple_n = length;
  const char *ip = tuple ? find(tuple, tuple_n, CTA_TUPLE_IP, &length) : NULL;
  const char *address = ip ? find(ip, length, v4 ? CTA_IP_V4_DST : CTA_IP_V6_DST, &length) : NULL;
  if (!address || length != size)
    return -EBADMSG;
  static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
  memcpy(out->ip, mapped, sizeof mapped);
  memcpy(out->ip + 16 - size, address, size);
  const char *protocol = find(tuple, tuple_n, CTA_TUPLE_PROTO, &length);
  const char *found = protocol ? find(protocol, length, CTA_PROTO_DST_PORT, &length) : NULL;
  if (!found || length != sizeof port)
    return -EBADMSG;
  memcpy(&port, found, sizeof port);
  out->port = ntohs(port);
  return 0;
}

int na_conntrack_open(const na_netns *netns, const na_netns *home) {
  int fd = na_netns_open(netns, home, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  if (fd < 0 || connect(fd, (struct sockaddr *)&kernel, sizeof kernel) == 0)
    return fd;
  int error = -errno;
  close(fd);
  return error;
}

int na_conntrack_original(int fd, const na_address *client, const na_address *here, na_address *out) {
  _Alignas(struct nlmsghdr) char answer[ANSWER_BYTES];
  request r;
  fill(&r, client, here);
  while (recv(fd, answer, sizeof answer, MSG_DONTWAIT) >= 0)
    ; /* what an earlier call has left */
  if (send(fd, &r, r.header.nlmsg_len, 0) < 0)
    return -errno;
  ssize_t n = recv(fd, answer, sizeof answer, MSG_DONTWAIT); /* made within send() */
  struct nlmsghdr header;
  if (n < (ssize_t)sizeof header)
    return n < 0 ? -errno : -EBADMSG;
  memcpy(&header, answer, sizeof header);
  if (header.nlmsg_type == NLMSG_ERROR) {
    int error = 0;
    if (n >= (ssize_t)NLMSG_LENGTH(sizeof error))
      memcpy(&error, answer + NLMSG_HDRLEN, sizeof error);
    return error ? error : -EBADMSG;
  }
  size_t attributes = NLMSG_LENGTH(sizeof(struct nfgenmsg));
  if (header.nlmsg_len > (size_t)n || header.nlmsg_len < attributes)
    return -EBADMSG;
  return read_original(answer + attributes, header.nlmsg_len - attributes, na_ip_is_v4(client->ip), out);
}
