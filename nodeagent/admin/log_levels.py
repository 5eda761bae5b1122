"""Log levels at run time, as `POST /logging?level=` sets them."""

from __future__ import annotations

import logging
from typing import Final

ROOT: Final = "nodeagent"
LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 10,
}


def _name_of(scope: str) -> str:
    return ROOT if scope in ("", ROOT) else f"{ROOT}.{scope.removeprefix(f'{ROOT}.')}"


def set_levels(text: str) -> None:
    """Set levels by `LEVEL` or `SCOPE:LEVEL`, several with commas, all or none.

    ValueError names what is wrong.
    A scope is a module without the package's name, such as `xds` or `dataplane.nft`.
    """
    changes: list[tuple[str, int]] = []
    for part in text.split(","):
        scope, _, level = part.strip().rpartition(":")
        if level.lower() not in LEVELS:
            raise ValueError(f"level {level!r}: no log level; there are: {', '.join(LEVELS)}")
        if not scope and part.strip() != level:
            raise ValueError(f"{part!r}: not LEVEL or SCOPE:LEVEL")
        if scope and _name_of(scope) not in logging.root.manager.loggerDict:
            raise ValueError(f"scope {scope!r}: no such logger")
        changes.append((scope, LEVELS[level.lower()]))
    for scope, number in changes:
        logging.getLogger(_name_of(scope)).setLevel(number)


def levels() -> dict[str, str]:
    """Return the level of each logger that has one of its own, and of the whole."""
    names = sorted(name for name in logging.root.manager.loggerDict if name.startswith(f"{ROOT}."))
    found = {ROOT: _name(logging.getLogger(ROOT).getEffectiveLevel())}
    for name in names:
        logger = logging.getLogger(name)
        if logger.level:
            found[name] = _name(logger.level)
    return found


def _name(level: int) -> str:
    return "off" if level > logging.CRITICAL else logging.getLevelName(level).lower()
