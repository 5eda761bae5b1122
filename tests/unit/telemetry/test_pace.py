"""How often the engine's access records are taken."""

from __future__ import annotations

from nodeagent.telemetry.pace import LONGEST, SHORTEST, WANTED, Pace


def test_idle_looks_are_rare() -> None:
    pace = Pace()
    for _ in range(5):
        pace.note(0, pace.wait)
    assert pace.wait == LONGEST


def test_a_thousand_a_second_are_taken_together() -> None:
    pace = Pace()
    for _ in range(5):
        pace.note(int(1000 * pace.wait), pace.wait)
    assert pace.wait >= 0.15


def test_a_rush_is_followed_at_once_and_calm_step_by_step() -> None:
    pace = Pace()
    pace.note(4 * WANTED, 0.1)
    assert pace.wait == 0.025
    pace.note(0, 0.025)
    assert pace.wait == 0.05
    pace.note(1000 * WANTED, 0.1)
    assert pace.wait == SHORTEST
