"""Which format the agent's access log has, and who writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nodeagent.app.agent_access_log import AccessLogKeeper
from nodeagent.config.agent import AgentConfig
from nodeagent.dataplane.report import AccessRecord, LineFormat, Lines, WireProtocol
from nodeagent.errors import ConfigError

NOWHERE = (bytes(16), 0)
RECORD = AccessRecord(
    "w", True, WireProtocol.HTTP1, 1, 0, 0, 0, 0, 0, 200, 0, None, None, None, NOWHERE, NOWHERE, NOWHERE, NOWHERE,
    *("GET", "a", "/", "", "", "", "", "", "", ""), audited_by="ns[a]-policy[b]-rule[0]",
)  # fmt: skip


class FakeEngine:
    def drain_access(self) -> Sequence[AccessRecord]:
        return (RECORD,)

    def drain_access_lines(self, form: LineFormat) -> Sequence[Lines]:
        return (Lines(f"{form.name}\n".encode(), 1),)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"access_log": "json", "ca": "a:1"}, "IDENTITY_JSON"),
        ({"access_log": "text"}, "TEXT"),
        (
            {"access_log": "text", "access_log_format": "%AUDITED_BY% %RESPONSE_CODE%"},
            "ns[a]-policy[b]-rule[0] 200",
        ),
        (
            {"access_log": "json", "access_log_format": '{"who": "%AUDITED_BY%"}'},
            '{"who":"ns[a]-policy[b]-rule[0]"}',
        ),
    ],
)
def test_the_settings_say_what_is_written(settings: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    config = AgentConfig(node="n", access_log_file=str(file), **settings)
    keeper = AccessLogKeeper(config, FakeEngine())  # type: ignore[arg-type]
    keeper.start()
    assert keeper.pull() == 1
    asyncio.run(keeper.close())
    assert file.read_text() == expected + "\n"


@pytest.mark.parametrize("settings", [("text", "%NO%"), ("json", "%PROTOCOL%")])
def test_what_is_no_format_is_named(settings: tuple[str, str]) -> None:
    config = AgentConfig(node="n", access_log=settings[0], access_log_format=settings[1])
    with pytest.raises(ConfigError, match=r"access log format: .*%(NO|PROTOCOL)%"):
        AccessLogKeeper(config, FakeEngine())  # type: ignore[arg-type]
