"""Keeps a valid certificate for each service account of this node's workloads."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate, accept_answer
from nodeagent.identity.client import CaClient
from nodeagent.identity.request import make_request
from nodeagent.model.identity import Identity
from nodeagent.xds.backoff import Backoff

logger = logging.getLogger(__name__)

CONCURRENT: Final = 8
"""Requests under way at once."""
BACKOFF_INITIAL: Final = 0.5
BACKOFF_LIMIT: Final = 150.0
RENEWAL: Final = (0.45, 0.55)
"""When a certificate is renewed, as a share of the lifetime that was left when it came: half, with jitter, so that the
certificates of a node, obtained together, are not renewed together for ever."""
LONGEST_SLEEP: Final = 60.0
"""Seconds between two looks at the clock, which may jump (a suspended machine, NTP)."""
PATIENCE: Final = 3
"""Failures in a row (about a second) from which on it is an error to have no certificate: node and CA may be started
together."""
EXPIRY_PERIOD: Final = 0.5
"""Seconds between two looks for expired certificates."""

Observer: TypeAlias = Callable[[Identity, Certificate | None], None]
"""Told of each new certificate, and with None when there is no valid one any more: the identity must not be used."""


class State(enum.StrEnum):
    """How an identity stands; named as ztunnel names it, with the expired ones told apart."""

    INITIALIZING = "Initializing"
    AVAILABLE = "Available"
    UNAVAILABLE = "Unavailable"
    EXPIRED = "Expired"


@dataclass(slots=True)
class Holding:
    """An identity that workloads of this node have."""

    identity: Identity
    users: set[str] = field(default_factory=set)
    """Uids of the workloads."""
    certificate: Certificate | None = None
    error: str = ""
    """Why the last request failed; empty after a success."""
    failures: int = 0
    """In a row."""
    next_request: float = 0.0
    """Seconds since the epoch."""
    obtained: float = 0.0
    expired: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a certificate is there."""
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """How it stands."""
        if self.certificate is not None:
            return State.AVAILABLE
        if self.expired:
            return State.EXPIRED
        return State.UNAVAILABLE if self.error else State.INITIALIZING


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    issued: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By reason."""


class IdentityManager:
    """Obtains and renews certificates. Identities live as long as a workload has them.

    Keys are made anew for each request and never leave memory. While a renewal fails, the certificate in force stays
    until it expires.
    """

    def __init__(
        self,
        client: CaClient,
        lifetime: float,
        *,
        backoff: Callable[[], Backoff] = lambda: Backoff(BACKOFF_INITIAL, BACKOFF_LIMIT),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._lifetime = lifetime
        self._backoff = backoff
        self._clock = clock
        self._holdings: dict[Identity, Holding] = {}
        self._by_user: dict[str, Identity] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._observers: list[Observer] = []
        self._expiry: asyncio.Task[None] | None = None
        self.counters = Counters()

    # -- lifecycle --

    def start(self) -> None:
        """Begin to watch for expired certificates."""
        self._expiry = asyncio.create_task(self._watch_expiry(), name="certificate expiry")
        self._expiry.add_done_callback(_note_defect)

    async def stop(self) -> None:
        """End all requests. Certificates stay with whoever was told of them."""
        tasks = [holding.task for holding in self._holdings.values()] + [self._expiry]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # -- who needs what --

    def acquire(self, user: str, identity: Identity) -> None:
        """A workload has this identity: begin to obtain its certificate, unless that is done."""
        if self._by_user.get(user) == identity:
            return
        self.release(user)
        holding = self._holdings.get(identity)
        if holding is None:
            holding = self._holdings[identity] = Holding(identity)
            holding.task = asyncio.create_task(self._keep(holding), name=f"certificate {identity}")
            holding.task.add_done_callback(_note_defect)
        holding.users.add(user)
        self._by_user[user] = identity

    def release(self, user: str) -> None:
        """A workload is gone: with the last one its identity is dropped."""
        identity = self._by_user.pop(user, None)
        if identity is None:
            return
        holding = self._holdings[identity]
        holding.users.discard(user)
        if holding.users:
            return
        del self._holdings[identity]
        assert holding.task is not None
        holding.task.cancel()
        if holding.certificate is not None:
            holding.certificate = None
            self._tell(identity, None)
        logger.info("dropped %s: no workload here has it any more", identity)

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every certificate from now on, and of those that are there, at once."""
        self._observers.append(observer)
        for holding in self._holdings.values():
            if holding.certificate is not None:
                observer(holding.identity, holding.certificate)

    async def wait(self, identity: Identity, timeout: float) -> Certificate | None:
        """The certificate of an identity, waited for; None if there is none in time."""
        holding = self._holdings.get(identity)
        if holding is None:
            return None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(holding.changed.wait(), timeout)
        return holding.certificate

    def get(self, identity: Identity) -> Certificate | None:
        """The certificate in force."""
        holding = self._holdings.get(identity)
        return holding.certificate if holding is not None else None

    def __iter__(self) -> Iterator[Holding]:
        return iter(tuple(self._holdings.values()))

    # -- obtaining --

    async def _keep(self, holding: Holding) -> None:
        """Obtain, and obtain again in time, for as long as the identity is held."""
        backoff = self._backoff()
        while True:
            try:
                async with self._slots:
                    certificate = await self._request(holding.identity)
            except IdentityError as error:
                self._note_failure(holding, error)
            except Exception as error:
                # A defect of ours must not leave the identity without anybody who renews its certificate.
                logger.exception("obtaining a certificate for %s", holding.identity)
                self._note_failure(holding, IdentityError(f"{type(error).__name__}: {error}", "defect"))
            else:
                backoff.reset()
                self._put(holding, certificate)
            if holding.error:
                holding.next_request = self._clock() + backoff.next()
            await self._sleep_until(holding.next_request)

    async def _sleep_until(self, due: float) -> None:
        """Sleep until the clock says so, however it was set meanwhile."""
        while True:
            left = due - self._clock()
            if left <= 0:
                return
            await asyncio.sleep(min(left, LONGEST_SLEEP))

    async def _request(self, identity: Identity) -> Certificate:
        request = make_request(identity)
        answer = await self._client.sign(request.csr, identity, self._lifetime)
        return accept_answer(identity, request, answer, self._clock())

    def _put(self, holding: Holding, certificate: Certificate) -> None:
        now = self._clock()
        left = certificate.not_after - now
        holding.next_request = now + left * random.uniform(*RENEWAL)  # noqa: S311  # jitter, not a secret
        renewed = holding.certificate is not None
        holding.certificate, holding.error, holding.expired, holding.obtained = certificate, "", False, now
        holding.failures = 0
        self.counters.issued += 1
        holding.changed.set()
        logger.info(
            "%s certificate of %s: serial %s, for %.0f s",
            "renewed the" if renewed else "obtained a",
            holding.identity,
            certificate.serial,
            left,
        )
        self._tell(holding.identity, certificate)

    def _note_failure(self, holding: Holding, error: IdentityError) -> None:
        self.counters.failures[error.reason] += 1
        holding.failures += 1
        message = str(error)
        known, holding.error = message == holding.error, message
        lost_patience = holding.certificate is None and holding.failures == PATIENCE
        if known and not lost_patience:
            return
        if holding.certificate is None:
            level = logging.ERROR if holding.failures >= PATIENCE else logging.INFO
            logger.log(level, "no certificate for %s: %s", holding.identity, message)
        else:
            left = holding.certificate.not_after - self._clock()
            logger.warning(
                "cannot renew the certificate of %s, which is valid for %.0f s more: %s",
                holding.identity,
                left,
                message,
            )

    async def _watch_expiry(self) -> None:
        """Take certificates out of force when they expire, whatever their renewal is waiting for."""
        while True:
            await asyncio.sleep(EXPIRY_PERIOD)
            for holding in self:
                self._drop_expired(holding)

    def _drop_expired(self, holding: Holding) -> None:
        certificate = holding.certificate
        if certificate is None or self._clock() < certificate.not_after:
            return
        holding.certificate, holding.expired = None, True
        holding.changed.clear()
        logger.error(
            "the certificate of %s has expired; its connections are refused until there is another: %s",
            holding.identity,
            holding.error or "no renewal has been answered yet",
        )
        self._tell(holding.identity, None)

    def _tell(self, identity: Identity, certificate: Certificate | None) -> None:
        for observer in self._observers:
            try:
                observer(identity, certificate)
            except Exception:
                logger.exception("an observer failed on the certificate of %s", identity)


def _note_defect(task: asyncio.Task[None]) -> None:
    """Keeping never ends by itself."""
    if not task.cancelled() and task.exception() is not None:
        logger.critical("%s ended unexpectedly", task.get_name(), exc_info=task.exception())
