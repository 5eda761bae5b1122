"""The ruleset of a workload's namespace as nftables text: a pure function of CaptureRules.

It captures what istio-cni captures in a pod: TCP of IPv4 and IPv6, outbound to one port, inbound to another,
neither loopback nor the pod talking to itself, nor HBONE, nor kubelet probes. It differs where that one could
be slipped past or gets in the way:

- The agent's own connections are known by its cgroup, not by a mark or a user id, which any program in the
  pod with CAP_NET_RAW or CAP_SETUID can have.
- What arrives for an address that is not the pod's own (from a namespace or virtual machine behind the pod)
  is the pod's outbound traffic, not its inbound.
- Only the agent's sockets may answer on its ports, so that no program can sit on them while the agent is
  away.
- Connections that are already there when capture begins are left alone: only a SYN is redirected.
- The agent connects to the application with the client's address, and even port. In conntrack that tuple is
  the client's own connection; a zone for the original direction keeps the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nodeagent.dataplane.cgroup import Cgroup
from nodeagent.dataplane.routing import RETURN_MARK

TABLE: Final = "nodeagent"
OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
HBONE_PORT: Final = 15008
DNS_PORT: Final = 15053
PROBE_V4: Final = "169.254.7.127"
PROBE_V6: Final = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
ZONE: Final = RETURN_MARK


@dataclass(frozen=True, slots=True)
class CaptureRules:
    """What the ruleset depends on.

    `agent_path` and `agent_level` name the agent's cgroup as nftables does (cgroup.py). `hbone`: the agent listens on
    HBONE_PORT, too, so that nobody else may. `dns`: what goes to name servers goes to the agent's DNS_PORT. `redirect`
    False is for letting a workload go: connections that were captured keep their translation, new ones are not
    captured. `steered`: connections are captured by eBPF (ebpf_capture.py), and the ruleset only guards, without NAT
    and conntrack. `groups`: the namespace is shared (ebpf_shared.py), and only these cgroups of it are guarded. `open`:
    what is steered passes while the agent does not listen, so that what was not made by connect() is not refused
    either. `past`: it is the ruleset that refuses that; raw_guard.py does it better where it can. `behind`: something
    may send through the namespace (routing.py).
    """

    agent_path: str
    agent_level: int
    outbound_port: int = OUTBOUND_PORT
    inbound_port: int = INBOUND_PORT
    untouched_inbound_ports: tuple[int, ...] = (HBONE_PORT,)
    probe_v4: str = PROBE_V4
    probe_v6: str = PROBE_V6
    hbone: bool = False
    dns: bool = False
    redirect: bool = True
    steered: bool = False
    groups: tuple[Cgroup, ...] | None = None
    open: bool = False
    past: bool = True
    behind: bool = False

    @classmethod
    def for_agent(cls, group: Cgroup, *, hbone: bool = False, dns: bool = False) -> CaptureRules:
        """The rules by which the agent in `group` captures; ValueError if that is the root, which holds
        everyone."""
        if group.level < 1:
            raise ValueError(
                "the agent needs a cgroup of its own: the root group would let every program through"
            )
        return cls(group.nft_path, group.level, hbone=hbone, dns=dns)

    def released(self) -> CaptureRules:
        """The same, for letting the workload go."""
        return replace(self, redirect=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its text without the comment, and the comment by which it is found again."""

    text: str
    comment: str


_TCP_ONLY: Final = Rule("meta l4proto != tcp accept", "TCP only")
_NOT_NEW: Final = Rule("tcp flags & (fin|syn|rst|ack) != syn accept", "not a new connection")
_NEW_TCP_ONLY: Final = (_NOT_NEW, _TCP_ONLY)
"""What nearly all packets are comes first: filter chains see each of them."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain."""

    name: str
    type: str
    hook: str
    priority: int
    rules: tuple[Rule, ...]


