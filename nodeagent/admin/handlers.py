"""The paths of the admin API."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

from aiohttp import web

from nodeagent.admin import config_dump, log_levels
from nodeagent.admin.listen import MAX_BODY_BYTES
from nodeagent.admin.rows import RESOURCES, Filter, QueryError, Resource, encode
from nodeagent.admin.state import AgentState

BATCH: Final = 200
MAX_STREAMS: Final = 8
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def text(status: int, message: str) -> web.Response:
    """Return a plain text answer."""
    return web.Response(status=status, text=message.rstrip("\n") + "\n")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what is wrong with a request into a line that says so; keep a failing handler from the rest."""
    try:
        return await handler(request)
    except QueryError as error:
        return text(400, f"error: {error}")
    except web.HTTPNotFound:
        return text(404, f"error: no path {request.path}; there are:\n{_index(request.app)}")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = text(405, f"error: {request.path} wants {allowed}, not {request.method}")
        answer.headers["Allow"] = allowed
        return answer
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as error:
        _log.exception("%s %s failed", request.method, request.path)
        return text(500, f"error: {type(error).__name__}: {error}")


def _index(application: web.Application) -> str:
    found = {
        (resource.canonical, route.method)
        for resource in application.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    return "\n".join(
        f"  {path}" + ("" if method == "GET" else f" ({method})") for path, method in sorted(found)
    )


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

    def admin(self) -> web.Application:
        """Return the application of the unix socket: everything."""
        application = self.reading()
        application.router.add_post("/logging", self._set_levels)
        application.router.add_post("/quitquitquit", self._quit)
        return application

    def reading(self) -> web.Application:
        """Return the application of the loopback port: what changes nothing: any local user may ask."""
        application = _application()
        application.router.add_get("/", self._paths)
        application.router.add_get("/status", self._status)
        for resource in RESOURCES.values():
            application.router.add_get(f"/{resource.path}", self._list(resource))
        application.router.add_get("/config_dump", self._config_dump)
        application.router.add_get("/logging", self._levels)
        self._add_ready(application)
        self._add_metrics(application)
        return application

    def metrics(self) -> web.Application:
        """Return the application of the metrics port."""
        application = _application()
        self._add_metrics(application)
        return application

    def ready(self) -> web.Application:
        """Return the application of the readiness port."""
        application = _application()
        self._add_ready(application)
        return application

    def _add_metrics(self, application: web.Application) -> None:
        application.router.add_get("/stats/prometheus", self._metrics)
        application.router.add_get("/metrics", self._metrics)

    def _add_ready(self, application: web.Application) -> None:
        application.router.add_get("/healthz/ready", self._ready)
        application.router.add_get("/healthz/live", self._live)

    async def _paths(self, request: web.Request) -> web.StreamResponse:
        return text(200, _index(request.app))

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return _json(self._state.status())

    def _rows(self, resource: Resource) -> Iterable[Any]:
        if resource.path == "certificates":
            return self._state.status().certificates
        rows: Iterable[Any] = getattr(self._state, resource.path)()
        return rows

    def _list(self, resource: Resource) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            wanted = Filter.parse(resource, request.query.items())
            rows = wanted.apply(self._rows(resource))
            return await self._stream(request, itertools.chain(_array(rows), (b"\n",)))

        return handle

    async def _config_dump(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, _document(config_dump.sections(self._state)))

    async def _stream(
        self, request: web.Request, parts: Iterator[bytes], kind: str = "application/json", size: int = BATCH
    ) -> web.StreamResponse:
        """Write an answer as it is made, `size` parts at once; at most MAX_STREAMS answers at a time."""
        if self._streams >= MAX_STREAMS:
            return text(503, f"error: {MAX_STREAMS} listings are being read already; try again")
        self._streams += 1
        response = web.StreamResponse(headers={"Content-Type": kind})
        try:
            async for batch in _batches(parts, size):
                # Not before the first batch is there: what fails at once is still answered with 500.
                await response.prepare(request)
                await response.write(batch)
            await response.write_eof()
        except ConnectionError:
            raise
        except Exception:
            if not response.prepared:
                raise
            # The head is out: cutting the connection is the only way left to say that this is not all.
            _log.exception("%s failed amid the answer", request.path)
            if request.transport:
                request.transport.abort()
        finally:
            self._streams -= 1
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, iter(self._state.metrics()), PROMETHEUS, 1)

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        reasons = self._state.not_ready()
        return text(503, "not ready: " + "; ".join(reasons)) if reasons else text(200, "ready")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return text(200, "live")

    async def _levels(self, request: web.Request) -> web.StreamResponse:
        return text(200, "\n".join(f"{name}: {level}" for name, level in log_levels.levels().items()))

    async def _set_levels(self, request: web.Request) -> web.StreamResponse:
        unknown = set(request.query) - {"level"}
        if unknown or "level" not in request.query:
            raise QueryError("wanted: ?level=LEVEL or ?level=SCOPE:LEVEL,...")
        try:
            log_levels.set_levels(request.query["level"])
        except ValueError as error:
            raise QueryError(str(error)) from error
        return await self._levels(request)

    async def _quit(self, request: web.Request) -> web.StreamResponse:
        response = text(200, "shutting down")
        await response.prepare(request)
        await response.write_eof()
        self._state.quit()
        return response


def _json(value: Any) -> web.Response:
    return web.Response(body=encode(value) + b"\n", headers={"Content-Type": "application/json"})


def _application() -> web.Application:
    return web.Application(middlewares=[errors], client_max_size=MAX_BODY_BYTES)
