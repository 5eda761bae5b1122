"""Makes the engine's stage of tokens (na_guards_tokens) of a snapshot's Tokens."""

from __future__ import annotations

import logging
from typing import Any, Final

from nodeagent.dataplane._native import ffi, lib
from nodeagent.dataplane.guard_calls import did, held
from nodeagent.dataplane.virtual_host import c_string
from nodeagent.errors import EngineError
from nodeagent.snapshot.policies import (
    AllowMissing,
    Need,
    NeedAll,
    NeedAny,
    NeedToken,
    TokenProvider,
    TokenRule,
    Tokens,
)

_log: Final = logging.getLogger(__name__)


def add_tokens(guards: Any, tokens: Tokens) -> None:
    """Append the stage. A key that cannot be used is left out and logged: its tokens are then invalid."""
    did(guards, lib.na_guards_tokens(guards, tokens.pass_preflight), "tokens")
    for provider in tokens.providers:
        _provider(guards, provider)
    for rule in tokens.rules:
        _rule(guards, rule)


def _provider(guards: Any, provider: TokenProvider) -> None:
    what = f"token provider {provider.name}"
    texts = [
        held(text)
        for text in (provider.name, provider.issuer, provider.payload_header, provider.metadata_key)
    ]
    config = ffi.new(
        "na_provider_config *",
        {
            "name": texts[0],
            "issuer": texts[1],
            "payload_header": texts[2],
            "metadata_key": texts[3],
            "clock_skew_s": provider.clock_skew_s,
            "pad_payload": provider.pad_payload,
            "forward": provider.forward,
        },
    )
    did(guards, lib.na_guards_provider(guards, config), what)
    for audience in provider.audiences:
        did(guards, lib.na_provider_audience(guards, c_string(audience)), what)
    for place in provider.places:
        code = lib.na_provider_place(guards, int(place.kind), c_string(place.name), c_string(place.prefix))
        did(guards, code, what)
    for claim, header in provider.claim_headers:
        did(guards, lib.na_provider_claim_header(guards, c_string(claim), c_string(header)), what)
    for claim in provider.split_claims:
        did(guards, lib.na_provider_split_claim(guards, c_string(claim)), what)
    _keys(guards, provider)


def _keys(guards: Any, provider: TokenProvider) -> None:
    for key in provider.keys:
        code = lib.na_provider_key(guards, c_string(key.kid), c_string(key.algorithm), key.der, len(key.der))
        try:
            did(guards, code, "a key of tokens is left out")
        except EngineError as error:
            _log.warning("%s", error)


def _rule(guards: Any, rule: TokenRule) -> None:
    path = rule.path
    if path is None:
        code = lib.na_guards_token_rule(guards, 0, ffi.NULL, 0)
    else:
        code = lib.na_guards_token_rule(guards, int(path.kind), c_string(path.value), int(path.flags))
    did(guards, code, f"rule of tokens for {path}")
    if rule.need is not None:
        _need(guards, rule.need)


def _need(guards: Any, need: Need) -> None:
    """Append a requirement, operands after their operator."""
    what = "requirement of tokens"
    match need:
        case NeedToken(provider, audiences):
            texts = [held(audience) for audience in audiences]
            array = ffi.new("char *[]", texts) if texts else ffi.NULL
            did(guards, lib.na_need_token(guards, c_string(provider), array, len(texts)), what)
        case NeedAny(needs):
            did(guards, lib.na_need_any(guards, len(needs)), what)
            for part in needs:
                _need(guards, part)
        case NeedAll(needs):
            did(guards, lib.na_need_all(guards, len(needs)), what)
            for part in needs:
                _need(guards, part)
        case AllowMissing(failed):
            did(guards, lib.na_need_nothing(guards, failed), what)
