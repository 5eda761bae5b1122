"""What is wrong with the configuration: every error and warning, where it is and how to mend it."""

from __future__ import annotations

import enum
import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)


class Severity(enum.StrEnum):
    """How bad an issue is: an error keeps something out of force, a warning or info does not."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


_LEVELS = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING, Severity.INFO: logging.INFO}


@dataclass(frozen=True, slots=True)
class Issue:
    """One finding. `source` is file:line, `resource` is `Kind namespace/name`, `path` the field; each may be empty."""

    severity: Severity
    code: str
    message: str
    source: str = ""
    resource: str = ""
    path: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.resource, self.path, self.message) if part)


class Report:
    """The issues in force, kept per owner (a file, an object, an object's analysis) so that a mend clears its own."""

    def __init__(self) -> None:
        self._issues: dict[Hashable, tuple[Issue, ...]] = {}

    def replace(self, owner: Hashable, issues: Iterable[Issue]) -> None:
        """Set the issues of one owner; those that were not there before are logged."""
        known = set(self._issues.get(owner, ()))
        current = tuple(dict.fromkeys(issues))
        for issue in current:
            if issue not in known:
                log.log(_LEVELS[issue.severity], "%s [%s]", issue, issue.code)
        if current:
            self._issues[owner] = current
        else:
            self._issues.pop(owner, None)

    def owners(self) -> list[Hashable]:
        """Whoever has an issue."""
        return list(self._issues)

    def __iter__(self) -> Iterator[Issue]:
        for issues in self._issues.values():
            yield from issues

    def counts(self) -> dict[str, int]:
        """Number of issues by severity; every severity is named."""
        found = Counter(issue.severity.value for issue in self)
        return {severity.value: found.get(severity.value, 0) for severity in Severity}
