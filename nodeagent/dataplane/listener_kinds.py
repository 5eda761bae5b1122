"""The listeners of the engine by which a workload is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.dataplane._native import lib
from nodeagent.dataplane.ruleset import DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT


@dataclass(frozen=True, slots=True)
class Listener:
    """A port on which a workload's captured connections arrive; `kind` is NA_LISTENER_*."""

    kind: int
    port: int


CAPTURE_LISTENERS: Final = (
    Listener(lib.NA_LISTENER_OUTBOUND, OUTBOUND_PORT),
    Listener(lib.NA_LISTENER_INBOUND, INBOUND_PORT),
)
HBONE_LISTENER: Final = Listener(lib.NA_LISTENER_HBONE, HBONE_PORT)
DNS_LISTENER: Final = Listener(lib.NA_LISTENER_DNS, DNS_PORT)
