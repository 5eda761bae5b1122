"""Node tokens: a folder with one file per node, for machines without Kubernetes."""

from __future__ import annotations

import hmac
import logging
import stat
import time
from pathlib import Path
from typing import Final

from nodeagent.controlplane.ca.callers import Caller

log = logging.getLogger(__name__)

MIN_TOKEN_CHARACTERS: Final = 16
MAX_TOKEN_CHARACTERS: Final = 4096
MAX_NODES: Final = 10_000
LOOK_SECONDS: Final = 1.0
"""How long a token that was taken away may still be good."""
UNKNOWN_LOOK_SECONDS: Final = 0.1
"""Between two looks because of a token that is not known: it may be new, and anybody can send one."""


class NodeTokens:
    """Reads the folder again whenever something in it has changed; what is wrong in it is left out and logged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens: dict[str, bytes] = {}
        self._stamp: object = None
        self._looked = 0.0
        self._told: set[str] = set()

    async def authenticate(self, token: str) -> Caller | None:
        """The node that has this token."""
        given = token.encode()
        self._refresh(LOOK_SECONDS)
        found = self._node(given)
        if not found:
            self._refresh(UNKNOWN_LOOK_SECONDS)
            found = self._node(given)
        return Caller(f"node {found}", is_node=True, node=found) if found else None

    def _node(self, given: bytes) -> str:
        """The node of a token, or empty. All are compared, each in constant time: how long it takes tells nothing of
        any of them."""
        found = ""
        for node, expected in self._tokens.items():
            if hmac.compare_digest(expected, given):
                found = node
        return found

    def _refresh(self, age: float) -> None:
        """Look at the folder, unless that was done less than `age` seconds ago."""
        now = time.monotonic()
        if self._looked and now - self._looked < age:
            return
        self._looked = now
        try:
            files = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
            stamp = [(path.name, _stamp(path)) for path in files[:MAX_NODES]]
        except OSError as error:
            self._tell(f"--node-tokens {self._folder}: cannot be read: {error.strerror}; no node is known")
            self._tokens, self._stamp = {}, None
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._told.clear()
        if len(files) > MAX_NODES:
            self._tell(f"--node-tokens {self._folder}: only the first {MAX_NODES} files are used")
        read = {path.name: self._read(path) for path in files[:MAX_NODES]}
        self._tokens = self._unique({node: token for node, token in read.items() if token})

    def _read(self, path: Path) -> bytes:
        """The token of a node; empty if it cannot be used."""
        try:
            text = path.read_text(encoding="ascii").strip()
            open_to_others = path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)
        except (OSError, ValueError) as error:
            self._tell(f"{path}: the token cannot be read: {error}; the node is not known")
            return b""
        if not MIN_TOKEN_CHARACTERS <= len(text) <= MAX_TOKEN_CHARACTERS:
            self._tell(
                f"{path}: a token has {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} characters, not {len(text)}"
            )
            return b""
        if open_to_others:
            self._tell(f"{path}: others may read this token; chmod 600 it. The node is not known until then")
            return b""
        return text.encode()

    def _unique(self, tokens: dict[str, bytes]) -> dict[str, bytes]:
        """Two nodes with one token would each pass for the other: neither is known."""
        by_token: dict[bytes, list[str]] = {}
        for node, token in tokens.items():
            by_token.setdefault(token, []).append(node)
        for nodes in by_token.values():
            if len(nodes) > 1:
                self._tell(
                    f"--node-tokens {self._folder}: {', '.join(nodes)} have the same token; none is known"
                )
        return {nodes[0]: token for token, nodes in by_token.items() if len(nodes) == 1}

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.error("%s", message)


def _stamp(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode
