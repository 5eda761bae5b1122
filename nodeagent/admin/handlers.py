"""The paths of the admin API."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from nodeagent.admin import config_dump, log_levels
from nodeagent.admin.explain import Asked
from nodeagent.admin.http import Handler, Request, Response, text
from nodeagent.admin.rows import RESOURCES, Filter, Resource, encode
from nodeagent.admin.state import AgentState
from nodeagent.errors import QueryError

BATCH: Final = 200
MAX_STREAMS: Final = 8
JSON: Final = "application/json"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)


class Application:
    """The pages of one port: path and method -> handler."""

    def __init__(self) -> None:
        self._pages: dict[str, dict[str, Handler]] = {}

    def add(self, path: str, handler: Handler, method: str = "GET") -> None:
        """Serve a page."""
        self._pages.setdefault(path, {})[method] = handler

    async def __call__(self, request: Request) -> Response:
        """Answer a request. What is wrong with it is said in a line; a failing page is kept from the rest."""
        methods = self._pages.get(request.path)
        if methods is None:
            return text(404, f"error: no path {request.path}; there are:\n{self.index()}")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            message = f"error: {request.path} wants {allowed}, not {request.method}"
            return text(405, message, {"Allow": allowed})
        try:
            return await handler(request)
        except QueryError as error:
            return text(400, f"error: {error}")
        except Exception as error:
            _log.exception("%s %s failed", request.method, request.path)
            return text(500, f"error: {type(error).__name__}: {error}")

    async def paths(self, request: Request) -> Response:
        """Tell which pages there are."""
        del request
        return text(200, self.index())

    def index(self) -> str:
        """A line for each page."""
        found = sorted((path, method) for path, methods in self._pages.items() for method in methods)
        return "\n".join(f"  {path}" + ("" if method == "GET" else f" ({method})") for path, method in found)


async def _batches(parts: Iterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Join parts by `size`, and let the event loop have its turn between these batches."""
    while batch := b"".join(itertools.islice(parts, size)):
        yield batch
        await asyncio.sleep(0)


def _array(items: Iterable[Any]) -> Iterator[bytes]:
    first = True
    yield b"["
    for item in items:
        yield (b"\n" if first else b",\n") + encode(item)
        first = False
    yield b"]"


def _document(sections: Iterable[tuple[str, Iterable[Any]]]) -> Iterator[bytes]:
    first = True
    yield b"{"
    for name, items in sections:
        yield (b"\n" if first else b",\n") + encode(name) + b": "
        yield from _array(_up_to_failure(name, items))
        first = False
    yield b"\n}\n"


def _up_to_failure(section: str, items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items; for one that cannot be made, one that says why, and no more: other sections go on."""
    try:
        yield from items
    except Exception as error:
        _log.exception("section %s of the configuration dump ends early", section)
        yield {"error": f"{type(error).__name__}: {error}"}


class Handlers:
    """The handlers of one agent's admin API."""

    def __init__(self, state: AgentState) -> None:
        self._state = state
        self._streams = 0

    def admin(self) -> Application:
        """Return the application of the unix socket: everything."""
        application = self.reading()
        # What is configured on demand is asked for by an explanation: it is not for any local user.
        application.add("/explain/route", self._explain_route)
        application.add("/explain/access", self._explain_access)
        application.add("/logging", self._set_levels, "POST")
        application.add("/quitquitquit", self._quit, "POST")
        return application

    def reading(self) -> Application:
        """Return the application of the loopback port: what changes nothing: any local user may ask."""
        application = Application()
        application.add("/", application.paths)
        application.add("/status", self._status)
        for resource in RESOURCES.values():
            application.add(f"/{resource.path}", self._list(resource))
        application.add("/config_dump", self._config_dump)
        application.add("/logging", self._levels)
        self._add_ready(application)
        self._add_metrics(application)
        return application

    def metrics(self) -> Application:
        """Return the application of the metrics port."""
        application = Application()
        self._add_metrics(application)
        return application

    def ready(self) -> Application:
        """Return the application of the readiness port."""
        application = Application()
        self._add_ready(application)
        return application

    def _add_metrics(self, application: Application) -> None:
        application.add("/stats/prometheus", self._metrics)
        application.add("/metrics", self._metrics)

    def _add_ready(self, application: Application) -> None:
        application.add("/healthz/ready", self._ready)
        application.add("/healthz/live", self._live)
        application.add("/healthz/settled", self._settled)

    async def _status(self, request: Request) -> Response:
        return _json(self._state.status())

    def _rows(self, resource: Resource) -> Iterable[Any]:
        if resource.path == "certificates":
            return self._state.status().certificates
        rows: Iterable[Any] = getattr(self._state, resource.path)()
        return rows

    def _list(self, resource: Resource) -> Handler:
        async def handle(request: Request) -> Response:
            wanted = Filter.parse(resource, request.query)
            rows = wanted.apply(self._rows(resource))
            return await self._stream(itertools.chain(_array(rows), (b"\n",)))

        return handle

    async def _explain_route(self, request: Request) -> Response:
        return _json(await self._state.explain_route(Asked.parse(request.query)))

    async def _explain_access(self, request: Request) -> Response:
        return _json(self._state.explain_access(Asked.parse(request.query)))

    async def _config_dump(self, request: Request) -> Response:
        return await self._stream(_document(config_dump.sections(self._state)))

    async def _stream(self, parts: Iterator[bytes], kind: str = JSON, size: int = BATCH) -> Response:
        """An answer that is written as it is made, `size` parts at once; at most MAX_STREAMS answers at a time."""
        if self._streams >= MAX_STREAMS:
            return text(503, f"error: {MAX_STREAMS} listings are being read already; try again")
        batches = self._counted(_batches(parts, size))
        # What fails before the first batch is there is still answered with 500.
        first = await anext(batches, b"")
        return Response(first, kind=kind, rest=batches)

    async def _counted(self, batches: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        self._streams += 1
        try:
            async for batch in batches:
                yield batch
        finally:
            self._streams -= 1

    async def _metrics(self, request: Request) -> Response:
        return await self._stream(iter(self._state.metrics()), PROMETHEUS, 1)

    async def _ready(self, request: Request) -> Response:
        reasons = self._state.not_ready()
        return text(503, "not ready: " + "; ".join(reasons)) if reasons else text(200, "ready")

    async def _settled(self, request: Request) -> Response:
        waiting = self._state.unsettled()
        return text(503, "not settled: " + "; ".join(waiting)) if waiting else text(200, "settled")

    async def _live(self, request: Request) -> Response:
        return text(200, "live")

    async def _levels(self, request: Request) -> Response:
        return text(200, "\n".join(f"{name}: {level}" for name, level in log_levels.levels().items()))

    async def _set_levels(self, request: Request) -> Response:
        if [name for name, _ in request.query] != ["level"]:
            raise QueryError("wanted: ?level=LEVEL or ?level=SCOPE:LEVEL,...")
        try:
            log_levels.set_levels(request.query[0][1])
        except ValueError as error:
            raise QueryError(str(error)) from error
        return await self._levels(request)

    async def _quit(self, request: Request) -> Response:
        return replace(text(200, "shutting down"), after=self._state.quit)


def _json(value: Any) -> Response:
    return Response(encode(value) + b"\n", kind=JSON)
