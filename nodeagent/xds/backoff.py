"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Doubling from `initial` to `limit` seconds, each with up to half of it taken away by chance."""

    initial: float = 0.01
    limit: float = 15.0
    attempts: int = field(default=0, init=False)
    """Attempts since the last success."""

    def next(self) -> float:
        """Seconds to wait now; counts an attempt."""
        delay = min(self.initial * 2.0 ** min(self.attempts, 32), self.limit)
        self.attempts += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """An attempt succeeded."""
        self.attempts = 0
