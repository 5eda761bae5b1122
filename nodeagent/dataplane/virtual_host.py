"""Makes an engine virtual host (na_vhost) of a snapshot's VirtualHost."""

from __future__ import annotations

from typing import Any

from nodeagent.dataplane._native import ffi, lib
from nodeagent.errors import EngineError
from nodeagent.snapshot.matches import NamedMatch
from nodeagent.snapshot.values import Forward, HeaderMutation, Redirect, Respond, Route, VirtualHost


def make_virtual_host(host: VirtualHost, tag: int) -> Any:
    """The na_vhost, freed with its last reference. EngineError naming what the engine cannot use, and why."""
    slot = ffi.new("na_vhost **")
    if (code := lib.na_vhost_new(c_string(host.name), tag, slot)) < 0:
        raise EngineError(f"virtual host {host.name} cannot be made: error {-code}")
    maker = _Maker(ffi.gc(slot[0], lib.na_vhost_free), host.name)
    for domain in host.domains:
        maker.check(lib.na_vhost_domain(maker.vhost, c_string(domain)), f"domain {domain!r}")
    if host.attempt_count:
        lib.na_vhost_attempt_count(maker.vhost)
    for mutation in host.mutations:
        maker.check(lib.na_vhost_header(maker.vhost, *_mutation(mutation)), f"header {mutation.name!r}")
    for route in host.routes:
        maker.route(route)
    return maker.vhost


def c_string(text: str) -> bytes:
    """Text for the engine; EngineError if it could only arrive cut short."""
    if "\0" in text:
        raise EngineError(f"{text!r} contains a NUL character")
    return text.encode()


def _optional(text: str | None) -> Any:
    """A C string or NULL; the caller keeps it alive for the call."""
    return ffi.NULL if text is None else ffi.new("char[]", c_string(text))


def _mutation(mutation: HeaderMutation) -> tuple[int, int, bytes, bytes]:
    return int(mutation.side), int(mutation.op), c_string(mutation.name), c_string(mutation.value)


class _Maker:
    """The virtual host under construction, and whom to blame."""

    def __init__(self, vhost: Any, name: str) -> None:
        self.vhost = vhost
        self._name = name

    def check(self, code: int, what: str) -> int:
        """`code`, unless it is an error."""
        if code < 0:
            reason = ffi.string(lib.na_vhost_error(self.vhost)).decode(errors="replace")
            raise EngineError(f"virtual host {self._name}: {what}: {reason or f'error {-code}'}")
        return code

    def route(self, route: Route) -> None:
        """Append a route."""
        handle = lib.na_vhost_route(self.vhost, c_string(route.name), 0)
        if handle == ffi.NULL:
            raise EngineError(f"virtual host {self._name}: route {route.name}: out of memory")
        where = f"route {route.name}"
        if route.path is not None:
            path = route.path
            self.check(
                lib.na_route_path(handle, int(path.kind), c_string(path.value), int(path.flags)),
                f"{where}: path {path.value!r}",
            )
        for match in route.headers:
            self._match(lib.na_route_match_header, handle, match, f"{where}: header {match.name!r}")
        for match in route.query:
            self._match(lib.na_route_match_query, handle, match, f"{where}: query parameter {match.name!r}")
        for mutation in route.mutations:
            self.check(
                lib.na_route_header(handle, *_mutation(mutation)), f"{where}: header {mutation.name!r}"
            )
        self._action(handle, route, where)

    def _match(self, call: Any, handle: Any, match: NamedMatch, what: str) -> None:
        self.check(
            call(handle, int(match.kind), c_string(match.name), c_string(match.value), int(match.flags)),
            f"{what}: {match.value!r}",
        )

    def _action(self, handle: Any, route: Route, where: str) -> None:
        match route.action:
            case Forward() as action:
                self._forward(handle, action, where)
            case Redirect() as action:
                self._redirect(handle, action, where)
            case Respond() as action:
                self.check(
                    lib.na_route_respond(handle, action.status, action.body, len(action.body)),
                    f"{where}: answer",
                )

    def _forward(self, handle: Any, action: Forward, where: str) -> None:
        for share in action.clusters:
            index = self.check(
                lib.na_route_forward(handle, c_string(share.cluster), share.weight),
                f"{where}: cluster {share.cluster}",
            )
            for mutation in share.mutations:
                self.check(
                    lib.na_route_destination_header(handle, index, *_mutation(mutation)),
                    f"{where}: header {mutation.name!r} of cluster {share.cluster}",
                )
        self.check(lib.na_route_timeout(handle, action.timeout_ms), f"{where}: timeout")
        if action.rewrite_prefix is not None:
            self.check(
                lib.na_route_rewrite_prefix(handle, c_string(action.rewrite_prefix)),
                f"{where}: prefix rewrite",
            )
        if action.rewrite_regex is not None:
            regex = action.rewrite_regex
            self.check(
                lib.na_route_rewrite_regex(handle, c_string(regex.pattern), c_string(regex.substitution)),
                f"{where}: regex rewrite {regex.pattern!r}",
            )
        if action.rewrite_authority is not None:
            self.check(
                lib.na_route_rewrite_authority(handle, c_string(action.rewrite_authority)),
                f"{where}: authority rewrite",
            )

    def _redirect(self, handle: Any, action: Redirect, where: str) -> None:
        texts = [_optional(text) for text in (action.scheme, action.authority, action.path, action.prefix)]
        scheme, authority, path, prefix = texts
        code = lib.na_route_redirect(
            handle, action.code, scheme, authority, action.port, path, prefix, action.strip_query
        )
        self.check(code, f"{where}: redirect")
