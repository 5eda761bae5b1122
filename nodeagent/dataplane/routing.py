"""Routing of a captured namespace: how packets find the way back to the agent's sockets.

Where the ruleset translates (ruleset.py) that takes rules, each with a table per address family:

- *Return path of inbound connections.* The agent connects to the application from the client's address. The
  answers go to that foreign address; the ruleset marks them, and the mark leads to a table in which everything
  is local.
- *Sockets bound to a device* (SO_BINDTODEVICE). Redirection sends their packets to 127.0.0.1 or ::1, but the
  kernel routes them again within the bound device, where no such address is. The second table has it there as
  well. Its rule comes after the `local` table, which serves all others.

Capture by eBPF needs no rules as a rule. One alone takes from the namespace the kernel's short way through its routing
tables, for good, which costs each connect() 3.5 us. It needs

- *the loopback addresses on each device*, for what is bound to one: in the `local` table itself, behind the entries of
  the loopback device, so that nothing else finds them;
- *a local prefix of IPv6*, for addresses that stand for clients (bpf/include/stand_in.h); IPv4 has 127.0.0.0/8;
- *rules for TCP from behind the workload*, only where there may be something: a second device (device_watch.py tells
  when it comes). What arrives for an address that is not the namespace's own is delivered here then, where the
  ruleset gives it to the agent. What leaves jumps over that rule.

Nothing in here depends on an rp_filter, accept_local or route_localnet setting: packets carry their route across
the loopback device, so that no source validation is made. All rules and routes carry a protocol number of our own,
by which they are found again.
"""

from __future__ import annotations

import socket
from typing import Final

from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.rtnetlink import Address, Link, LocalRoute, RouteSocket, Rule
from nodeagent.errors import NetnsError

PROTOCOL: Final = 110
"""rt_protos number of everything added here (the range above 4 is free for use; see
/etc/iproute2/rt_protos)."""
RETURN_MARK: Final = 0x6E61
RETURN_TABLE: Final = 0x6E61
BOUND_TABLE: Final = 0x6E62
RETURN_PRIORITY: Final = 90
BOUND_PRIORITY: Final = 91
LEAVING_PRIORITY: Final = 92
FORWARDED_PRIORITY: Final = 93
LANDING_PRIORITY: Final = 94
LOOPBACK_INDEX: Final = 1  # in every network namespace
LOCAL_TABLE: Final = 255  # RT_TABLE_LOCAL
STAND_INS: Final = bytes.fromhex("fd169254712700060000000000000000")
"""Prefix of 64 bits of the addresses that stand for clients of IPv6 (bpf/include/stand_in.h)."""

_LOOPBACK: Final = {
    socket.AF_INET: bytes([127, 0, 0, 1]),
    socket.AF_INET6: bytes(15) + b"\1",
}


def usable_families(addresses: list[Address]) -> list[int]:
    """Families whose loopback address is there; without it redirection has nowhere to go."""
    present = {address.raw for address in addresses if address.link == LOOPBACK_INDEX}
    return [int(family) for family, loopback in _LOOPBACK.items() if loopback in present]


def wanted_rules(families: list[int]) -> set[Rule]:
    """The rules of a namespace whose ruleset translates."""
    rules = set()
    for family in families:
        rules.add(Rule(family, RETURN_PRIORITY, RETURN_TABLE, mark=RETURN_MARK))
        rules.add(
            Rule(family, BOUND_PRIORITY, BOUND_TABLE, destination=_LOOPBACK[socket.AddressFamily(family)])
        )
    return rules


def wanted_routes(families: list[int], links: list[Link], addresses: list[Address]) -> set[LocalRoute]:
    """The routes of a namespace whose ruleset translates: by interface that is up and has addresses of the family."""
    routes = set()
    for family in families:
        routes.add(_all_local(family))
        routes |= _loopback_routes(family, BOUND_TABLE, links, addresses)
    return routes


def _loopback_routes(family: int, table: int, links: list[Link], addresses: list[Address]) -> set[LocalRoute]:
    length = 4 if family == socket.AF_INET else 16
    speaking = {address.link for address in addresses if len(address.raw) == length}
    return {
        LocalRoute(family, table, link.index, link.index, _LOOPBACK[socket.AddressFamily(family)])
        for link in links
        if link.up and link.index != LOOPBACK_INDEX and link.index in speaking
    }


def _all_local(family: int) -> LocalRoute:
    return LocalRoute(family, RETURN_TABLE, LOOPBACK_INDEX, LOOPBACK_INDEX)


