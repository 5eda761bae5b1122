"""What an Inbound is for the engine: its guards by number, and what must refuse because its guards cannot be made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nodeagent.dataplane.guards import make_guards
from nodeagent.errors import EngineError
from nodeagent.snapshot.policies import OPEN, Guards
from nodeagent.snapshot.values import Inbound, InboundPort, Protocol


@dataclass(slots=True)
class GuardedInbound:
    """An inbound configuration with its guards made. What has bad guards refuses: nothing passes unjudged."""

    handles: list[Any] = field(default_factory=list)
    """na_guards, in the order of their numbers, which begin at 1."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of guards that cannot be made."""
    every: int = 0
    fallback: Protocol = Protocol.REFUSE
    fallback_guards: int = 0
    ports: list[tuple[InboundPort, Protocol, int]] = field(default_factory=list)
    """With what it speaks here, and the number of its guards."""
    _numbers: dict[int, int | None] = field(default_factory=dict)

    def number(self, guards: Guards, where: str) -> int | None:
        """The number of guards, made on their first use: 0 none, None if they cannot be made."""
        if guards == OPEN:
            return 0
        if id(guards) not in self._numbers:
            self._numbers[id(guards)] = self._make(guards, where)
        return self._numbers[id(guards)]

    def _make(self, guards: Guards, where: str) -> int | None:
        try:
            self.handles.append(make_guards(guards))
        except EngineError as error:
            self.problems.append((where, str(error)))
            return None
        return len(self.handles)


def guard_inbound(inbound: Inbound) -> GuardedInbound:
    """Make the guards of an inbound configuration."""
    made = GuardedInbound()
    # Kept by the caller of number(): its key is their identity.
    every_guards = Guards(connection=tuple(inbound.every))
    every = made.number(every_guards, "every connection")
    made.every = every or 0
    fallback = made.number(inbound.fallback_guards, "ports that are not listed")
    if every is not None and fallback is not None:
        made.fallback, made.fallback_guards = inbound.fallback, fallback
    for port in inbound.ports:
        number = made.number(port.guards, f"port {port.port}")
        if every is None or number is None:
            made.ports.append((port, Protocol.REFUSE, 0))
        else:
            made.ports.append((port, port.protocol, number))
    return made
