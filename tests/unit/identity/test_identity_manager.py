"""Certificates of a node's workloads over their lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from harness import pki

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.manager import CONCURRENT, IdentityManager, State
from nodeagent.model.identity import Identity

WEB = Identity("cluster.local", "default", "web")
DB = Identity("cluster.local", "data", "db")
DOWN = IdentityError("CA localhost:15012: connection refused", "unreachable")


async def until(condition: Callable[[], Any], timeout: float = 5) -> Any:
    async with asyncio.timeout(timeout):
        while not (found := condition()):
            await asyncio.sleep(0.01)
        return found


async def obtained(manager: IdentityManager, identity: Identity = WEB) -> Certificate:
    found = await manager.wait(identity, 5)
    assert found is not None
    return found


class TestHolding:
    async def test_one_certificate_for_all_pods_of_an_account(
        self, manager: IdentityManager, ca: Any
    ) -> None:
        manager.acquire("pod-1", WEB)
        manager.acquire("pod-2", WEB)
        manager.acquire("pod-2", WEB)
        certificate = await obtained(manager)
        assert ca.calls == [WEB]
        assert certificate.identity == WEB
        assert certificate.key_pem not in repr(certificate)

    async def test_key_and_chain_belong_together(self, manager: IdentityManager) -> None:
        manager.acquire("pod-1", WEB)
        certificate = await obtained(manager)
        leaf = x509.load_pem_x509_certificate(certificate.chain_pem.encode())
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(certificate.key_pem.encode(), None)
        assert leaf.public_key() == key.public_key()
        assert certificate.bundle_pem.count("BEGIN") == 1

    async def test_the_last_pod_takes_the_identity_along(self, manager: IdentityManager) -> None:
        told: list[Any] = []
        manager.observe(lambda identity, certificate: told.append((identity, certificate is not None)))
        manager.acquire("pod-1", WEB)
        manager.acquire("pod-2", WEB)
        await obtained(manager)
        manager.release("pod-1")
        assert manager.get(WEB) is not None
        manager.release("pod-2")
        manager.release("pod-2")
        assert manager.get(WEB) is None
        assert list(manager) == []
        assert told == [(WEB, True), (WEB, False)]

    async def test_a_pod_may_change_its_account(self, manager: IdentityManager) -> None:
        manager.acquire("pod-1", WEB)
        manager.acquire("pod-1", DB)
        await obtained(manager, DB)
        assert [holding.identity for holding in manager] == [DB]

    async def test_a_late_observer_is_told_at_once(self, manager: IdentityManager) -> None:
        manager.acquire("pod-1", WEB)
        certificate = await obtained(manager)
        told: list[Any] = []
        manager.observe(lambda *what: told.append(what))
        assert told == [(WEB, certificate)]

    async def test_an_observer_that_fails_harms_nobody(self, manager: IdentityManager) -> None:
        told: list[Identity] = []

        def broken(identity: Identity, certificate: Certificate | None) -> None:
            raise RuntimeError("engine")

        manager.observe(broken)
        manager.observe(lambda identity, certificate: told.append(identity))
        manager.acquire("pod-1", WEB)
        await until(lambda: told == [WEB])

    async def test_at_most_eight_requests_at_once(self, manager: IdentityManager, ca: Any) -> None:
        ca.gate = asyncio.Event()
        identities = [Identity("cluster.local", "default", f"sa-{number}") for number in range(30)]
        for identity in identities:
            manager.acquire(f"pod of {identity}", identity)
        await until(lambda: ca.running == CONCURRENT)
        await asyncio.sleep(0.05)
        ca.gate.set()
        for identity in identities:
            await obtained(manager, identity)
        assert ca.most_running == CONCURRENT == 8


class TestRenewal:
    async def test_at_half_life_with_jitter_and_a_new_key(self, manager: IdentityManager, ca: Any) -> None:
        ca.lifetime = 1.2
        seen: list[Certificate] = []
        manager.observe(lambda identity, certificate: seen.append(certificate))  # type: ignore[arg-type]
        manager.acquire("pod-1", WEB)
        await until(lambda: len(seen) >= 4)
        assert None not in seen, "there was a moment without a certificate"
        assert len({certificate.key_pem for certificate in seen}) == len(seen)
        assert len({certificate.serial for certificate in seen}) == len(seen)

    async def test_when_it_is_due(self, manager: IdentityManager) -> None:
        identities = [Identity("cluster.local", "default", f"sa-{number}") for number in range(12)]
        for identity in identities:
            manager.acquire(str(identity), identity)
            await obtained(manager, identity)
        due = [holding.next_request - time.time() for holding in manager]
        assert all(0.44 * 3600 < each < 0.56 * 3600 for each in due)
        assert max(due) - min(due) > 1, "no jitter"

    async def test_a_failure_keeps_what_is_valid(
        self, manager: IdentityManager, ca: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ca.lifetime = 2
        manager.acquire("pod-1", WEB)
        first = await obtained(manager)
        ca.failure = DOWN
        await until(lambda: manager.counters.failures["unreachable"] >= 2)
        holding = next(iter(manager))
        assert (holding.state, holding.certificate, holding.error) == (State.AVAILABLE, first, str(DOWN))
        warnings = [record for record in caplog.records if "cannot renew" in record.getMessage()]
        assert len(warnings) == 1, "the same failure is logged once"
        assert "connection refused" in warnings[0].getMessage()
        ca.failure = None
        await until(lambda: manager.get(WEB) not in (None, first))
        assert next(iter(manager)).error == ""

    async def test_when_it_expires_it_is_taken_out_of_force(
        self, manager: IdentityManager, ca: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ca.lifetime = 1
        told: list[bool] = []
        manager.observe(lambda identity, certificate: told.append(certificate is not None))
        manager.acquire("pod-1", WEB)
        await obtained(manager)
        # A CA that takes a request and never answers must not hold the expiry up.
        ca.gate = asyncio.Event()
        await until(lambda: told[-1:] == [False])
        assert next(iter(manager)).state is State.EXPIRED
        assert any("has expired" in message for message in caplog.messages)
        ca.gate.set()
        await until(lambda: told[-1])
        assert next(iter(manager)).state is State.AVAILABLE

    async def test_it_is_an_error_once_it_lasts(
        self, manager: IdentityManager, ca: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who is started together with the CA finds nobody at first."""
        caplog.set_level("INFO", "nodeagent.identity.manager")
        ca.failure = DOWN
        manager.acquire("pod-1", WEB)
        await until(lambda: manager.counters.failures["unreachable"] >= 5)
        levels = [each.levelname for each in caplog.records if "no certificate for" in each.getMessage()]
        assert levels == ["INFO", "ERROR"]

    async def test_a_failing_ca_is_asked_less_and_less(self, ca: Any) -> None:
        manager = IdentityManager(ca, 3600.0)
        ca.failure = DOWN
        manager.acquire("pod-1", WEB)
        await until(lambda: ca.calls)
        await asyncio.sleep(1.2)
        assert 2 <= len(ca.calls) <= 3
        await manager.stop()

    async def test_a_defect_does_not_end_the_renewal(self, manager: IdentityManager, ca: Any) -> None:
        ca.failure = RuntimeError("surprise")
        manager.acquire("pod-1", WEB)
        await until(lambda: manager.counters.failures["defect"] >= 2)
        ca.failure = None
        await obtained(manager)