def steered_rules(families: list[int], behind: bool) -> set[Rule]:
    """The rules of a namespace that is captured by eBPF. `behind`: something may send through it."""
    rules = set()
    for family in families if behind else ():
        rules.add(Rule(family, LEAVING_PRIORITY, device="lo", skip_to=LANDING_PRIORITY))
        rules.add(Rule(family, FORWARDED_PRIORITY, RETURN_TABLE, protocol=socket.IPPROTO_TCP))
        rules.add(Rule(family, LANDING_PRIORITY))
    return rules


def steered_routes(
    families: list[int], links: list[Link], addresses: list[Address], behind: bool
) -> set[LocalRoute]:
    """The routes of a namespace that is captured by eBPF."""
    routes = {_all_local(family) for family in families if behind}
    for family in families:
        routes |= _loopback_routes(family, LOCAL_TABLE, links, addresses)
    if socket.AF_INET6 in families:
        routes.add(LocalRoute(socket.AF_INET6, LOCAL_TABLE, LOOPBACK_INDEX, 1, STAND_INS, 64))
    return routes


def has_behind(links: list[Link]) -> bool:
    """Whether something may send through a namespace: it has more than one device that is up, besides loopback."""
    return sum(link.up and link.index != LOOPBACK_INDEX for link in links) > 1


def _apply() -> None:
    with RouteSocket(PROTOCOL) as routes:
        links, addresses = _look(routes)
        families = usable_families(addresses)
        _converge(routes, wanted_rules(families), wanted_routes(families, links, addresses))


def _apply_steered() -> bool:
    with RouteSocket(PROTOCOL) as routes:
        links, addresses = _look(routes)
        families, behind = usable_families(addresses), has_behind(links)
        _converge(routes, steered_rules(families, behind), steered_routes(families, links, addresses, behind))
        return behind


def _may_send_through() -> bool:
    with RouteSocket(PROTOCOL) as routes:
        return has_behind(routes.links())


def _look(routes: RouteSocket) -> tuple[list[Link], list[Address]]:
    links, addresses = routes.links(), routes.addresses()
    if not any(link.index == LOOPBACK_INDEX and link.up for link in links):
        raise NetnsError("the loopback device of the namespace is down; bring it up: ip link set lo up")
    return links, addresses


def _converge(routes: RouteSocket, rules_wanted: set[Rule], routes_wanted: set[LocalRoute]) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        _converge_family(routes, family, rules_wanted, routes_wanted)


def _converge_family(
    routes: RouteSocket, family: int, rules_wanted: set[Rule], routes_wanted: set[LocalRoute]
) -> None:
    """Make what is ours in this family equal to what is wanted: routes first in, last out."""
    there = routes.own_routes(family)
    rules_there = routes.own_rules(family)
    for route in sorted(route for route in routes_wanted if route.family == family and route not in there):
        routes.add_route(route)
    for rule in sorted(rule for rule in rules_wanted if rule.family == family and rule not in rules_there):
        routes.add_rule(rule)
    for rule in sorted(rules_there - rules_wanted):
        routes.delete_rule(rule)
    for route in sorted(there - routes_wanted):
        routes.delete_route(route)


def _remove() -> None:
    with RouteSocket(PROTOCOL) as routes:
        _converge(routes, set(), set())


def apply_routing(namespace: NetworkNamespace) -> None:
    """Put rules and routes in force for a ruleset that translates; changes only what differs. Blocks."""
    namespace.run(_apply)


def apply_steered_routing(namespace: NetworkNamespace) -> bool:
    """The same where eBPF captures; returns whether something may send through the namespace. Blocks."""
    return namespace.run(_apply_steered)


def may_send_through(namespace: NetworkNamespace) -> bool:
    """What apply_steered_routing() would return. Blocks."""
    return namespace.run(_may_send_through)


def remove_routing(namespace: NetworkNamespace) -> None:
    """Take away what either of them put there. Blocks."""
    namespace.run(_remove)


def read_addresses(namespace: NetworkNamespace) -> list[bytes]:
    """The namespace's own addresses, 4 or 16 bytes each, without those of the loopback device and those that
    another host was found to have. Blocks."""

    def read() -> list[bytes]:
        with RouteSocket(PROTOCOL) as routes:
            return [
                address.raw
                for address in routes.addresses()
                if address.link != LOOPBACK_INDEX and address.usable
            ]

    return namespace.run(read)


def read_devices(namespace: NetworkNamespace) -> list[Link]:
    """The devices of the namespace that are up and have an address, without loopback. Blocks."""

    def read() -> list[Link]:
        with RouteSocket(PROTOCOL) as routes:
            speaking = {address.link for address in routes.addresses()}
            return [
                link
                for link in routes.links()
                if link.up and link.index != LOOPBACK_INDEX and link.index in speaking
            ]

    return namespace.run(read)
