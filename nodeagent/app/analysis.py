"""What a control plane would say of configuration, found without running one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nodeagent.app.mesh_settings import file_source, mesh_settings, settled
from nodeagent.config.controlplane import ControlPlaneConfig
from nodeagent.controlplane.report import Issue, Report, Severity
from nodeagent.controlplane.world import World

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, slots=True)
class Analysis:
    """Findings, the worst first, and what was looked at."""

    issues: tuple[Issue, ...]
    objects: int
    """Number of objects that were taken."""
    files: int


async def analyze(config: ControlPlaneConfig, *, has_ca: bool = True) -> Analysis:
    """Read the configuration once and judge it; `has_ca`: as a control plane does that issues certificates."""
    config = settled(config)
    report = Report()
    world = World(replace(mesh_settings(config), hbone=has_ca), report)
    source = file_source(config, report)
    world.apply(await source.load())
    world.analyze()
    issues = sorted(report, key=lambda issue: (_ORDER.index(issue.severity), issue.source, issue.resource))
    return Analysis(tuple(issues), sum(world.counts().values()), len(source.describe()))
