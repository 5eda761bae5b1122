"""The service proxy: nftables translates virtual addresses in each node's namespace, as kube-proxy does it.

One table a node, written as a whole in one transaction. Connections of pods meet it in prerouting, those of
the node itself in output. What still carries a virtual address after translation has no endpoint, or asks for
a port that the service does not have, and is rejected: the client sees `connection refused`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nodeagent.errors import CapabilityError, LabError
from nodeagent.lab import netns
from nodeagent.lab.names import NFT_TABLE
from nodeagent.lab.services import Address, PortEndpoints, Service

_DSTNAT: Final = -100  # the name `dstnat` is not known in the output hook (nft 1.0.6)
_FAMILIES: Final = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


def ruleset(services: Iterable[Service]) -> str:
    """Return the nft text that replaces the table with one for these services; deterministic."""
    services = sorted(services, key=lambda service: service.spec.key)
    lines = [f"add table inet {NFT_TABLE}", f"delete table inet {NFT_TABLE}", f"table inet {NFT_TABLE} {{"]
    for version in _FAMILIES:
        lines += _family(services, version)
    return "\n".join([*lines, *_hooks(), "}", ""])


def apply(node_netns: str, text: str) -> None:
    """Put a ruleset in force in a node's namespace, all or nothing."""
    netns.run_in(node_netns, lambda: _run(text))


def _run(text: str) -> None:
    try:
        from nftables import Nftables  # its context holds a socket of the namespace that it is made in
    except ImportError:
        raise CapabilityError(
            "the nftables Python module is missing; apt-get install python3-nftables"
        ) from None
    nft = Nftables()
    code, _, error = nft.cmd(text)
    if code != 0:
        raise LabError(f"service proxy: nftables refuses the ruleset: {error.strip()}")


def _family(services: list[Service], version: int) -> Iterator[str]:
    family, kind = _FAMILIES[version]
    virtual: list[str] = []
    verdicts: list[str] = []
    hairpins: set[Address] = set()
    for service in services:
        for address in (a for a in service.virtual_ips if a.version == version):
            virtual.append(str(address))
            for leads_to in service.ports:
                endpoints = [(a, p) for a, p in leads_to.endpoints if a.version == version]
                if not endpoints:
                    continue
                chain = _chain_name(service, leads_to, version)
                yield from _chain(chain, family, leads_to, endpoints)
                protocol = leads_to.port.protocol.lower()
                verdicts.append(f"{address} . {protocol} . {leads_to.port.port} : goto {chain}")
                hairpins.update(a for a, _ in endpoints)
    pairs = [f"{address} . {address}" for address in sorted(hairpins, key=int)]
    yield from _elements(f"set cluster_ips{version}", kind, virtual)
    yield from _elements(f"set hairpins{version}", f"{kind} . {kind}", pairs)
    yield from _elements(f"map services{version}", f"{kind} . inet_proto . inet_service : verdict", verdicts)


def _chain_name(service: Service, leads_to: PortEndpoints, version: int) -> str:
    port = leads_to.port
    return f"svc/{service.spec.key}/{port.protocol.lower()}/{port.port}/v{version}"


def _chain(
    name: str, family: str, leads_to: PortEndpoints, endpoints: list[tuple[Address, int]]
) -> list[str]:
    targets = ", ".join(f"{i} : {address} . {port}" for i, (address, port) in enumerate(endpoints))
    pick = f"numgen random mod {len(endpoints)} map {{ {targets} }}"
    return [
        f"  chain {name} {{",
        f"    meta l4proto {leads_to.port.protocol.lower()} dnat {family} to {pick}",
        "  }",
    ]


def _elements(head: str, kind: str, elements: list[str]) -> Iterator[str]:
    yield f"  {head} {{"
    yield f"    type {kind}"
    if elements:
        yield f"    elements = {{ {', '.join(elements)} }}"
    yield "  }"


def _hooks() -> list[str]:
    # Over IPv6 an ICMP error meets connect() while it still holds the socket, and is noticed with the second SYN
    # only, a second later. A reset waits in the backlog.
    return [
        "  chain services {",
        "    ip daddr . meta l4proto . th dport vmap @services4",
        "    ip6 daddr . meta l4proto . th dport vmap @services6",
        "  }",
        "  chain reject_unserved {",
        "    meta l4proto tcp reject with tcp reset",
        "    reject",
        "  }",
        "  chain unserved {",
        "    ip daddr @cluster_ips4 jump reject_unserved",
        "    ip6 daddr @cluster_ips6 jump reject_unserved",
        "  }",
        *_hook("prerouting", "nat", _DSTNAT, "jump services"),
        *_hook("output", "nat", _DSTNAT, "jump services"),
        # A pod that reaches itself by a service would see its own address as the client's: martian.
        *_hook(
            "postrouting", "nat", 100,
            "ct status dnat ip saddr . ip daddr @hairpins4 masquerade",
            "ct status dnat ip6 saddr . ip6 daddr @hairpins6 masquerade",
        ),
        *_hook("forward", "filter", 0, "jump unserved"),
        *_hook("output-filter", "filter", 0, "jump unserved"),
    ]  # fmt: skip


def _hook(name: str, kind: str, priority: int, *rules: str) -> list[str]:
    hook = name.removesuffix("-filter")
    return [
        f"  chain {name} {{",
        f"    type {kind} hook {hook} priority {priority}; policy accept;",
        *(f"    {rule}" for rule in rules),
        "  }",
    ]
