"""The engine with tunnels, as a process in a cgroup of its own: workloads are captured in their namespaces, and
what they send to configured addresses goes through HBONE.

`HboneEngine` starts this file and tells it what to do, a line of JSON each way. It speaks to the engine by its
C interface alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from harness.asked_process import AskedProcess
from harness.netns import Namespace

PORT = 15008


class HboneEngine(AskedProcess):
    """The engine, asked from a test."""

    def __init__(self, join: Callable[[], None]) -> None:
        super().__init__("harness.hbone_engine", join=join)

    def enrol(self, namespace: Namespace, identity: str, baggage: str = "") -> None:
        """Serve and capture the namespace as that identity."""
        self.ask("enrol", netns=str(namespace.path), identity=identity, baggage=baggage)

    def set_identity(
        self, name: str, chain: Sequence[str], key: str, bundle: str, trusted: Sequence[str] = ()
    ) -> None:
        """Put a certificate in force. Members of the `trusted` domains may connect; none: those of its own."""
        arguments = {"chain": "".join(chain), "key": key, "bundle": bundle}
        self.ask("set_identity", name=name, trusted=list(trusted), **arguments)


class Service:
    """The other end: the verbs."""

    def __init__(self) -> None:
        from nodeagent.dataplane._native import ffi, lib

        self.ffi, self.lib = ffi, lib
        slot = ffi.new("na_engine **")
        config = ffi.new("na_config *", {"workers": 2, "access_log": 1})
        self.check(lib.na_engine_new(config, slot), None)
        self.engine = slot[0]
        self.check(lib.na_engine_start(self.engine))
        self.captures: list[Any] = []

    def check(self, code: int, _builder: Any = None) -> None:
        if code < 0:
            text = self.text(self.lib.na_engine_error(self.engine)) if hasattr(self, "engine") else ""
            raise OSError(-code, f"{os.strerror(-code)} {text}")

    def text(self, pointer: Any) -> str:
        return str(self.ffi.string(pointer).decode())

    def enrol(self, netns: str, identity: str, baggage: str) -> None:
        from nodeagent.dataplane.capture import Capture
        from nodeagent.dataplane.cgroup import own_group
        from nodeagent.dataplane.listeners import open_listeners
        from nodeagent.dataplane.netns import NetworkNamespace
        from nodeagent.dataplane.routing import read_addresses
        from nodeagent.dataplane.ruleset import CaptureRules
        from nodeagent.snapshot.address import widen_address

        lib, namespace = self.lib, NetworkNamespace.open(netns)
        workload = len(self.captures) + 1
        addresses = [widen_address(raw) for raw in read_addresses(namespace)]
        self.check(
            lib.na_workload_add(
                self.engine, workload, namespace.fd, identity.encode(), b"".join(addresses), len(addresses)
            )
        )
        self.check(lib.na_workload_identity(self.engine, workload, identity.encode()))
        self.check(lib.na_workload_baggage(self.engine, workload, baggage.encode()))

        def inbound(builder: Any) -> None:
            self.check(lib.na_builder_view(builder, identity.encode(), 0))
            self.check(lib.na_builder_inbound(builder, workload, self.ffi.NULL, 0, lib.NA_PROTOCOL_DETECT))

        self.change(inbound)
        kinds = {15001: lib.NA_LISTENER_OUTBOUND, 15006: lib.NA_LISTENER_INBOUND, PORT: lib.NA_LISTENER_HBONE}
        for port, kind in kinds.items():
            for worker, fd in enumerate(open_listeners(namespace, port, 2)):
                self.check(lib.na_workload_listen(self.engine, workload, kind, worker, fd))
        capture = Capture(namespace, CaptureRules.for_agent(own_group(), hbone=True))
        capture.apply()
        self.captures.append(capture)

    def set_identity(self, name: str, chain: str, key: str, bundle: str, trusted: list[str]) -> None:
        pems = [value.encode() for value in (name, chain, key, bundle)]
        domains = [self.ffi.new("char[]", domain.encode()) for domain in trusted]
        self.check(self.lib.na_identity_set(self.engine, *pems, domains, len(domains)))

    def route(
        self,
        view: str,
        address: str,
        port: int,
        target: int,
        identities: str,
        gateway: str = "",
        inner: str = "",
        authority: str = "",
        network: str = "",
        kind: int = 0,
    ) -> None:
        """What the view's workloads send to address:port goes to its port `target`, through a tunnel to one of
        the identities (or as na_tunnel_kind says), there or at the gateway."""
        from nodeagent.snapshot.address import parse_address

        lib, ffi, cluster = self.lib, self.ffi, f"{address}:{port}".encode()
        raw = parse_address(address)
        config = ffi.new("na_destination_config *", {"protocol": lib.NA_PROTOCOL_TCP})
        name, expected, within, place, own = (
            ffi.new("char[]", text)
            for text in (cluster, *(each.encode() for each in (identities, inner, authority, network)))
        )

        def destination(builder: Any) -> None:
            self.check(lib.na_builder_cluster(builder, name, ffi.new("na_cluster_config *")))
            endpoint = ffi.new("na_endpoint *", {"address": raw, "port": target, "healthy": 1, "weight": 1})
            fields = {
                "kind": kind,
                "identities": expected,
                "inner": within,
                "authority": place,
                "network": own,
            }
            if gateway:
                fields["address"] = parse_address(gateway)
            tunnel = ffi.new("na_tunnel_config *", fields)
            via = ffi.new("uint32_t[1]", [1])
            self.check(lib.na_builder_tunnelled_endpoints(builder, name, endpoint, 1, via, tunnel, 1))
            names, weights = ffi.new("char *[1]", [name]), ffi.new("uint32_t[1]", [1])
            self.check(
                lib.na_builder_destination(builder, view.encode(), raw, port, config, names, weights, 1)
            )

        self.change(destination)

    def name(self, workload: int, host: str, port: int, target: int) -> None:
        """A workload's port, by a name and port of its service."""
        text = self.ffi.new("char[]", host.encode())
        names = self.ffi.new("na_inbound_name[]", [(text, port, target)])
        config = self.ffi.new(
            "na_inbound_config *", {"fallback": self.lib.NA_PROTOCOL_DETECT, "names": names, "n_names": 1}
        )
        null = self.ffi.NULL
        self.change(
            lambda builder: self.check(
                self.lib.na_builder_guarded_inbound(builder, workload, null, 0, config, null, 0)
            )
        )

    def callout(self, workload: int, address: str, port: int, identities: str) -> None:
        """A workload's connections and requests are judged by the gRPC service at address:port, which is reached
        through a tunnel to one of the identities."""
        from nodeagent.snapshot.address import parse_address

        lib, ffi, null = self.lib, self.ffi, self.ffi.NULL
        name, expected = ffi.new("char[]", b"authorizer"), ffi.new("char[]", identities.encode())
        raw = parse_address(address)
        slot = ffi.new("na_guards **")
        self.check(lib.na_guards_new(slot))
        guards = ffi.gc(slot[0], lib.na_guards_free)
        asked = ffi.new("na_callout_config *", {"cluster": name, "grpc": 1, "timeout_ms": 2000})
        self.check(lib.na_guards_callout(guards, lib.NA_GUARDED_CONNECTION, asked))
        self.check(lib.na_guards_callout(guards, lib.NA_GUARDED_REQUEST, asked))
        inbound = ffi.new("na_inbound_config *", {"fallback": lib.NA_PROTOCOL_DETECT, "fallback_guards": 1})

        def write(builder: Any) -> None:
            self.check(lib.na_builder_cluster(builder, name, ffi.new("na_cluster_config *")))
            endpoint = ffi.new("na_endpoint *", {"address": raw, "port": port, "healthy": 1, "weight": 1})
            tunnel = ffi.new("na_tunnel_config *", {"identities": expected})
            via = ffi.new("uint32_t[1]", [1])
            self.check(lib.na_builder_tunnelled_endpoints(builder, name, endpoint, 1, via, tunnel, 1))
            array = ffi.new("na_guards *[1]", [guards])
            self.check(lib.na_builder_guarded_inbound(builder, workload, null, 0, inbound, array, 1))

        self.change(write)

    def change(self, write: Callable[[Any], None]) -> None:
        slot = self.ffi.new("na_builder **")
        self.check(self.lib.na_builder_new(self.engine, slot))
        try:
            write(slot[0])
        except OSError:
            self.lib.na_builder_abort(slot[0])
            raise
        self.check(self.lib.na_builder_commit(slot[0]))

    def counters(self) -> dict[str, int]:
        lib = self.lib
        found: dict[str, int] = {}
        while info := lib.na_engine_counter_info(len(found)):
            found[self.text(info.name)] = lib.na_engine_counter(self.engine, len(found))
        return found

    def records(self) -> list[dict[str, Any]]:
        """Access records since the last call, as far as tunnels are about them."""
        array = self.ffi.new("na_access_record[]", 256)
        count = self.lib.na_engine_drain_access(self.engine, array, 256)
        texts = ("upstream_failure", "peer_baggage", "traceparent", "forwarded_for", "detail")
        return [
            {name: self.text(getattr(record, name)) for name in texts}
            | {
                "principal": self.text(self.lib.na_engine_principal(self.engine, record.principal)),
                "mutual_tls": bool(record.mutual_tls),
                "inbound": bool(record.inbound),
                "flags": record.flags,
                "bytes": [record.bytes_in, record.bytes_out],
            }
            for record in array[0:count]
        ]

    def close(self) -> None:
        self.lib.na_engine_stop(self.engine, 0)
        self.lib.na_engine_free(self.engine)


def main() -> None:
    """Serve the verbs until standard input ends."""
    from nodeagent.errors import NodeagentError

    service = Service()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(service, request.pop("verb"))(**request)}
        except (NodeagentError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    service.close()


if __name__ == "__main__":
    main()
