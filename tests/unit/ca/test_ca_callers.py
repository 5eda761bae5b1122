"""Tokens, settings and limits by themselves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness.ca_plane import write_token

from nodeagent.config.ca import CaConfig
from nodeagent.controlplane.ca.jwks import KeySet, parse_keys
from nodeagent.controlplane.ca.limits import Gate, Limits, TokenBucket
from nodeagent.controlplane.ca.node_tokens import NodeTokens
from nodeagent.controlplane.ca.refusal import Refusal
from nodeagent.errors import ConfigError, IdentityError

GOOD = "0123456789abcdef"


class TestNodeTokens:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_token(tmp_path / "tokens", "node-a", GOOD)
        return tmp_path / "tokens"

    async def test_each_node_by_its_own(self, folder: Path) -> None:
        write_token(folder, "node-b", GOOD[::-1])
        tokens = NodeTokens(folder)
        for token, node in ((GOOD, "node-a"), (GOOD[::-1], "node-b")):
            caller = await tokens.authenticate(token)
            assert caller is not None
            assert (caller.node, caller.is_node, caller.identity) == (node, True, None)
        assert await tokens.authenticate(GOOD[:-1]) is None
        assert await tokens.authenticate("") is None
        assert await tokens.authenticate("über" * 8) is None

    @pytest.mark.parametrize(
        ("content", "mode", "message"),
        [
            ("short", 0o600, "a token has 16 to 4096 characters, not 5"),
            ("", 0o600, "not 0"),
            (GOOD[::-1], 0o644, "chmod 600"),
            ("ü" * 20, 0o600, "cannot be read"),
        ],
    )
    async def test_one_bad_file_leaves_the_others(
        self, folder: Path, caplog: pytest.LogCaptureFixture, content: str, mode: int, message: str
    ) -> None:
        write_token(folder, "node-b", content, mode)
        tokens = NodeTokens(folder)
        assert content == "" or await tokens.authenticate(content) is None
        assert await tokens.authenticate(GOOD) is not None
        assert [record.levelno for record in caplog.records if message in record.getMessage()] == [
            logging.ERROR
        ]

    async def test_a_token_of_two_nodes_is_nobodys(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_token(folder, "node-b", GOOD)
        assert await NodeTokens(folder).authenticate(GOOD) is None
        assert "node-a, node-b have the same token" in caplog.text

    async def test_taken_away_it_is_no_good_any_more(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nodeagent.controlplane.ca.node_tokens.LOOK_SECONDS", 0.0)
        tokens = NodeTokens(folder)
        assert await tokens.authenticate(GOOD) is not None
        (folder / "node-a").unlink()
        assert await tokens.authenticate(GOOD) is None
        folder.rmdir()
        assert await tokens.authenticate(GOOD) is None


class TestKeySets:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "not a JSON Web Key Set"),
            (b"[]", "not a JSON Web Key Set"),
            (b'{"keys": 1}', "not a JSON Web Key Set"),
            (b'{"keys": []}', "no RSA or elliptic curve key"),
            (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}', "no RSA or elliptic curve key"),
            (b'{"keys": [{"kty": "RSA", "kid": "a"}]}', "no RSA or elliptic curve key"),
            (b'{"keys": [1, null]}', "no RSA or elliptic curve key"),
            (b" " * (2 << 20), "over 1048576 bytes"),
        ],
    )
    def test_no_keys(self, text: bytes, message: str) -> None:
        with pytest.raises(IdentityError, match=message):
            parse_keys(text)

    def test_keys_come_by_https_only(self) -> None:
        with pytest.raises(ConfigError, match="by https only"):
            KeySet("http://issuer.example/keys")

    async def test_a_missing_file_is_told_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = KeySet(str(tmp_path / "jwks.json"))
        for _ in range(3):
            assert await keys.key("a") is None
        assert len([record for record in caplog.records if "--jwks" in record.getMessage()]) == 1
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": []}))
        assert await keys.key("a") is None
        assert "no RSA" in keys.last_error


class TestLimits:
    def test_a_bucket_refills(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr("nodeagent.controlplane.ca.limits.time.monotonic", lambda: now)
        bucket = TokenBucket(rate=2, burst=3)
        assert [bucket.take() for _ in range(4)] == [True, True, True, False]
        now += 0.6
        assert [bucket.take() for _ in range(2)] == [True, False]

    async def test_the_queue_is_bounded(self) -> None:
        gate = Gate(Limits(concurrent=1, waiting=0))
        with pytest.raises(Refusal) as refusal:
            async with gate.signing():
                pass
        assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue")

    def test_callers_that_are_remembered_are_bounded(self) -> None:
        gate = Gate(Limits(callers=10))
        for number in range(100):
            gate.admit_caller(f"node {number}")
        assert len(gate._callers) == 10

    def test_all_calls_together_are_bounded(self) -> None:
        gate = Gate(Limits(rate=0.001, burst=2))
        gate.admit_call()
        gate.admit_call()
        with pytest.raises(Refusal, match="calls a second"):
            gate.admit_call()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nobody could authenticate"),
        ({"jwks": "keys.json"}, "--jwt-issuer"),
        ({"node_tokens": Path("t"), "lifetime": 0.0}, "at least 1 second"),
        ({"node_tokens": Path("t"), "max_lifetime": 10.0}, "less than --cert-lifetime"),
        ({"node_tokens": Path("t"), "server_names": ()}, "--tls-name"),
        ({"node_tokens": Path("t"), "node_accounts": ("agent",)}, "NAMESPACE/SERVICE-ACCOUNT"),
        ({"node_tokens": Path("t"), "node_accounts": ("a/b/c",)}, "NAMESPACE/SERVICE-ACCOUNT"),
    ],
)
def test_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CaConfig(**fields)