def chains_of(rules: CaptureRules) -> tuple[Chain, ...]:
    """The chains of the table, in the order in which packets meet them."""
    if rules.groups is not None:
        return (_groups_chain(rules.groups),)
    agent = f'socket cgroupv2 level {rules.agent_level} "{rules.agent_path}"'
    if rules.steered:
        # Its own ports the agent has by listener lookup (bpf/inbound.bpf.c). No chain is met by packets to and from the
        # workload itself where that can be: each costs all of them.
        behind = (_behind_chain(rules),) if rules.behind else ()
        past = (_past_chain(rules, agent),) if rules.past else ()
        return (*behind, _forward_chain(rules), *past)
    also = ((HBONE_PORT,) if rules.hbone else ()) + ((DNS_PORT,) if rules.dns else ())
    return (
        *((_answer_zone_chain(),) if rules.dns else ()),
        _zone_chain(rules, agent),
        _return_chain(agent),
        _outbound_chain(rules, agent),
        _inbound_chain(rules),
        _guard_chain(rules, agent, (rules.outbound_port, rules.inbound_port, *also)),
    )


def _zone_chain(rules: CaptureRules, agent: str) -> Chain:
    """Connections by addresses, not by cgroup: the last ACK of a connection is sent by a socket of the kernel's own."""
    asks = Rule(f"{agent} udp dport 53 ct zone set {ZONE}", "the agent asks a name server")
    return Chain(
        "output_zone",
        "filter",
        "output",
        -300,
        (
            *((asks,) if rules.dns else ()),
            Rule(
                f'oifname "lo" meta l4proto tcp fib saddr type != local fib daddr type local '
                f"ct original zone set {ZONE}",
                "inbound connection with the address of its client",
            ),
        ),
    )


def _answer_zone_chain() -> Chain:
    """The agent may ask a name server from a port that a client has just had, whose translation lingers: in a zone of
    their own its questions do not meet that. Others hear of name servers by the agent, or by a link."""
    return Chain(
        "prerouting_zone",
        "filter",
        "prerouting",
        -300,
        (
            Rule("ip6 saddr fe80::/10 accept", "a name server of the link"),
            Rule(f'iifname != "lo" udp sport 53 ct zone set {ZONE}', "a name server answers the agent"),
        ),
    )


def _return_chain(agent: str) -> Chain:
    mark = f"{RETURN_MARK:#x}"
    return Chain(
        "output_return",
        "route",
        "output",
        -150,
        (
            Rule(
                f'oifname "lo" {agent} fib saddr type != local ct mark set {mark}',
                "remember whose answers must come back here",
            ),
            Rule(f"ct mark {mark} ct direction reply meta mark set {mark}", "answers to the agent"),
        ),
    )


def _outbound_chain(rules: CaptureRules, agent: str) -> Chain:
    chain: tuple[Rule, ...] = ()
    if rules.redirect:
        chain = (
            *(_dns_rules(agent) if rules.dns else ()),
            _TCP_ONLY,
            _NOT_NEW,
            Rule("fib daddr type local accept", "loopback, or the pod to itself"),
            Rule(f"{agent} accept", "the agent"),
            *((Rule(f"tcp dport 53 redirect to :{DNS_PORT}", "DNS, by connections"),) if rules.dns else ()),
            Rule(f"meta l4proto tcp redirect to :{rules.outbound_port}", "outbound"),
        )
    return Chain("output_capture", "nat", "output", -100, chain)


def _dns_rules(agent: str) -> tuple[Rule, ...]:
    """Datagrams to name servers; not to local ones, nor to those that are known by their link only."""
    return (
        Rule(f"{agent} udp dport 53 accept", "the agent asks a name server"),
        Rule("ip6 daddr fe80::/10 udp dport 53 accept", "a name server of the link"),
        Rule(f"fib daddr type unicast udp dport 53 redirect to :{DNS_PORT}", "DNS"),
    )


def _inbound_chain(rules: CaptureRules) -> Chain:
    chain: tuple[Rule, ...] = ()
    if rules.redirect:
        ports = ", ".join(str(port) for port in rules.untouched_inbound_ports)
        chain = (
            Rule('iifname "lo" accept', "loopback"),
            _TCP_ONLY,
            _NOT_NEW,
            *((Rule(f"tcp dport {{ {ports} }} accept", "ports left alone"),) if ports else ()),
            Rule(f"ip saddr {rules.probe_v4} accept", "kubelet probes, IPv4"),
            Rule(f"ip6 saddr {rules.probe_v6} accept", "kubelet probes, IPv6"),
            Rule(f"meta l4proto tcp fib daddr type local redirect to :{rules.inbound_port}", "inbound"),
            Rule(f"meta l4proto tcp redirect to :{rules.outbound_port}", "outbound from behind the pod"),
        )
    return Chain("prerouting_capture", "nat", "prerouting", -100, chain)


def _behind_chain(rules: CaptureRules) -> Chain:
    """What is forwarded to here by routing.py's rules. The listener is found by its port, the connection keeps its
    destination."""
    chain: tuple[Rule, ...] = ()
    if rules.redirect:
        chain = (
            Rule('iifname "lo" accept', "loopback"),
            *_NEW_TCP_ONLY,
            Rule("fib daddr type local accept", "inbound, the business of listener lookup"),
            Rule(f"meta l4proto tcp tproxy to :{rules.outbound_port}", "outbound from behind the pod"),
        )
    return Chain("prerouting_behind", "filter", "prerouting", -150, chain)


def _forward_chain(rules: CaptureRules) -> Chain:
    """The same before routing.py knows of it: dropped, so that the SYN that is sent again after a second is
    captured."""
    chain: tuple[Rule, ...] = ()
    if rules.redirect:
        chain = (*_NEW_TCP_ONLY, Rule("meta l4proto tcp drop", "from behind the pod, past the agent"))
    return Chain("forward_past", "filter", "forward", 0, chain)


def _past_chain(rules: CaptureRules, agent: str) -> Chain:
    """Connections that were not made by connect(), or before the programs were there to see it."""
    chain: tuple[Rule, ...] = ()
    if rules.redirect and not rules.open:
        chain = (
            *_NEW_TCP_ONLY,
            Rule("fib daddr type local accept", "captured, loopback, or the pod to itself"),
            Rule(f"{agent} accept", "the agent"),
            Rule("meta l4proto tcp reject with tcp reset", "a way past connect()"),
        )
    return Chain("output_past", "filter", "output", 0, chain)


def _groups_chain(groups: tuple[Cgroup, ...]) -> Chain:
    """As _past_chain(), of some cgroups."""
    ways = (
        Rule(
            f'socket cgroupv2 level {group.level} "{group.nft_path}" reject with tcp reset',
            f"a way past connect() {i}",
        )
        for i, group in enumerate(groups)
    )
    chain = (*_NEW_TCP_ONLY, Rule("fib daddr type local accept", "captured, or loopback"), *ways)
    return Chain("output_past", "filter", "output", 0, chain)


def _guard_chain(rules: CaptureRules, agent: str, own: tuple[int, ...]) -> Chain:
    chain: tuple[Rule, ...] = ()
    if rules.redirect:
        ports = ", ".join(str(port) for port in own)
        chain = (
            *_NEW_TCP_ONLY,
            Rule(f"tcp dport != {{ {ports} }} accept", "other ports"),
            Rule(f"{agent} accept", "the agent listens"),
            Rule("socket wildcard { 0, 1 } reject with tcp reset", "anyone else listens"),
            # A socket in TIME_WAIT has no cgroup any more, and no wildcard flag, but a transparent one. The agent's
            # only, since nobody else is let accept; the kernel takes the connection to the listener.
            Rule("socket transparent { 0, 1 } accept", "the port of an ended connection, used again"),
            Rule("meta l4proto tcp reject with tcp reset", "no one listens"),
        )
    return Chain("input_guard", "filter", "input", 0, chain)


def render(rules: CaptureRules) -> str:
    """The whole batch: replaces the table in one transaction, whatever was in it."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for chain in chains_of(rules):
        lines.append(f"  chain {chain.name} {{")
        lines.append(f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;")
        lines.extend(f'    {rule.text} comment "{rule.comment}"' for rule in chain.rules)
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def render_removal() -> str:
    """The batch that removes the table, also when it is not there."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
