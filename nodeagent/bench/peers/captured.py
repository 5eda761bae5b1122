"""A lab's capture as a peer: a client and the back end as pods of one node, whose agent captures both.

What is compared with is the same lab without agents. Both are there at the same time; one at a time has work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from nodeagent import __version__
from nodeagent.bench.labs import HOST, BenchLab, Shape
from nodeagent.bench.peers.base import Peer, Running
from nodeagent.bench.results import DIRECT, SUBJECT
from nodeagent.bench.services import Service
from nodeagent.bench.stage import Stage
from nodeagent.config.bench import BenchConfig
from nodeagent.errors import BenchError, ConfigError


class CapturedPeer(Peer):
    """A lab, with agents or without."""

    plain: ClassVar[bool]
    mode: ClassVar[str] = ""
    """How its agent captures; empty: as `--capture-mode` says."""

    def start(self, stage: Stage, config: BenchConfig, services: Sequence[Service]) -> Running:
        """Bring the lab up, with its processes on their cores."""
        if config.workers != 1:
            raise BenchError("a lab's agents have one worker; --captured goes with --workers 1")
        config = replace(config, capture_mode=self.mode or config.capture_mode)
        lab = BenchLab.bring_up(stage, config, self.mode or self.name[0], Shape(plain=self.plain))
        return Running(self.name, lab.targets(), (lab,), lab.pod("client"), HOST)


class CapturedSubject(CapturedPeer):
    """Captured by nodeagent."""

    name: ClassVar[str] = SUBJECT
    index: ClassVar[int] = 1
    plain: ClassVar[bool] = False

    def find(self) -> str:
        """Its version."""
        return f"{__version__}, captured"


class PlainLab(CapturedPeer):
    """The same pods without agents."""

    name: ClassVar[str] = DIRECT
    index: ClassVar[int] = 0
    plain: ClassVar[bool] = True

    def find(self) -> str:
        """Always there."""
        return "the same lab without agents"


class CapturedByEbpf(CapturedSubject):
    """Captured by eBPF, which is what nodeagent prefers."""

    mode: ClassVar[str] = "ebpf"


class CapturedByNft(CapturedSubject):
    """Captured by nftables."""

    name: ClassVar[str] = "nft"
    index: ClassVar[int] = 2
    mode: ClassVar[str] = "nft"


def captured_peers(names: Sequence[str]) -> list[Peer]:
    """Who can take part in a lab; ConfigError for the others."""
    for name in names:
        if name not in (SUBJECT, DIRECT):
            raise ConfigError(f"--peers {name}: with --captured only {DIRECT} can be compared with")
    return [CapturedSubject(), PlainLab()]
