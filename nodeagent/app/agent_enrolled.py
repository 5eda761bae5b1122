"""A workload of this node, as the agent has it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nodeagent.app.agent_ports import Capture
from nodeagent.app.agent_view import ViewController
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.enroll.enroller import EnrolledPod


@dataclass(slots=True)
class Enrolled:
    """A workload that is served, or about to be, or on its way out."""

    pod: EnrolledPod
    netns: NetworkNamespace
    addresses: tuple[bytes, ...]
    state: str = "pending"
    error: str = ""
    identity: str = ""
    """Its SPIFFE ID, empty in an agent without identities."""
    view: ViewController | None = None
    capture: Capture | None = None
    moving: asyncio.Task[None] | None = None
    """It changes from one view to another."""
    between_views: bool = False
    """The one that it shall have does not serve it yet."""
    may_open: bool = False
    """Its inbound configuration is known, and asks nobody for anything."""
    fail_mode: str = "closed"
    """What is in force: whether its connections pass (`open`) or are refused while no agent runs."""
    turning: asyncio.Task[None] | None = None
    """The fail mode changes."""
