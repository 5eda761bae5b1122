"""Command operators in headers: what the compiler lets through, the engine takes."""

from __future__ import annotations

import pytest

from nodeagent.dataplane.virtual_host import make_virtual_host
from nodeagent.errors import EngineError
from nodeagent.model.header_commands import COMMANDS
from nodeagent.snapshot.values import HeaderMutation, HeaderOp, HeaderSide, VirtualHost

NEEDS_A_NAME = ("REQ", "RESP")


def host(value: str) -> VirtualHost:
    mutation = HeaderMutation(HeaderSide.REQUEST, HeaderOp.SET, "x-a", value)
    return VirtualHost("v", ("a",), (), (mutation,))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_engine_knows_what_the_compiler_takes(command: str) -> None:
    argument = "(x-b)" if command in NEEDS_A_NAME else ""
    make_virtual_host(host(f"a %{command}{argument}:9% b"), 0)


def test_what_the_engine_cannot_make_is_named() -> None:
    with pytest.raises(EngineError, match=r"header 'x-a': .*%NONE% is no command that is known here"):
        make_virtual_host(host("%NONE%"), 0)
