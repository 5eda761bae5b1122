"""The scenarios, one file each: a module here with a SCENARIO is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from nodeagent.bench.case import Scenario
from nodeagent.config.yaml_fields import suggestion
from nodeagent.errors import ConfigError


def all_scenarios() -> dict[str, Scenario]:
    """The scenarios by name, in the order of their files."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").SCENARIO for name in modules]
    return {scenario.name: scenario for scenario in found}


def choose_scenarios(names: Sequence[str], *, captured: bool) -> list[Scenario]:
    """Those of these names (none: all that there are); ConfigError for an unknown or unfitting one."""
    known = all_scenarios()
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no scenario {name!r}{suggestion(name, set(known))}")
        if captured and not known[name].captured:
            able = ", ".join(scenario.name for scenario in known.values() if scenario.captured)
            raise ConfigError(f"scenario {name} cannot be measured with --captured; {able} can")
    chosen = [known[name] for name in dict.fromkeys(names)] or list(known.values())
    return [scenario for scenario in chosen if scenario.captured or not captured]