class TestAnswers:
    """What a CA answers is checked before it is used."""

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([str(DB)], "a certificate of"),
            ([str(WEB), str(DB)], "a certificate of"),
            ([f"{WEB}\0"], "a certificate of"),
        ],
    )
    async def test_names(self, manager: IdentityManager, ca: Any, names: list[str], message: str) -> None:
        ca.names = names
        await self._refused(manager, message, "answer")

    async def test_another_key(self, manager: IdentityManager, ca: Any) -> None:
        other = pki.leaf(ca.authority, pki.p256(), pki.uri(str(WEB)))
        ca.alter = lambda chain: other
        await self._refused(manager, "of another key", "answer")

    async def test_a_root_that_did_not_issue_it(
        self, manager: IdentityManager, ca: Any, tmp_path: Any
    ) -> None:
        foreign = pki.authority(tmp_path / "foreign").bundle
        ca.alter = lambda chain: (chain[0], foreign)
        await self._refused(manager, "does not lead to the root", "answer")
        ca.alter = lambda chain: (chain[0], foreign, chain[1])
        await self._refused(manager, "is not issued by the next", "answer")

    @pytest.mark.parametrize("answer", [(), ("x",), ("x", "y"), ("-----BEGIN CERTIFICATE-----", "y")])
    async def test_no_chain(self, manager: IdentityManager, ca: Any, answer: Any) -> None:
        ca.alter = lambda chain: answer
        await self._refused(manager, "the CA's answer", "answer")

    async def test_too_much(self, manager: IdentityManager, ca: Any) -> None:
        ca.alter = lambda chain: (chain[0], chain[1] * 200)
        await self._refused(manager, "more than 100 certificates", "answer")
        ca.alter = lambda chain: (chain[0], "x" * (2 << 20))
        await self._refused(manager, "bytes", "answer")

    async def test_several_roots_and_several_in_one_element(
        self, manager: IdentityManager, ca: Any, tmp_path: Any
    ) -> None:
        other = pki.authority(tmp_path / "other").bundle
        ca.alter = lambda chain: (chain[0] + chain[1], other + chain[1])
        manager.acquire("pod-1", WEB)
        certificate = await obtained(manager)
        assert certificate.bundle_pem.count("BEGIN") == 2
        assert certificate.chain_pem.count("BEGIN") == 1, "a root is no part of the chain"

    @pytest.mark.parametrize(("skew", "message"), [(7200.0, "expired"), (-7200.0, "is valid in")])
    async def test_clocks_apart(self, ca: Any, skew: float, message: str) -> None:
        manager = IdentityManager(ca, 3600.0, clock=lambda: time.time() + skew)
        try:
            await self._refused(manager, message, "clock")
            assert "check the clocks" in next(iter(manager)).error
        finally:
            await manager.stop()

    async def _refused(self, manager: IdentityManager, message: str, reason: str) -> None:
        manager.acquire("pod-1", WEB)
        holding = next(iter(manager))
        await until(lambda: message in holding.error)
        assert holding.state is State.UNAVAILABLE
        assert manager.counters.failures[reason] >= 1
